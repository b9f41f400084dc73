"""Processes forked from one that works with us: nothing of ours may go on in them.

`multiprocessing` and `os.fork` copy a process with its event loop, its connections and its signal handlers. In the copy our
connections are closed at once, and in a copy of a worker the mapping too; signals mean what they do in any program (the
worker's handlers would hand them to the worker itself, through the socket they share); and a copy that comes back out of a
handler is ended before it goes on with the worker's business.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import threading
import weakref
from collections.abc import Callable, Iterable
from typing import Final, NoReturn, Protocol, Self

log = logging.getLogger("fastjobs.worker")

EXIT_RETURNED: Final = 70
"""Of a forked process that came back from its handler."""


class Connected(Protocol):
    """What has connections."""

    def sockets(self) -> Iterable[int]:
        """Descriptors of the open ones."""
        ...


_connected: Final[weakref.WeakSet[Connected]] = weakref.WeakSet()
_guards: Final[set[Guard]] = set()


def watch(backend: Connected) -> None:
    """Close the connections of *backend* in every process forked from this one."""
    _connected.add(backend)


class Guard:
    """``with``: a worker is at work here; a process forked meanwhile calls *close*, and takes *signals* as programs do."""

    def __init__(self, close: Callable[[], None], signals: Iterable[signal.Signals] = ()) -> None:
        self.close = close
        self.signals = tuple(signals)

    def __enter__(self) -> Self:
        _guards.add(self)
        return self

    def __exit__(self, *exc: object) -> None:
        _guards.discard(self)


def end_copy(of: str) -> NoReturn:
    """End this process, a fork that has come back from *of*."""
    log.error("a process that %s forked came back from it and is ended: it must end by os._exit, or exec", of)
    os._exit(EXIT_RETURNED)


def socket_of(transport: asyncio.BaseTransport | None) -> list[int]:
    """The descriptor of *transport*, if it has one."""
    found = transport.get_extra_info("socket") if transport is not None else None
    try:
        return [fd] if found is not None and (fd := found.fileno()) >= 0 else []
    except OSError:  # closed
        return []


class _Held(threading.local):
    mask: set[int | signal.Signals] | None = None  #: of the thread that forks, as it was before


_held = _Held()


def _before_fork() -> None:
    """Hold the worker's signals back: one that reaches the copy before it has shed our handlers would be told to the worker."""
    numbers = {number for guard in _guards for number in guard.signals}
    _held.mask = signal.pthread_sigmask(signal.SIG_BLOCK, numbers) if numbers else None


def _let_through() -> None:
    mask, _held.mask = _held.mask, None
    if mask is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _after_fork() -> None:
    try:
        _shed()
    finally:
        _let_through()


def _shed() -> None:
    """In the copy: handlers, connections and whatever the guards hold."""
    for guard in _guards:
        if guard.signals:
            signal.set_wakeup_fd(-1)
        for number in guard.signals:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        guard.close()
    _guards.clear()
    open_fds = [fd for backend in list(_connected) for fd in backend.sockets()]
    if open_fds:
        # Not just closed: the copy's transports would close a descriptor of that number that has become somebody else's.
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        for fd in open_fds:
            with contextlib.suppress(OSError):
                os.dup2(null, fd, inheritable=False)
        os.close(null)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_let_through, after_in_child=_after_fork)
