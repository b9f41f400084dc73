"""A job that workers died of runs alone."""

from __future__ import annotations

import asyncio

import pytest

from fastjobs import JobQueue
from fastjobs.envelope import decode_job, encode_job
from fastjobs.model import Entry
from fastjobs.slots import Word
from tests.faults import FaultyBackend
from tests.working import at_work, happens, left, until


class Watch:
    """Which jobs were seen to run side by side."""

    def __init__(self) -> None:
        self.running: set[int] = set()
        self.ran: list[int] = []
        self.beside: dict[int, set[int]] = {}

    def enter(self, number: int) -> None:
        for other in self.running:
            self.beside.setdefault(other, set()).add(number)
        self.beside.setdefault(number, set()).update(self.running)
        self.running.add(number)

    def leave(self, number: int) -> None:
        self.running.discard(number)
        self.ran.append(number)


async def push_with_losses(store: FaultyBackend, jobs: JobQueue, losses: dict[int, int], count: int) -> None:
    """Jobs 0, 1, … of the handler `work`, some with losses."""
    entries = []
    for number in range(count):
        entry = jobs.prepare("work", {"number": number}).entry()
        job = decode_job(entry.envelope)
        job.losses = losses.get(number, 0)
        entries.append(Entry(entry.id, entry.queue, entry.priority, encode_job(job)))
    await store.push("p", 1, 1, entries)


@pytest.mark.parametrize("suspects", [{5}, {0}, {29}, {3, 4, 5}, {0, 10, 20, 29}, set(range(30))])
async def test_a_suspect_runs_with_nothing_beside_it(store: FaultyBackend, jobs: JobQueue, suspects: set[int]) -> None:
    watch, at_its_death = Watch(), {}

    @jobs.job
    async def work(number: int) -> None:
        watch.enter(number)
        at_its_death[number] = len(crew.slot.started())
        await asyncio.sleep(0.001)
        watch.leave(number)

    async with at_work(jobs, store) as crew:
        await store.until(lambda: bool(store.named("wait")))
        crew.slot.words[Word.FIRST_RUNNER] = 1  # of a runner that has not come to clear it: the last one to be woken
        await push_with_losses(store, jobs, dict.fromkeys(suspects, 2), 30)
        await store.until(lambda: crew.count(Word.DONE) == 30)
    assert {number: at_its_death[number] for number in suspects} == dict.fromkeys(suspects, 1), "a death would look shared"
    assert sorted(watch.ran) == list(range(30))
    assert {number: watch.beside[number] for number in suspects} == {key: set() for key in suspects}
    assert await left(store) == 0


async def test_a_job_with_one_loss_is_no_suspect(store: FaultyBackend, jobs: JobQueue) -> None:
    watch, all_in = Watch(), asyncio.Event()

    @jobs.job
    async def work(number: int) -> None:
        watch.enter(number)
        if len(watch.running) == 5:
            all_in.set()
        await all_in.wait()
        watch.leave(number)

    await push_with_losses(store, jobs, {2: 1}, 5)
    async with at_work(jobs, store) as crew:
        await store.until(lambda: crew.count(Word.DONE) == 5)


async def held_and_ready(store: FaultyBackend, held: int, ready: int) -> bool:
    """Whether so many jobs are claimed and so many ready."""
    stats = await store._store.stats()
    return stats.running == held and sum(queue.ready for queue in stats.queues) == ready


async def test_a_suspect_waits_for_what_runs_and_what_came_with_it_is_free_for_others(
    store: FaultyBackend, jobs: JobQueue
) -> None:
    watch, go, first_in = Watch(), asyncio.Event(), asyncio.Event()

    @jobs.job
    async def work(number: int) -> None:
        watch.enter(number)
        first_in.set()
        if number == 100:
            await go.wait()
        await asyncio.sleep(0)
        watch.leave(number)

    await work.enqueue(100)
    async with at_work(jobs, store) as one:
        await happens(first_in)
        await push_with_losses(store, jobs, {0: 3}, 6)
        # However many of the others came along with the suspect, they are free for other workers.
        await store.until(lambda: held_and_ready(store, 2, 5))
        assert watch.ran == []
        async with at_work(jobs, store) as other:
            await store.until(lambda: other.count(Word.DONE) == 5)
        assert 0 not in watch.ran
        go.set()
        await store.until(lambda: one.count(Word.DONE) == 2)
    assert watch.beside[0] == set()


async def test_a_worker_goes_on_as_ever_after_a_suspect(store: FaultyBackend, jobs: JobQueue) -> None:
    watch, many = Watch(), asyncio.Event()

    @jobs.job
    async def work(number: int) -> None:
        watch.enter(number)
        if number >= 100:
            if len(watch.running) == 8:
                many.set()
            await many.wait()
        watch.leave(number)

    await push_with_losses(store, jobs, {0: 2}, 1)
    async with at_work(jobs, store) as crew:
        await store.until(lambda: crew.count(Word.DONE) == 1)
        await jobs.enqueue_many(work.prepare(100 + number) for number in range(8))
        await store.until(lambda: crew.count(Word.DONE) == 9)


async def test_a_suspect_that_fails_is_retried_like_any_other(store: FaultyBackend, jobs: JobQueue) -> None:
    @jobs.job
    async def work(number: int) -> None:
        raise ValueError(number)

    await push_with_losses(store, jobs, {0: 2, 1: 2}, 3)
    async with at_work(jobs, store) as crew:
        await store.until(lambda: crew.count(Word.RETRIED) == 3)
    assert await left(store) == 3


async def test_a_worker_told_to_stop_gives_its_waiting_suspects_back(store: FaultyBackend, jobs: JobQueue) -> None:
    go, first_in = asyncio.Event(), asyncio.Event()

    @jobs.job
    async def work(number: int) -> None:
        first_in.set()
        await go.wait()

    await work.enqueue(100)
    async with at_work(jobs, store) as crew:
        await happens(first_in)
        await push_with_losses(store, jobs, {0: 2, 1: 2}, 4)
        await store.until(lambda: crew.count(Word.RELEASED) == 3)
        crew.worker.drain()
        await until(lambda: crew.count(Word.RELEASED) == 4)
        go.set()
        await asyncio.wait([crew.task])
    envelopes = await store.peek("default", 10)
    assert [decode_job(envelope).payload for envelope in envelopes] == [b'{"number":%d}' % number for number in range(4)]
    assert [decode_job(envelope).losses for envelope in envelopes] == [2, 2, 0, 0]
