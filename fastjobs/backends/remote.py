"""The memory store from another process: the client's end of the broker's Unix socket."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from typing import Any

import msgspec

from fastjobs import errors
from fastjobs.backends import frames, mask_password
from fastjobs.backends.base import WaitsThenClaims
from fastjobs.backends.bundles import bundle
from fastjobs.backends.frames import Frames, Op, Status, encode, peer_uid
from fastjobs.errors import BackendError, StoreUnavailable
from fastjobs.forks import socket_of, watch
from fastjobs.model import Adopted, DeadLetter, Entry, Exchanged, Settlement, Stats

URL_SCHEME = "memory+unix://"
"""Before the absolute path of the socket: ``memory+unix:///run/user/1000/fastjobs/app.sock``."""

CALL_TIMEOUT_S = 30.0
"""A broker silent for so long is taken as lost. Its slowest step, housekeeping of millions of records, takes well below 1 s."""

REFUSALS = {
    error.__name__: error
    for error in (errors.BackendError, errors.StaleCall, errors.WorkerGone, errors.StoreUnavailable, errors.SchemaError)
}

Decoder = msgspec.msgpack.Decoder
NONE = Decoder(None)
BOOL = Decoder(bool)
BOOLS = Decoder(list[bool])
COUNT = Decoder(int)
WELCOME = Decoder(frames.Welcome)
REFUSAL = Decoder(frames.Refusal)
EXCHANGED = Decoder(Exchanged)
ADOPTED = Decoder(Adopted)
LEASES = Decoder(dict[str, int])
WORKERS = Decoder(dict[str, list[int]])
STATS = Decoder(Stats)
ENVELOPES = Decoder(list[bytes])
LETTER = Decoder(DeadLetter | None)
LETTERS = Decoder(list[DeadLetter])


_Calls = dict[int, tuple[asyncio.Future[Any], Decoder[Any]]]


class _Link(Frames):
    """One connection: replies find their callers by id, and everybody learns of its end."""

    def __init__(self, path: str, timeout_s: float) -> None:
        super().__init__()
        self.loop = asyncio.get_running_loop()
        self.lost: BackendError | None = None
        self._path = path
        self._timeout_s = timeout_s
        self._calls: _Calls = {}
        self._waits: _Calls = {}
        self._last_id = 0
        self._watched_id = 0  # last id of the sweep before
        self._sweeper: asyncio.TimerHandle | None = None
        self._ended = self.loop.create_future()

    def call(self, op: Op, request: object, reply: Decoder[Any]) -> asyncio.Future[Any]:
        """Send one request; its reply to come. Raises what ended the connection, or BackendError if it is too large."""
        _, future = self._begin(op, request, reply, self._calls)
        if self._sweeper is None:
            self._sweeper = self.loop.call_later(self._timeout_s / 2, self._sweep)
        return future

    async def wait(self, wait: frames.Wait) -> bool:
        """A call that takes its time; the broker hears of it if the caller is cancelled."""
        id, future = self._begin(Op.WAIT, wait, BOOL, self._waits)
        try:
            async with asyncio.timeout(wait.timeout_s + self._timeout_s):
                return bool(await future)
        except TimeoutError:
            raise StoreUnavailable(f"the broker at {self._path} has not ended a wait of {wait.timeout_s:g} s") from None
        except asyncio.CancelledError:
            if self.lost is None:
                self.send(Op.CANCEL, id, encode(None))
            raise
        finally:
            self._waits.pop(id, None)

    def _begin(self, op: Op, request: object, reply: Decoder[Any], calls: _Calls) -> tuple[int, asyncio.Future[Any]]:
        if self.lost is not None:
            raise _anew(self.lost)
        self._last_id += 1
        self.send(op, self._last_id, encode(request))
        future = self.loop.create_future()
        calls[self._last_id] = future, reply
        return self._last_id, future

    def frame(self, code: int, id: int, body: memoryview) -> None:
        call = self._calls.get(id) or self._waits.get(id)
        if call is not None and not call[0].done():  # else its caller was cancelled
            future, reply = call
            if code == Status.OK:
                future.set_result(reply.decode(body))
            else:
                refusal = REFUSAL.decode(body)
                future.set_exception(REFUSALS.get(refusal.error, BackendError)(refusal.message))
        self._calls.pop(id, None)  # not before: a reply that cannot be read ends the connection, and all calls that are open

    def broken(self, reason: str) -> None:
        self._lose(BackendError(f"the broker at {self._path} does not speak our protocol: {reason}"))

    def connection_lost(self, exc: Exception | None) -> None:
        self._lose(StoreUnavailable(f"lost the connection to the broker at {self._path}" + (f": {exc}" if exc else "")))
        if not self._ended.done():
            self._ended.set_result(None)

    async def end(self) -> None:
        """Close the connection and wait until it is closed."""
        self._lose(StoreUnavailable(f"the connection to {self._path} was closed by this process"))
        self.transport.close()
        await self._ended

    def _lose(self, error: BackendError) -> None:
        if self.lost is None:
            self.lost = error
        if self._sweeper is not None:
            self._sweeper.cancel()
        open_calls = [*self._calls.values(), *self._waits.values()]
        self._calls.clear()
        for future, _ in open_calls:
            if not future.done():
                future.set_exception(_anew(self.lost))

    def _sweep(self) -> None:
        """Every half timeout: lose the connection if a call that was open last time still is. No timer per call: 1 µs each."""
        self._sweeper = None
        oldest = next(iter(self._calls), None)
        if oldest is None:
            return
        if oldest <= self._watched_id:
            self._lose(StoreUnavailable(f"the broker at {self._path} has not answered for {self._timeout_s:g} s"))
            self.transport.abort()
            return
        self._watched_id = self._last_id
        self._sweeper = self.loop.call_later(self._timeout_s / 2, self._sweep)


def _anew(error: BackendError) -> BackendError:
    """The same error for one more caller: an exception that several raise would mix their tracebacks."""
    return type(error)(*error.args)


class SocketBackend(WaitsThenClaims):
    """A broker's memory store. One connection, made on first use and again when it was lost; use it from one event loop.

    Its jobs live as long as the broker: after that every call raises BackendError, for good, once another broker serves the
    same socket; until then StoreUnavailable.
    """

    def __init__(self, path: str | os.PathLike[str], *, call_timeout_s: float = CALL_TIMEOUT_S) -> None:
        self.path = os.fspath(path)
        self.url = mask_password(URL_SCHEME + self.path)
        self.time_shift_s = 0.0
        self.call_timeout_s = call_timeout_s
        self._incarnation: bytes | None = None
        self._link: _Link | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._opening = asyncio.Lock()
        watch(self)

    def sockets(self) -> list[int]:
        """The descriptor of the connection, if there is one."""
        return socket_of(self._link.transport) if self._link is not None else []

    async def open(self) -> list[str]:
        await self._connected()
        return []

    async def close(self) -> None:
        link, self._link = self._link, None
        if link is not None and link.loop is asyncio.get_running_loop():
            await link.end()

    def clone(self) -> SocketBackend:
        twin = SocketBackend(self.path, call_timeout_s=self.call_timeout_s)
        twin._incarnation = self._incarnation
        return twin

    async def push(self, producer: str, seq: int, acked: int, entries: Sequence[Entry]) -> None:
        bundles, later = bundle(entries)
        await self._call(Op.PUSH, (producer, seq, acked, bundles, later, self.time_shift_s), NONE)

    async def register(self, worker: str) -> None:
        await self._call(Op.REGISTER, worker, NONE)

    async def exchange(
        self, worker: str, n: int, settlements: Sequence[Settlement], queues: Sequence[str], limit: int
    ) -> Exchanged:
        reply: Exchanged = await self._call(Op.EXCHANGE, (worker, n, settlements, queues, limit, self.time_shift_s), EXCHANGED)
        return reply

    async def wait(self, queues: Sequence[str], timeout_s: float) -> bool:
        link = await self._connected()
        return await link.wait(frames.Wait(list(queues), timeout_s, self.time_shift_s))

    async def renew(self, lease: str) -> bool:
        return bool(await self._call(Op.RENEW, lease, BOOL))

    async def leases(self) -> dict[str, int]:
        reply: dict[str, int] = await self._call(Op.LEASES, None, LEASES)
        return reply

    async def workers(self, lease: str) -> dict[str, list[int]]:
        reply: dict[str, list[int]] = await self._call(Op.WORKERS, lease, WORKERS)
        return reply

    async def adopt(self, into: str, n: int, worker: str, claims: Sequence[int] | None, limit: int) -> Adopted:
        reply: Adopted = await self._call(Op.ADOPT, (into, n, worker, claims, limit), ADOPTED)
        return reply

    async def retire(self, worker: str) -> bool:
        return bool(await self._call(Op.RETIRE, worker, BOOL))

    async def housekeep(self) -> None:
        await self._call(Op.HOUSEKEEP, self.time_shift_s, NONE)

    async def stats(self) -> Stats:
        reply: Stats = await self._call(Op.STATS, None, STATS)
        return reply

    async def peek(self, queue: str, limit: int) -> list[bytes]:
        reply: list[bytes] = await self._call(Op.PEEK, (queue, limit), ENVELOPES)
        return reply

    async def dead_list(self, queue: str | None, before: tuple[float, bytes] | None, limit: int) -> list[DeadLetter]:
        reply: list[DeadLetter] = await self._call(Op.DEAD_LIST, (queue, before, limit), LETTERS)
        return reply

    async def dead_get(self, id: bytes) -> DeadLetter | None:
        reply: DeadLetter | None = await self._call(Op.DEAD_GET, id, LETTER)
        return reply

    async def dead_requeue(self, entries: Sequence[Entry]) -> list[bool]:
        reply: list[bool] = await self._call(Op.DEAD_REQUEUE, (entries, self.time_shift_s), BOOLS)
        return reply

    async def dead_delete(self, ids: Sequence[bytes]) -> list[bool]:
        reply: list[bool] = await self._call(Op.DEAD_DELETE, ids, BOOLS)
        return reply

    async def purge(self, queue: str) -> int:
        return int(await self._call(Op.PURGE, queue, COUNT))

    async def migrate(self) -> list[str]:
        return await self.open()

    async def _call(self, op: Op, request: object, reply: Decoder[Any]) -> Any:
        link = self._link
        if link is None or link.lost is not None or link.loop is not asyncio.get_running_loop():
            link = await self._connected()
        return await link.call(op, request, reply)

    async def _connected(self) -> _Link:
        loop = asyncio.get_running_loop()
        if loop is not self._loop:  # used again in another event loop, or in a forked child
            self._loop, self._link, self._opening = loop, None, asyncio.Lock()
        async with self._opening:  # several tasks may find the connection gone: one makes the new one
            if self._link is None or self._link.lost is not None:
                self._link = await self._connect(loop)
            return self._link

    async def _connect(self, loop: asyncio.AbstractEventLoop) -> _Link:
        try:
            async with asyncio.timeout(self.call_timeout_s):
                transport, link = await loop.create_unix_connection(lambda: _Link(self.path, self.call_timeout_s), self.path)
        except PermissionError as error:
            raise BackendError(f"the socket {self.path} belongs to another user") from error
        except (OSError, TimeoutError) as error:
            raise StoreUnavailable(f"no supervisor of this app serves {self.path}: {error}") from error
        try:
            if peer_uid(transport) != os.getuid():
                raise BackendError(f"the process that serves {self.path} belongs to user {peer_uid(transport)}")
            welcome: frames.Welcome = await link.call(Op.HELLO, frames.Hello(frames.VERSION), WELCOME)
            if self._incarnation not in (None, welcome.incarnation):
                raise BackendError(f"the memory store at {self.path} has ended and its jobs with it; start this process anew")
        except BaseException:
            transport.abort()
            raise
        self._incarnation = welcome.incarnation
        return link
