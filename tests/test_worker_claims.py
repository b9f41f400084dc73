"""Claims are split for slow jobs, and no worker takes what it cannot start soon."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from fastjobs import JobQueue
from fastjobs import claims as claims_module
from fastjobs.slots import Word
from tests.faults import FaultyBackend
from tests.working import at_work, counts, dead_jobs, happens, left, until


async def test_a_slow_job_does_not_hold_back_the_settling_of_its_neighbours(store: FaultyBackend, jobs: JobQueue) -> None:
    go = asyncio.Event()

    @jobs.job
    async def work(slow: bool) -> None:
        if slow:
            await go.wait()

    await jobs.enqueue_many(work.prepare(number == 3) for number in range(10))
    async with at_work(jobs, store) as crew:
        await until(lambda: crew.count(Word.DONE) == 9)
        began = time.monotonic()

        async def only_the_slow_one() -> bool:
            return await left(store) == 1

        await store.until(only_the_slow_one)
        assert time.monotonic() - began < 2.0
        assert len(crew.slot.open_claims() or ()) == 1
        go.set()
        await store.until(lambda: crew.count(Word.DONE) == 10)
    assert await left(store) == 0


async def test_a_claim_is_split_as_often_as_its_jobs_ask_for_it(
    store: FaultyBackend, jobs: JobQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Jobs of one claim that end one by one, long apart, are settled one by one, and each exactly once."""
    monkeypatch.setattr(claims_module, "SETTLE_AFTER_S", 0.01)
    gates = [asyncio.Event() for _ in range(8)]
    ended: list[int] = []

    @jobs.job(max_attempts=1)
    async def work(number: int) -> None:
        await gates[number].wait()
        ended.append(number)
        if number % 3 == 0:
            raise ValueError(number)

    await jobs.enqueue_many(work.prepare(number) for number in range(8))
    async with at_work(jobs, store, concurrency=8) as crew:
        await until(lambda: crew.slot.words[Word.CLAIMED] == 8 and len(crew.slot.started()) == 8)
        for settled, number in enumerate((5, 0, 7, 2, 3, 6, 1, 4), 1):
            gates[number].set()

            async def one_fewer() -> bool:
                return await left(store) == 8 - settled  # noqa: B023

            await store.until(one_fewer)
    assert ended == [5, 0, 7, 2, 3, 6, 1, 4]
    assert sorted(job.payload for job in await dead_jobs(store)) == [b'{"number":%d}' % number for number in (0, 3, 6)]


async def test_ready_jobs_of_a_split_claim_still_run_once_each(
    store: FaultyBackend, jobs: JobQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims_module, "SETTLE_AFTER_S", 0.001)
    ran: list[int] = []

    @jobs.job
    async def work(number: int) -> None:
        await asyncio.sleep(0.002)
        ran.append(number)

    await jobs.enqueue_many(work.prepare(number) for number in range(400))
    async with at_work(jobs, store, concurrency=3) as crew:
        await store.until(lambda: crew.count(Word.DONE) == 400)
    assert sorted(ran) == list(range(400))
    assert any(settlement.unfinished for call in store.named("exchange") for settlement in call.args[2])
    assert await left(store) == 0


async def test_a_split_whose_reply_is_lost_is_repeated_and_nothing_runs_twice(
    store: FaultyBackend, jobs: JobQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims_module, "SETTLE_AFTER_S", 0.001)
    for skip in range(0, 60, 3):
        store.fail("exchange", skip=skip and 2, lose_reply=True)
    ran: list[int] = []

    @jobs.job
    async def work(number: int) -> None:
        await asyncio.sleep(0.002)
        ran.append(number)

    await jobs.enqueue_many(work.prepare(number) for number in range(100))
    async with at_work(jobs, store, concurrency=5) as crew:
        await store.until(lambda: crew.count(Word.DONE) == 100)
    assert sorted(ran) == list(range(100))
    assert await left(store) == 0


async def test_a_worker_of_jobs_that_take_long_claims_only_what_it_can_start(store: FaultyBackend, jobs: JobQueue) -> None:
    started: list[int] = []
    go = asyncio.Event()

    @jobs.job
    async def work(number: int) -> None:
        started.append(number)
        await go.wait()

    await jobs.enqueue_many(work.prepare(number) for number in range(100))
    async with at_work(jobs, store, concurrency=10) as one:
        await until(lambda: len(started) == 10)
        async with at_work(jobs, store, concurrency=10) as other:
            await until(lambda: len(started) == 20)
            assert (one.count(Word.CLAIMED), other.count(Word.CLAIMED)) == (10, 10)
            assert (await counts(store)).ready == 80
            go.set()
            await store.until(lambda: one.count(Word.DONE) + other.count(Word.DONE) == 100)


async def test_jobs_that_became_slow_go_back_for_others_to_run(store: FaultyBackend, jobs: JobQueue) -> None:
    """A worker that was fast until now may hold more than it can start: it gives that back."""
    started: list[int] = []
    go = asyncio.Event()

    @jobs.job
    async def work(number: int) -> None:
        if number < 2_000:
            return
        started.append(number)
        await go.wait()

    await jobs.enqueue_many(work.prepare(number) for number in range(2_020))
    async with at_work(jobs, store, concurrency=10) as one:
        await until(lambda: len(started) == 10)
        async with at_work(jobs, store, concurrency=10) as other:
            await until(lambda: len(started) == 20)
            go.set()
            await store.until(lambda: one.count(Word.DONE) + other.count(Word.DONE) == 2_020)
    assert len(set(started)) == len(started) == 20


async def test_a_worker_whose_jobs_hold_the_loop_leaves_work_for_others(store: FaultyBackend, jobs: JobQueue) -> None:
    """With handlers that block for 2 ms, a second worker finds work: 10 are held, not a whole batch."""

    @jobs.job
    async def work() -> None:
        time.sleep(0.002)

    await jobs.enqueue_many(work.prepare() for _ in range(300))
    async with at_work(jobs, store, concurrency=100) as crew:
        await store.until(lambda: crew.count(Word.DONE) >= 60)
        held = [crew.count(Word.CLAIMED) - crew.count(Word.DONE)]

        def look() -> bool:
            held.append(crew.count(Word.CLAIMED) - crew.count(Word.DONE))
            return crew.count(Word.DONE) == 300

        await store.until(look)
    assert max(held) <= 40


async def test_two_workers_in_threads_share_blocking_jobs_fairly(store: FaultyBackend, jobs: JobQueue) -> None:
    ran: dict[str, int] = {}

    @jobs.job
    async def work() -> None:
        time.sleep(0.002)
        name = threading.current_thread().name
        ran[name] = ran.get(name, 0) + 1

    await jobs.enqueue_many(work.prepare() for _ in range(200))

    def serve() -> None:
        async def main() -> None:
            async with at_work(jobs, FaultyBackend(store._store.clone()), concurrency=100):
                await until(lambda: sum(ran.values()) == 200, 20)

        asyncio.run(main())

    await asyncio.gather(asyncio.to_thread(serve), asyncio.to_thread(serve))
    assert sum(ran.values()) == 200
    assert len(ran) == 2
    assert min(ran.values()) > 40


async def test_a_claim_is_no_larger_than_the_batch(store: FaultyBackend, jobs: JobQueue) -> None:
    @jobs.job
    async def work() -> None: ...

    await jobs.enqueue_many(work.prepare() for _ in range(2_000))
    async with at_work(jobs, store, batch=25) as crew:
        await store.until(lambda: crew.count(Word.DONE) == 2_000)
    assert max(call.args[4] for call in store.named("exchange")) == 25


async def test_without_a_backlog_a_job_begins_before_the_store_is_asked_again(store: FaultyBackend, jobs: JobQueue) -> None:
    """The next call would cost it a quarter of a millisecond."""
    asked: list[int] = []

    @jobs.job
    async def work() -> None:
        asked.append(len(store.named("exchange")))

    await work.enqueue()
    async with at_work(jobs, store) as crew:
        await store.until(lambda: crew.count(Word.DONE) == 1)
    assert asked == [1]


async def test_an_idle_worker_asks_the_store_rarely(store: FaultyBackend, jobs: JobQueue) -> None:
    @jobs.job
    async def work() -> None: ...

    await work.enqueue()
    async with at_work(jobs, store) as crew:
        await store.until(lambda: crew.count(Word.DONE) == 1)
        await store.until(lambda: len(store.named("wait")) >= 2)
        before = len(store.calls)
        await store.until(lambda: len(store.named("wait")) >= 3)
        assert len(store.calls) - before <= 3


async def test_a_full_worker_asks_the_store_for_nothing(store: FaultyBackend, jobs: JobQueue) -> None:
    started, go = asyncio.Event(), asyncio.Event()
    count = 0

    @jobs.job
    async def work() -> None:
        nonlocal count
        count += 1
        if count == 4:
            started.set()
        await go.wait()

    await jobs.enqueue_many(work.prepare() for _ in range(10))
    async with at_work(jobs, store, concurrency=4) as crew:
        await happens(started)
        for _ in range(20):
            await asyncio.sleep(0)
        before = len(store.calls)
        for _ in range(500):
            await asyncio.sleep(0)
        assert len(store.calls) == before
        go.set()
        await store.until(lambda: crew.count(Word.DONE) == 10)
