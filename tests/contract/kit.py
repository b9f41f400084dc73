"""How the contract's tests drive a store: entries, workers and producers in few words, and replies that get lost."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any, NamedTuple, TypeVar

from fastjobs.backends.base import Store, WaitsThenClaims
from fastjobs.errors import BackendError
from fastjobs.model import Adopted, DeadLetter, Entry, Exchanged, Kind, Outcome, QueueStats, Settlement, Stats

T = TypeVar("T")

HOUR = 3600.0

_producers = itertools.count()


def job_id(name: str) -> bytes:
    """The id of the job that the tests call *name*."""
    return hashlib.blake2b(name.encode(), digest_size=16).digest()


def entry(
    name: str,
    *,
    queue: str = "q",
    priority: int = 5,
    envelope: bytes | None = None,
    run_at: float | None = None,
    delay_s: float = 0.0,
) -> Entry:
    """A job called *name*, which is also its envelope unless one is given."""
    return Entry(job_id(name), queue, priority, name.encode() if envelope is None else envelope, run_at, delay_s)


def entries(names: Iterable[str], **where: Any) -> list[Entry]:
    return [entry(name, **where) for name in names]


def numbered(count: int, prefix: str = "job") -> list[str]:
    """Names of *count* jobs, in the order of pushing."""
    return [f"{prefix}-{number}" for number in range(count)]


async def push(store: Store, *jobs: Entry) -> None:
    """One push of a producer that is not heard of again."""
    await store.push(f"producer-{next(_producers)}", 1, 1, jobs)


def decoded(jobs: Iterable[bytes]) -> list[str]:
    return [job.decode("latin-1") for job in jobs]


def retry(index: int, job: Entry) -> Outcome:
    return Outcome(index, Kind.RETRY, job)


def dead(index: int, job: Entry) -> Outcome:
    return Outcome(index, Kind.DEAD, job)


def released(index: int, job: Entry) -> Outcome:
    return Outcome(index, Kind.RELEASED, job)


class Claim(NamedTuple):
    """Jobs that a worker holds."""

    id: int
    jobs: list[str]

    def done(self) -> Settlement:
        """All of them ended well."""
        return Settlement(self.id)

    def ended(self, *outcomes: Outcome, unfinished: Sequence[int] = (), into: int = 0) -> Settlement:
        return Settlement(self.id, list(outcomes), list(unfinished), into)


class Worker:
    """A worker of the tests: counts its calls."""

    def __init__(self, store: Store, id: str) -> None:
        self.store = store
        self.id = id
        self.n = 0

    def number(self) -> int:
        self.n += 1
        return self.n

    async def exchange(self, *settlements: Settlement, queues: Sequence[str] = ("q",), limit: int = 0) -> Exchanged:
        return await self.store.exchange(self.id, self.number(), settlements, queues, limit)

    async def claim(self, limit: int = 1000, queues: Sequence[str] = ("q",)) -> Claim:
        answer = await self.exchange(queues=queues, limit=limit)
        return Claim(self.n, decoded(answer.jobs))

    async def settle(self, *settlements: Settlement) -> list[bool]:
        return (await self.exchange(*settlements)).kept

    async def adopt(self, worker: str, claims: Sequence[int] | None = None, limit: int = 1000) -> tuple[Claim, bool]:
        """What was adopted, and whether there is more."""
        answer = await self.store.adopt(self.id, self.number(), worker, claims, limit)
        return Claim(self.n, decoded(answer.jobs)), answer.more

    async def drain(self, *queues: str) -> list[str]:
        """Claim and finish everything that is ready; its jobs in order."""
        ran: list[str] = []
        while True:
            claim = await self.claim(queues=queues or ("q",))
            if not claim.jobs:
                return ran
            ran += claim.jobs
            assert await self.settle(claim.done()) == [True]


async def worker(store: Store, id: str = "here.1") -> Worker:
    """A registered worker."""
    await store.register(id)
    return Worker(store, id)


async def counts(store: Store, queue: str = "q") -> QueueStats:
    """Counts of *queue*: all zero if the store does not know it."""
    known = {found.queue: found for found in (await store.stats()).queues}
    return known.get(queue, QueueStats(queue, 0, 0, 0))


async def open_claims(store: Store, id: str) -> list[int] | None:
    """The open claims of a worker; None if the store does not know it."""
    return (await store.workers(id.rpartition(".")[0])).get(id)


async def empty(store: Store) -> None:
    """Take everything out of the store, by the protocol's own means, until nothing should be left."""
    janitor = await worker(store, "janitor.1")
    for lease in await store.leases():
        for id in await store.workers(lease):
            more = id != janitor.id
            while more:
                claim, more = await janitor.adopt(id)
                await janitor.settle(claim.done())
    for queue in (await store.stats()).queues:
        await store.purge(queue.queue)
    while letters := await store.dead_list(None, None, 1000):
        await store.dead_delete([letter.id for letter in letters])
    assert await store.retire(janitor.id)
    store.time_shift_s += 3 * HOUR
    await store.housekeep()
    assert await store.leases() == {}
    stats = await store.stats()
    assert stats.running == 0
    assert [queue for queue in stats.queues if queue.ready or queue.delayed or queue.dead] == []


class LostReplies(WaitsThenClaims):
    """A store whose every reply is lost the first time: the caller sees StoreUnavailable and repeats the call.

    Returns what the repeat returned; the reply that got lost must have been the same. Three admin calls report what they
    themselves changed: their repeat must say that nothing was left to do, and the first reply is returned.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self.url = store.url

    @property
    def time_shift_s(self) -> float:
        return self._store.time_shift_s

    @time_shift_s.setter
    def time_shift_s(self, shift_s: float) -> None:
        self._store.time_shift_s = shift_s

    async def open(self) -> list[str]:
        return await self._twice(self._store.open)

    async def close(self) -> None:
        await self._twice(self._store.close)

    def clone(self) -> Store:
        return LostReplies(self._store.clone())

    async def push(self, producer: str, seq: int, acked: int, entries: Sequence[Entry]) -> None:
        await self._twice(lambda: self._store.push(producer, seq, acked, entries))

    async def register(self, worker: str) -> None:
        await self._twice(lambda: self._store.register(worker))

    async def exchange(
        self, worker: str, n: int, settlements: Sequence[Settlement], queues: Sequence[str], limit: int
    ) -> Exchanged:
        first, again = await self._both(lambda: self._store.exchange(worker, n, settlements, queues, limit))
        assert (again.kept, again.jobs) == (first.kept, first.jobs)
        return again

    async def wait(self, queues: Sequence[str], timeout_s: float) -> bool:
        return await self._store.wait(queues, timeout_s)  # changes nothing, so a lost reply only costs its time

    async def renew(self, lease: str) -> bool:
        return await self._twice(lambda: self._store.renew(lease))

    async def leases(self) -> dict[str, int]:
        return await self._twice(self._store.leases)

    async def workers(self, lease: str) -> dict[str, list[int]]:
        return await self._twice(lambda: self._store.workers(lease))

    async def adopt(self, into: str, n: int, worker: str, claims: Sequence[int] | None, limit: int) -> Adopted:
        return await self._twice(lambda: self._store.adopt(into, n, worker, claims, limit))

    async def retire(self, worker: str) -> bool:
        return await self._twice(lambda: self._store.retire(worker))

    async def housekeep(self) -> None:
        await self._twice(self._store.housekeep)

    async def stats(self) -> Stats:
        return await self._twice(self._store.stats)

    async def peek(self, queue: str, limit: int) -> list[bytes]:
        return await self._twice(lambda: self._store.peek(queue, limit))

    async def dead_list(self, queue: str | None, before: tuple[float, bytes] | None, limit: int) -> list[DeadLetter]:
        return await self._twice(lambda: self._store.dead_list(queue, before, limit))

    async def dead_get(self, id: bytes) -> DeadLetter | None:
        return await self._twice(lambda: self._store.dead_get(id))

    async def dead_requeue(self, entries: Sequence[Entry]) -> list[bool]:
        first, again = await self._both(lambda: self._store.dead_requeue(entries))
        assert not any(again)
        return first

    async def dead_delete(self, ids: Sequence[bytes]) -> list[bool]:
        first, again = await self._both(lambda: self._store.dead_delete(ids))
        assert not any(again)
        return first

    async def purge(self, queue: str) -> int:
        first, again = await self._both(lambda: self._store.purge(queue))
        assert again == 0
        return first

    async def migrate(self) -> list[str]:
        first, again = await self._both(self._store.migrate)
        assert again == []
        return first

    async def _twice(self, call: Callable[[], Awaitable[T]]) -> T:
        first, again = await self._both(call)
        assert again == first
        return again

    async def _both(self, call: Callable[[], Awaitable[T]]) -> tuple[T, T]:
        try:
            first = await call()
        except BackendError:  # a refusal is a reply too, and gets lost like any other
            await call()
            raise AssertionError("a call that was refused was done when it was repeated") from None
        return first, await call()


@asynccontextmanager
async def closing(store: Store) -> AsyncIterator[Store]:
    try:
        yield store
    finally:
        await store.close()
