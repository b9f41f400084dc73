"""Workers at work on a store of the tests, and what to look at while they are."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, NamedTuple

from fastjobs import JobQueue, WorkerOptions
from fastjobs.backends.base import Store
from fastjobs.backends.memory import MemoryBackend
from fastjobs.envelope import decode_job
from fastjobs.ids import fresh_name
from fastjobs.model import Job, QueueStats
from fastjobs.slots import Slot, Slots, Word
from fastjobs.worker import Worker
from tests.faults import FaultyBackend

SOON_S = 10.0
"""What a test waits for happens at once; a machine under load gets so long."""


class Crew(NamedTuple):
    """A worker at work."""

    worker: Worker
    slot: Slot
    task: asyncio.Task[None]

    def count(self, word: Word) -> int:
        return self.slot.words[word]

    async def drained(self) -> None:
        """Tell it to stop and wait until it has."""
        self.worker.drain()
        await soon(self.task)


def fresh_store() -> FaultyBackend:
    """An empty memory store that can be made to fail."""
    return FaultyBackend(MemoryBackend())


@contextlib.asynccontextmanager
async def at_work(jobs: JobQueue, store: Store, **options: Any) -> AsyncIterator[Crew]:
    """A worker of *jobs* on *store*. Drained at the end if it still works; what it raises is raised."""
    settings = WorkerOptions(**{"concurrency": 10, **options})
    slots = Slots.create(1, settings.concurrency)
    slot = slots.slots[0]
    slot.words[Word.NUMBER] = 1
    jobs.load()
    worker = Worker(store, jobs, settings, lease=fresh_name(), slot=slot)
    task = asyncio.create_task(worker.run())
    try:
        yield Crew(worker, slot, task)
    finally:
        if not task.done():
            worker.drain()
            await asyncio.wait([task], timeout=SOON_S)
            if not task.done():
                worker.drain()
                task.cancel()
                await asyncio.wait([task], timeout=SOON_S)
        if not task.done():
            raise AssertionError("the worker does not end")
        if not task.cancelled():
            task.result()


async def soon(what: Awaitable[Any]) -> Any:
    """The result of *what*; TimeoutError if it does not come."""
    async with asyncio.timeout(SOON_S):
        return await what


async def happens(event: asyncio.Event) -> None:
    await soon(event.wait())


async def until(true: Callable[[], bool], timeout_s: float = SOON_S) -> None:
    """Wait until *true*; for what makes no call to a store."""
    async with asyncio.timeout(timeout_s):
        while not true():
            await asyncio.sleep(0.001)


def beneath(store: Store) -> Store:
    """*store* without its faults: looking at it is no call that anybody waits for."""
    return store._store if isinstance(store, FaultyBackend) else store


async def counts(store: Store, queue: str = "default") -> QueueStats:
    """Counts of one queue, all zero if the store does not know it."""
    known = {found.queue: found for found in (await beneath(store).stats()).queues}
    return known.get(queue, QueueStats(queue, 0, 0, 0))


async def left(store: Store) -> int:
    """Jobs that the store still holds, dead ones apart."""
    stats = await beneath(store).stats()
    return stats.running + sum(queue.ready + queue.delayed for queue in stats.queues)


async def dead_jobs(store: Store) -> list[Job]:
    """The dead letters, decoded, oldest first."""
    return [decode_job(letter.envelope) for letter in reversed(await beneath(store).dead_list(None, None, 1000))]


async def stored(store: Store, queue: str = "default") -> list[Job]:
    """The ready jobs in the order of a claim."""
    return [decode_job(envelope) for envelope in await store.peek(queue, 1_000)]


def payload(job: Job) -> Any:
    return json.loads(job.payload)
