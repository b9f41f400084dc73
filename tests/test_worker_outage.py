"""The store goes away and comes back, loses replies, or has forgotten the worker."""

from __future__ import annotations

import asyncio
import random

import pytest

from fastjobs import JobQueue
from fastjobs.errors import BackendError, SchemaError, StoreUnavailable
from fastjobs.model import Settlement
from fastjobs.slots import Word
from tests.faults import AWAY, FaultyBackend
from tests.working import at_work, counts, happens, left, until


async def test_an_outage_loses_no_job_and_runs_none_twice(store: FaultyBackend, jobs: JobQueue) -> None:
    ran: list[int] = []

    @jobs.job
    async def work(number: int) -> None:
        ran.append(number)
        await asyncio.sleep(0)

    await jobs.enqueue_many(work.prepare(number) for number in range(2_000))
    async with at_work(jobs, store) as crew:
        for stage in (100, 700, 1_500):
            await until(lambda: len(ran) >= stage)  # noqa: B023
            store.down()
            failed = len(store.calls)
            await until(lambda: len(store.calls) >= failed + 3)  # noqa: B023
            store.up()
        await store.until(lambda: crew.count(Word.DONE) == 2_000)
    assert sorted(ran) == list(range(2_000))
    assert await left(store) == 0


async def test_what_runs_is_finished_and_what_was_claimed_is_started_during_an_outage(
    store: FaultyBackend, jobs: JobQueue
) -> None:
    ran: list[int] = []
    go = asyncio.Event()

    @jobs.job
    async def work(number: int) -> None:
        await go.wait()
        ran.append(number)

    await jobs.enqueue_many(work.prepare(number) for number in range(10))
    async with at_work(jobs, store, concurrency=10) as crew:
        await until(lambda: len(crew.slot.started()) == 10)
        store.down()
        go.set()
        await until(lambda: len(ran) == 10)
        store.up()

        async def nothing_left() -> bool:
            return await left(store) == 0

        await store.until(nothing_left)
    assert sorted(ran) == list(range(10))


async def test_a_worker_does_not_spin_while_the_store_is_away(store: FaultyBackend, jobs: JobQueue) -> None:
    @jobs.job
    async def work() -> None: ...

    async with at_work(jobs, store) as crew:
        await store.until(lambda: bool(store.named("wait")))
        store.down()
        before = len(store.calls)
        loop = asyncio.get_running_loop()
        end = loop.time() + 1.0
        await until(lambda: loop.time() > end)
        assert len(store.calls) - before <= 15
        assert not crew.task.done()
        store.up()
        await work.enqueue()
        await store.until(lambda: crew.count(Word.DONE) == 1)


async def test_cut_off_for_longer_than_its_lease_a_worker_starts_nothing_more(store: FaultyBackend, jobs: JobQueue) -> None:
    """Others may have its jobs by then. What it held goes on when the store still knows it."""
    ran: list[int] = []

    @jobs.job
    async def work(number: int) -> None:
        ran.append(number)
        await asyncio.sleep(0.05)

    await jobs.enqueue_many(work.prepare(number) for number in range(40))
    async with at_work(jobs, store, concurrency=1, lease_ttl=2.001) as crew:
        await until(lambda: len(ran) == 4 and crew.worker._runners.busy == 1)
        crew.worker._pace.start_rate = crew.worker._pace.end_rate = 10_000.0
        await until(lambda: len(crew.worker._runners.ready) > 5)
        store.down()
        await until(lambda: crew.worker._parked is not None)
        at_parking = len(ran)
        failed = len(store.calls)
        await until(lambda: len(store.calls) >= failed + 2)
        assert len(ran) <= at_parking + 1
        store.up()
        await store.until(lambda: crew.count(Word.DONE) == 40)
    assert sorted(ran) == list(range(40))


async def give_up(store: FaultyBackend, worker: str) -> list[bytes]:
    """What maintenance does when a lease has ended: others take the worker's jobs."""
    inner = store._store
    await inner.register("rescue.1")
    n, jobs, more = 0, [], True
    while more:
        n += 1
        adopted = await inner.adopt("rescue.1", n, worker, None, 1000)
        jobs += adopted.jobs
        more = adopted.more
    await inner.exchange("rescue.1", n + 1, [Settlement(claim) for claim in range(1, n + 1)], (), 0)
    assert await inner.retire("rescue.1")
    return jobs


async def test_a_worker_that_was_given_up_starts_over_under_a_new_id(store: FaultyBackend, jobs: JobQueue) -> None:
    ran: list[int] = []

    @jobs.job
    async def work(number: int) -> None:
        ran.append(number)

    async with at_work(jobs, store) as crew:
        await store.until(lambda: bool(store.named("wait")))
        first = crew.worker._id
        await give_up(store, first)
        await jobs.enqueue_many(work.prepare(number) for number in range(10))
        await store.until(lambda: crew.count(Word.DONE) == 10)
        assert crew.worker._id != first
        assert crew.count(Word.INCARNATION) == 1
        assert list(await store.workers(crew.worker._lease)) == [crew.worker._id]
    assert sorted(ran) == list(range(10))
    assert await store.leases() == {}


async def test_jobs_that_others_took_are_not_settled_and_those_not_started_are_not_run(
    store: FaultyBackend, jobs: JobQueue
) -> None:
    ran: list[int] = []
    go = asyncio.Event()

    @jobs.job
    async def work(number: int) -> None:
        if number >= 0:
            ran.append(number)
            await go.wait()

    await jobs.enqueue_many(work.prepare(-1) for _ in range(500))
    await jobs.enqueue_many(work.prepare(number) for number in range(100))
    async with at_work(jobs, store, concurrency=5) as crew:
        await until(lambda: len(ran) == 5)
        taken = await give_up(store, crew.worker._id)
        assert len(taken) > 5
        await until(lambda: crew.count(Word.INCARNATION) == 1)
        go.set()

        async def nothing_left() -> bool:
            return await left(store) == 0

        await store.until(nothing_left)
    # Five had started; of the others, exactly those still in the store when the worker was given up were run by it.
    assert len(ran) == len(set(ran))
    assert len(ran) == 5 + 100 - len([job for job in taken if b'"number":-1' not in job])


async def test_jobs_held_back_in_an_outage_are_not_run_when_others_took_them_meanwhile(
    store: FaultyBackend, jobs: JobQueue
) -> None:
    """The lease ended while the store was out of reach: the worker learns of it at its first answer."""
    ran: list[int] = []

    @jobs.job
    async def work(number: int) -> None:
        ran.append(number)
        await asyncio.sleep(0.05)

    await jobs.enqueue_many(work.prepare(number) for number in range(40))
    async with at_work(jobs, store, concurrency=1, lease_ttl=2.001) as crew:
        await until(lambda: len(ran) == 4 and crew.worker._runners.busy == 1)
        crew.worker._pace.start_rate = crew.worker._pace.end_rate = 10_000.0
        await until(lambda: len(crew.worker._runners.ready) > 5)
        store.down()
        await until(lambda: crew.worker._parked is not None)
        started_before = set(ran)
        taken = await give_up(store, crew.worker._id)
        assert len(taken) > 5
        store.up()
        await until(lambda: crew.count(Word.INCARNATION) == 1)

        async def nothing_left() -> bool:
            return await left(store) == 0

        await store.until(nothing_left)
        await until(lambda: crew.worker._runners.busy == 0)
    elsewhere = {int(envelope.split(b'"number":')[1].split(b"}")[0]) for envelope in taken}
    assert not (set(ran) - started_before) & elsewhere


async def test_a_claim_that_others_took_alone_is_not_settled_and_the_worker_goes_on(
    store: FaultyBackend, jobs: JobQueue, caplog: pytest.LogCaptureFixture
) -> None:
    started, go = asyncio.Event(), asyncio.Event()

    @jobs.job
    async def work() -> None:
        started.set()
        await go.wait()

    await work.enqueue()
    async with at_work(jobs, store) as crew:
        await happens(started)
        inner = store._store
        await inner.register("rescue.1")
        claims = sorted(crew.slot.open_claims() or ())
        assert len((await inner.adopt("rescue.1", 1, crew.worker._id, claims, 10)).jobs) == 1
        go.set()
        await until(lambda: "taken over by others" in caplog.text)
        await inner.exchange("rescue.1", 2, [Settlement(1)], (), 0)
        assert await inner.retire("rescue.1")
        await work.enqueue()
        await store.until(lambda: crew.count(Word.DONE) == 1)  # what the others settle is theirs to count
    assert await left(store) == 0


async def test_a_store_that_is_away_at_the_start_is_waited_for(store: FaultyBackend, jobs: JobQueue) -> None:
    ran = asyncio.Event()

    @jobs.job
    async def work() -> None:
        ran.set()

    await work.enqueue()
    store.fail("open", times=2)
    store.fail("register", times=2)
    async with at_work(jobs, store):
        await happens(ran)


@pytest.mark.parametrize("error", [SchemaError("too new"), BackendError("no such command")])
async def test_a_store_that_refuses_the_worker_at_the_start_ends_it(
    store: FaultyBackend, jobs: JobQueue, error: BackendError
) -> None:
    @jobs.job
    async def work() -> None: ...

    store.fail("open", error=error)
    with pytest.raises(type(error), match=str(error)):
        async with at_work(jobs, store) as crew:
            await asyncio.wait([crew.task])


async def test_a_store_that_never_came_does_not_keep_a_worker_that_is_told_to_stop(
    store: FaultyBackend, jobs: JobQueue
) -> None:
    @jobs.job
    async def work() -> None: ...

    store.down()
    with pytest.raises(StoreUnavailable):
        async with at_work(jobs, store) as crew:
            await store.until(lambda: len(store.named("open")) > 1)
            crew.worker.drain()
            await asyncio.wait([crew.task], timeout=5)


async def test_a_refusal_that_passes_is_survived(store: FaultyBackend, jobs: JobQueue) -> None:
    """A Redis that is loading or read-only refuses; that is no reason to exit."""

    @jobs.job
    async def work() -> None: ...

    async with at_work(jobs, store) as crew:
        store.fail("exchange", times=3, error=BackendError("LOADING"))
        store.fail("wait", times=2, error=BackendError("LOADING"))
        await work.enqueue()
        await store.until(lambda: crew.count(Word.DONE) == 1)


async def test_a_call_that_hangs_holds_up_nothing_that_was_claimed(store: FaultyBackend, jobs: JobQueue) -> None:
    ran: list[int] = []

    @jobs.job
    async def work(number: int) -> None:
        await asyncio.sleep(0)
        ran.append(number)

    await jobs.enqueue_many(work.prepare(number) for number in range(10))
    hanging = store.hang("exchange", skip=1)
    async with at_work(jobs, store, concurrency=10) as crew:
        await until(lambda: len(ran) == 10)
        assert hanging.gate is not None
        hanging.gate.set()
        await store.until(lambda: crew.count(Word.DONE) == 10)
    assert await left(store) == 0


@pytest.mark.parametrize("seed", range(5))
async def test_faults_at_random_lose_nothing_and_run_nothing_twice(store: FaultyBackend, jobs: JobQueue, seed: int) -> None:
    rng = random.Random(seed)
    ran: list[int] = []

    @jobs.job
    async def work(number: int) -> None:
        for _ in range(rng.randrange(3)):
            await asyncio.sleep(rng.choice((0, 0, 0.001)))
        ran.append(number)

    for _ in range(15):
        store.fail(rng.choice(("exchange", "exchange", "wait")), skip=rng.randrange(3), lose_reply=rng.random() < 0.5)
    await jobs.enqueue_many(work.prepare(number) for number in range(300))
    async with at_work(jobs, store, concurrency=rng.choice((1, 3, 20)), batch=rng.choice((1, 7, 1000))) as crew:
        await store.until(lambda: crew.count(Word.DONE) == 300, 30)
    assert sorted(ran) == list(range(300))
    assert await left(store) == 0
    assert await store.leases() == {}


async def test_a_lost_reply_to_a_claim_gives_the_same_jobs_again(store: FaultyBackend, jobs: JobQueue) -> None:
    ran: list[int] = []

    @jobs.job
    async def work(number: int) -> None:
        ran.append(number)

    await jobs.enqueue_many(work.prepare(number) for number in range(5))
    store.fail("exchange", times=2, lose_reply=True)
    async with at_work(jobs, store, concurrency=5) as crew:
        await store.until(lambda: crew.count(Word.DONE) == 5)
    assert ran == [0, 1, 2, 3, 4]
    repeated = [call.args[1] for call in store.named("exchange")[:3]]
    assert repeated == [1, 1, 1]
    assert (await counts(store)).ready == 0
    assert AWAY.args
