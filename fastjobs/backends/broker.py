"""The broker: serves one `MemoryStore` to the other processes of this user, over a Unix socket.

One process, one event loop, one connection per client. Whatever a client sends, or fails to read, costs that client its
connection and nobody else anything.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import logging
import os
import re
import socket
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from fastjobs import clock
from fastjobs.backends import frames
from fastjobs.backends.frames import Frames, Op, Status, encode, peer_uid
from fastjobs.backends.memory import wait_for_jobs
from fastjobs.backends.memory_core import MemoryStore
from fastjobs.errors import BackendError, ConfigError

log = logging.getLogger("fastjobs.broker")

SOCKET_PATH_BYTES = 103 if sys.platform == "darwin" else 107
"""Longest path of a Unix socket: sun_path less its final NUL."""

WRITE_BYTES = 1 << 20
"""Replies held for a client that does not read; then its requests wait."""


def socket_path(app_id: str) -> Path:
    """Where the broker of the app *app_id* listens for this user: the same in every process with the same XDG_RUNTIME_DIR."""
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", app_id).strip("-.")[:32]
    name = f"{name}-{hashlib.blake2b(app_id.encode(), digest_size=5).hexdigest()}.sock"
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    if os.path.isabs(runtime):
        path = Path(runtime, "fastjobs", name)
        if len(os.fsencode(path)) <= SOCKET_PATH_BYTES:
            return path
    return Path(f"/tmp/fastjobs-{os.getuid()}", name)  # nosec B108  # noqa: S108 - private_directory refuses one that is not ours alone


def private_directory(path: Path) -> None:
    """Create *path* for this user alone, or make sure that it is. BackendError if others could put a socket there."""
    try:
        path.mkdir(mode=0o700, exist_ok=True)
        found = path.lstat()
    except OSError as error:
        raise BackendError(f"{path} cannot be made: {error.strerror}; set XDG_RUNTIME_DIR to a directory of yours") from error
    if not stat.S_ISDIR(found.st_mode):
        raise BackendError(f"{path} must be a directory; remove it, or set XDG_RUNTIME_DIR")
    if found.st_uid != os.geteuid():
        raise BackendError(f"{path} belongs to user {found.st_uid}, not to {os.geteuid()}; remove it, or set XDG_RUNTIME_DIR")
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise BackendError(f"{path} can be written by others; run: chmod 700 {path}")


async def serve(
    path: str | Path,
    *,
    store: MemoryStore | None = None,
    started: Callable[[], object] | None = None,
    client_uid: int | None = None,
) -> None:
    """Serve *store* (default: an empty one) at *path* until cancelled; the jobs end with it.

    *started* is called once clients can connect. *client_uid* is the user who may connect, default: our own.
    Raises BackendError when a broker is alive at *path* or the directory is not ours alone, ConfigError when *path* is too
    long. The socket file of a broker that died is replaced.
    """
    path = Path(path)
    if len(os.fsencode(path)) > SOCKET_PATH_BYTES:
        raise ConfigError(f"the socket path {path} is longer than the system's {SOCKET_PATH_BYTES} bytes; set XDG_RUNTIME_DIR")
    private_directory(path.parent)
    broker = _Broker(MemoryStore() if store is None else store, os.getuid() if client_uid is None else client_uid)
    with _sole_owner(path), _listening(path) as listener:
        server = await asyncio.get_running_loop().create_unix_server(broker.connect, sock=listener, backlog=1024)
        try:
            if started is not None:
                started()
            await asyncio.Event().wait()
        finally:
            server.close()
            broker.disconnect_all()
            await server.wait_closed()


@contextmanager
def _sole_owner(path: Path) -> Iterator[None]:
    """Hold the lock that says a broker is alive at *path*; the system drops it with the process, however that ends."""
    lock_path = path.with_name(path.name + ".lock")
    lock = _lock(lock_path)
    try:
        if lock is None:
            raise BackendError(f"a supervisor of this app already serves {path}{_holder(lock_path)}; stop it first")
        os.pwrite(lock, b"%d" % os.getpid(), 0)
        yield
    finally:
        if lock is not None:
            lock_path.unlink(missing_ok=True)
            fcntl.flock(lock, fcntl.LOCK_UN)
            os.close(lock)


def _holder(lock_path: Path) -> str:
    """Whose lock it is, for a message; empty when it has just ended."""
    try:
        return f" (process {lock_path.read_text(errors='replace')[:20]})"
    except FileNotFoundError:
        return ""


def _lock(path: Path) -> int | None:
    """Descriptor of the file *path*, empty and locked by us; None if another holds it."""
    while True:
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(lock), path.lstat()):
                os.truncate(lock, 0)
                return lock
        except BlockingIOError:
            os.close(lock)
            return None
        except FileNotFoundError:  # path.lstat: see below
            log.debug("%s was removed while it was locked", path)
        os.close(lock)  # its owner removed the file between our open and our lock: make a new one


@contextmanager
def _listening(path: Path) -> Iterator[socket.socket]:
    path.unlink(missing_ok=True)  # of a broker that died: we hold its lock
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(os.fsencode(path))
        try:
            path.chmod(0o600)
            yield listener
        finally:
            path.unlink(missing_ok=True)


class _Broker:
    """What all connections share."""

    def __init__(self, store: MemoryStore, client_uid: int) -> None:
        self.store = store
        self.client_uid = client_uid
        self.welcome = frames.Welcome(os.urandom(16), os.getpid())
        self.sessions: set[_Session] = set()

    def connect(self) -> _Session:
        return _Session(self)

    def disconnect_all(self) -> None:
        for session in list(self.sessions):
            session.transport.abort()


class _Session(Frames):
    """One client."""

    def __init__(self, broker: _Broker) -> None:
        super().__init__()
        self._broker = broker
        self._greeted = False
        self._waits: dict[int, asyncio.Task[None]] = {}

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._broker.sessions.add(self)
        self.transport.set_write_buffer_limits(WRITE_BYTES)
        uid = peer_uid(transport)
        if uid != self._broker.client_uid:
            log.warning("refused a connection of user %d", uid)
            self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._broker.sessions.discard(self)
        for task in list(self._waits.values()):
            task.cancel()

    def broken(self, reason: str) -> None:
        log.warning("closed a client's connection: %s", reason)

    def frame(self, code: int, id: int, body: memoryview) -> None:
        if not self._greeted or code == Op.HELLO:
            self._greet(code, id, body)
        elif code == Op.WAIT:
            self._begin_wait(id, decode_wait(body))
        elif code == Op.CANCEL:
            task = self._waits.get(id)
            if task is not None:
                task.cancel()
        else:
            self._answer(code, id, body)

    def _answer(self, code: int, id: int, body: memoryview) -> None:
        try:
            call = CALLS.get(code)
            if call is None:
                raise BackendError(f"this broker has no call {code}; restart the supervisor after an upgrade")
            self.send(Status.OK, id, encode(call(self._broker.store, body)))
        except frames.UNREADABLE:  # the body: it ends the connection
            raise
        except Exception as error:
            self._failed(id, error)

    def _failed(self, id: int, error: Exception) -> None:
        if isinstance(error, BackendError):
            self._refused(id, type(error).__name__, str(error))
        else:
            log.error("a call failed in the broker", exc_info=error)
            self._refused(id, BackendError.__name__, f"the broker failed: {error!r}")

    def _refused(self, id: int, error: str, message: str) -> None:
        self.send(Status.REFUSED, id, encode(frames.Refusal(error, message)))

    def _greet(self, code: int, id: int, body: memoryview) -> None:
        if code != Op.HELLO:
            self._refuse("its first request is no hello")
            return
        version = decode_hello(body).version
        if version != frames.VERSION:
            message = f"the broker speaks version {frames.VERSION}, this process {version}: restart the older of the two"
            self._refused(id, BackendError.__name__, message)
            return
        self._greeted = True
        self.send(Status.OK, id, encode(self._broker.welcome))

    def _begin_wait(self, id: int, wait: frames.Wait) -> None:
        if id in self._waits:
            self._refuse(f"it used the id {id} twice")
            return
        self._waits[id] = task = asyncio.get_running_loop().create_task(self._wait(id, wait))
        task.add_done_callback(lambda _: self._waits.pop(id, None))

    async def _wait(self, id: int, wait: frames.Wait) -> None:
        try:
            found = await wait_for_jobs(self._broker.store, wait.queues, wait.timeout_s, wait.shift_s)
            self.send(Status.OK, id, encode(found))
        except Exception as error:
            self._failed(id, error)


Call = Callable[[MemoryStore, memoryview], Any]
"""One call of the store: decodes its body, does the work, returns what is encoded as the result."""


def _reads(type: Any) -> Callable[[memoryview], Any]:
    return msgspec.msgpack.Decoder(type).decode


decode_hello: Callable[[memoryview], frames.Hello] = _reads(frames.Hello)
decode_wait: Callable[[memoryview], frames.Wait] = _reads(frames.Wait)
decode_push: Callable[[memoryview], frames.Push] = _reads(frames.Push)
decode_exchange: Callable[[memoryview], frames.Exchange] = _reads(frames.Exchange)
decode_adopt: Callable[[memoryview], frames.Adopt] = _reads(frames.Adopt)
decode_peek: Callable[[memoryview], frames.Peek] = _reads(frames.Peek)
decode_dead_list: Callable[[memoryview], frames.DeadList] = _reads(frames.DeadList)
decode_dead_requeue: Callable[[memoryview], frames.DeadRequeue] = _reads(frames.DeadRequeue)
decode_name: Callable[[memoryview], str] = _reads(str)
decode_id: Callable[[memoryview], bytes] = _reads(bytes)
decode_ids: Callable[[memoryview], list[bytes]] = _reads(list[bytes])
decode_shift: Callable[[memoryview], float] = _reads(float)


def _push(store: MemoryStore, body: memoryview) -> None:
    call = decode_push(body)
    store.push(call.producer, call.seq, call.acked, call.bundles, call.later, clock.wall() + call.shift_s)


def _exchange(store: MemoryStore, body: memoryview) -> Any:
    call = decode_exchange(body)
    return store.exchange(call.worker, call.n, call.settlements, call.queues, call.limit, clock.wall() + call.shift_s)


def _adopt(store: MemoryStore, body: memoryview) -> Any:
    call = decode_adopt(body)
    return store.adopt(call.into, call.n, call.worker, call.claims, call.limit)


def _peek(store: MemoryStore, body: memoryview) -> Any:
    call = decode_peek(body)
    return store.peek(call.queue, call.limit)


def _dead_list(store: MemoryStore, body: memoryview) -> Any:
    call = decode_dead_list(body)
    return store.dead_list(call.queue, call.before, call.limit)


def _dead_requeue(store: MemoryStore, body: memoryview) -> Any:
    call = decode_dead_requeue(body)
    return store.dead_requeue(call.entries, clock.wall() + call.shift_s)


CALLS: dict[int, Call] = {
    Op.PUSH: _push,
    Op.REGISTER: lambda store, body: store.register(decode_name(body)),
    Op.EXCHANGE: _exchange,
    Op.RENEW: lambda store, body: store.renew(decode_name(body)),
    Op.LEASES: lambda store, body: store.leases(),
    Op.WORKERS: lambda store, body: store.workers(decode_name(body)),
    Op.ADOPT: _adopt,
    Op.RETIRE: lambda store, body: store.retire(decode_name(body)),
    Op.HOUSEKEEP: lambda store, body: store.housekeep(clock.wall() + decode_shift(body)),
    Op.STATS: lambda store, body: store.stats(),
    Op.PEEK: _peek,
    Op.DEAD_LIST: _dead_list,
    Op.DEAD_GET: lambda store, body: store.dead_get(decode_id(body)),
    Op.DEAD_REQUEUE: _dead_requeue,
    Op.DEAD_DELETE: lambda store, body: store.dead_delete(decode_ids(body)),
    Op.PURGE: lambda store, body: store.purge(decode_name(body)),
}
