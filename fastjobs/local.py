"""``memory://``: the running supervisor's store if there is one, else this process's own."""

from __future__ import annotations

import atexit
import os
import socket
import sys
import weakref
from typing import Final

from fastjobs.backends.base import Store
from fastjobs.backends.memory import MemoryBackend

if sys.platform != "win32":  # there is no supervisor on Windows, and none of what its broker needs
    from fastjobs.backends.broker import socket_path
    from fastjobs.backends.remote import SocketBackend

_own: Final[weakref.WeakKeyDictionary[object, MemoryBackend]] = weakref.WeakKeyDictionary()
"""This process's own store, per JobQueue."""

_owner_pid = os.getpid()


def broker_answers(app_id: str) -> bool:
    """Whether a supervisor of that app runs here for this user, with its jobs in memory."""
    if sys.platform == "win32":
        return False
    path = str(socket_path(app_id))
    probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        probe.settimeout(1.0)
        probe.connect(path)
    except OSError:
        return False
    finally:
        probe.close()
    return True


def local_store(owner: object, app_id: str) -> Store:
    """A backend for ``memory://``, the same store for the same *owner* throughout this process.

    A process that has begun with a store of its own stays with it.
    """
    backend = _own.get(owner)
    if backend is None:
        if sys.platform != "win32" and broker_answers(app_id):
            return SocketBackend(socket_path(app_id))
        backend = _own[owner] = MemoryBackend()
        _keep_watch()
    return backend.clone()


def _keep_watch() -> None:
    global _owner_pid
    _owner_pid = os.getpid()
    atexit.unregister(_tell)
    atexit.register(_tell)


def _tell() -> None:
    """Say what ends with this process."""
    if os.getpid() != _owner_pid:
        return
    undone = sum(backend.pending() for backend in _own.values())
    if undone:
        what = "1 job ends" if undone == 1 else f"{undone:,} jobs end"
        print(f"fastjobs: {what} with this process: set FASTJOBS_URL or start fastjobs supervise", file=sys.stderr)
