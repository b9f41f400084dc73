"""A store whose calls can be made to fail, to lose their reply, to hang, and to be waited for."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from fastjobs.backends.base import Store, WaitsThenClaims
from fastjobs.errors import BackendError, StoreUnavailable
from fastjobs.model import Adopted, DeadLetter, Entry, Exchanged, Settlement, Stats

AWAY = StoreUnavailable("the test has taken the store away")


class Call(NamedTuple):
    """One call that reached the store or should have."""

    name: str
    args: tuple[Any, ...]


@dataclass
class Fault:
    """What is to happen to some of the calls of one name."""

    skip: int  #: calls that go well first
    times: int  #: calls that it hits then
    error: BackendError | None  #: raised
    done: bool  #: the store does the work before the error: the reply is lost
    gate: asyncio.Event | None  #: the call waits for it, before the work, or after it if `done`
    when: Callable[..., bool] | None = None  #: of the call's arguments: whether it counts at all; None: every call does
    reached: asyncio.Event = field(default_factory=asyncio.Event)  #: a call has been hit


class FaultyBackend(WaitsThenClaims):
    """*store*, with faults. Clones share them, and the record of calls."""

    def __init__(self, store: Store, shared: FaultyBackend | None = None) -> None:
        self._store = store
        self._owner: FaultyBackend = shared or self
        self._down = False
        self.faults: dict[str, list[Fault]] = {}
        self.calls: list[Call] = []
        self.pending = 0  #: calls that the store has not answered
        self._news: set[asyncio.Event] = set()

    # -- what tests do with it

    def fail(
        self,
        name: str,
        *,
        skip: int = 0,
        times: int = 1,
        error: BackendError = AWAY,
        lose_reply: bool = False,
        when: Callable[..., bool] | None = None,
    ) -> Fault:
        """*times* calls of *name* raise *error*, after *skip* good ones; with *lose_reply* the work is done all the same.

        *when*: only calls with such arguments count.
        """
        return self._plan(name, Fault(skip, times, error, lose_reply, None, when))

    def hang(self, name: str, *, skip: int = 0, times: int = 1, done: bool = False) -> Fault:
        """*times* calls of *name* wait for the fault's gate, before the store's work, or after it if *done*."""
        return self._plan(name, Fault(skip, times, None, done, asyncio.Event()))

    def down(self) -> None:
        """Every call raises StoreUnavailable from now on."""
        self._owner._down = True

    def up(self) -> None:
        """The store answers again."""
        self._owner._down = False

    def named(self, name: str) -> list[Call]:
        """The calls of *name* so far."""
        return [call for call in self._owner.calls if call.name == name]

    async def until(self, true: Callable[[], bool | Awaitable[bool]], timeout_s: float = 10.0) -> None:
        """Wait until *true*, looked at when a call of anybody begins or ends."""
        news = asyncio.Event()
        self._owner._news.add(news)
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    news.clear()
                    answer = true()
                    if answer if isinstance(answer, bool) else await answer:
                        return
                    await news.wait()
        finally:
            self._owner._news.discard(news)

    def _plan(self, name: str, fault: Fault) -> Fault:
        self._owner.faults.setdefault(name, []).append(fault)
        return fault

    # -- how a call goes

    async def _call(self, name: str, *args: Any) -> Any:
        owner = self._owner
        owner.calls.append(Call(name, args))
        owner.pending += 1
        owner._tell()
        try:
            return await self._faulty(name, args)
        finally:
            owner.pending -= 1
            owner._tell()

    def _tell(self) -> None:
        for news in self._news:
            news.set()

    async def _faulty(self, name: str, args: tuple[Any, ...]) -> Any:
        if self._owner._down:
            raise AWAY
        fault = self._next_fault(name, args)
        if fault is None:
            return await getattr(self._store, name)(*args)
        answer = await getattr(self._store, name)(*args) if fault.done else None
        fault.reached.set()
        if fault.gate is not None:
            await fault.gate.wait()
        if fault.error is not None:
            raise fault.error
        return answer if fault.done else await getattr(self._store, name)(*args)

    def _next_fault(self, name: str, args: tuple[Any, ...]) -> Fault | None:
        for fault in self._owner.faults.get(name, ()):
            if fault.when is not None and not fault.when(*args):
                continue
            if fault.skip:
                fault.skip -= 1
                return None
            if fault.times:
                fault.times -= 1
                return fault
        return None

    # -- the protocol

    @property
    def url(self) -> str:
        return self._store.url

    @property
    def time_shift_s(self) -> float:
        return self._store.time_shift_s

    @time_shift_s.setter
    def time_shift_s(self, shift_s: float) -> None:
        self._store.time_shift_s = shift_s

    def clone(self) -> FaultyBackend:
        return FaultyBackend(self._store.clone(), self._owner)

    async def open(self) -> list[str]:
        return await self._call("open")

    async def close(self) -> None:
        await self._store.close()

    async def push(self, producer: str, seq: int, acked: int, entries: Sequence[Entry]) -> None:
        await self._call("push", producer, seq, acked, entries)

    async def register(self, worker: str) -> None:
        await self._call("register", worker)

    async def exchange(
        self, worker: str, n: int, settlements: Sequence[Settlement], queues: Sequence[str], limit: int
    ) -> Exchanged:
        return await self._call("exchange", worker, n, settlements, queues, limit)

    async def wait(self, queues: Sequence[str], timeout_s: float) -> bool:
        return await self._call("wait", queues, timeout_s)

    async def renew(self, lease: str) -> bool:
        return await self._call("renew", lease)

    async def leases(self) -> dict[str, int]:
        return await self._call("leases")

    async def workers(self, lease: str) -> dict[str, list[int]]:
        return await self._call("workers", lease)

    async def adopt(self, into: str, n: int, worker: str, claims: Sequence[int] | None, limit: int) -> Adopted:
        return await self._call("adopt", into, n, worker, claims, limit)

    async def retire(self, worker: str) -> bool:
        return await self._call("retire", worker)

    async def housekeep(self) -> None:
        await self._call("housekeep")

    async def stats(self) -> Stats:
        return await self._call("stats")

    async def peek(self, queue: str, limit: int) -> list[bytes]:
        return await self._call("peek", queue, limit)

    async def dead_list(self, queue: str | None, before: tuple[float, bytes] | None, limit: int) -> list[DeadLetter]:
        return await self._call("dead_list", queue, before, limit)

    async def dead_get(self, id: bytes) -> DeadLetter | None:
        return await self._call("dead_get", id)

    async def dead_requeue(self, entries: Sequence[Entry]) -> list[bool]:
        return await self._call("dead_requeue", entries)

    async def dead_delete(self, ids: Sequence[bytes]) -> list[bool]:
        return await self._call("dead_delete", ids)

    async def purge(self, queue: str) -> int:
        return await self._call("purge", queue)

    async def migrate(self) -> list[str]:
        return await self._call("migrate")
