"""A worker told to stop finishes what runs, gives back what does not, and loses nothing."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from fastjobs import JobQueue
from fastjobs import worker as worker_module
from fastjobs.envelope import decode_job
from fastjobs.errors import WorkerGone
from fastjobs.slots import State, Word
from tests.faults import FaultyBackend
from tests.working import at_work, counts, dead_jobs, happens, left, soon, until


async def ready_numbers(store: FaultyBackend) -> list[int]:
    """The numbers of the ready jobs, in the order of a claim."""
    return [int(decode_job(envelope).payload[len(b'{"number":') : -1]) for envelope in await store.peek("default", 10_000)]


async def test_what_runs_is_finished_and_what_has_not_started_goes_back_to_the_head(
    store: FaultyBackend, jobs: JobQueue
) -> None:
    started: list[int] = []
    go = asyncio.Event()

    @jobs.job
    async def work(number: int) -> None:
        if number < 0:
            return
        started.append(number)
        await go.wait()

    await jobs.enqueue_many(work.prepare(-1) for _ in range(500))  # so that it holds more than it runs
    await jobs.enqueue_many(work.prepare(number) for number in range(600))
    async with at_work(jobs, store, concurrency=3) as crew:
        await until(lambda: len(started) == 3)
        crew.worker.drain()
        await until(lambda: crew.count(Word.RELEASED) > 0)
        assert not crew.task.done()
        go.set()
        await soon(crew.task)
    assert started == [0, 1, 2]
    assert await ready_numbers(store) == list(range(3, 600))
    assert await left(store) == 597
    assert crew.worker.unfinished == 0
    assert await store.leases() == {}


async def test_released_jobs_keep_their_attempts_and_history(store: FaultyBackend, jobs: JobQueue) -> None:
    started = asyncio.Event()

    @jobs.job
    async def work(number: int) -> None:
        started.set()
        await asyncio.Event().wait()

    await jobs.enqueue_many(work.prepare(number) for number in range(5))
    before = await store.peek("default", 10)
    async with at_work(jobs, store, concurrency=2, grace=0) as crew:
        await happens(started)
        await crew.drained()
    assert await store.peek("default", 10) == before


async def test_nothing_is_claimed_once_it_drains(store: FaultyBackend, jobs: JobQueue) -> None:
    started, go = asyncio.Event(), asyncio.Event()

    @jobs.job
    async def work(number: int) -> None:
        started.set()
        await go.wait()

    await work.enqueue(0)
    async with at_work(jobs, store) as crew:
        await happens(started)
        crew.worker.drain()
        await jobs.enqueue_many(work.prepare(number) for number in range(1, 5))
        claimed = len([call for call in store.named("exchange") if call.args[4]])
        go.set()
        await soon(crew.task)
    assert len([call for call in store.named("exchange") if call.args[4]]) == claimed
    assert (await counts(store)).ready == 4


@pytest.mark.parametrize("kind", ["async", "sync", "isolated"])
async def test_what_exceeds_the_grace_time_is_stopped_and_given_back_without_an_attempt(
    store: FaultyBackend, jobs: JobQueue, kind: str
) -> None:
    started, stopped = threading.Event(), threading.Event()

    if kind == "sync":

        @jobs.job
        def work(number: int) -> None:
            started.set()
            try:
                while True:
                    time.sleep(0.001)
            finally:
                stopped.set()
    else:

        @jobs.job(isolate=kind == "isolated")
        async def work(number: int) -> None:
            started.set()
            try:
                await asyncio.Event().wait()
            finally:
                stopped.set()

    await work.enqueue(0)
    async with at_work(jobs, store, grace=0.05) as crew:
        await until(started.is_set)
        await crew.drained()
        assert stopped.is_set()
        assert (crew.count(Word.RELEASED), crew.count(Word.DONE)) == (1, 0)
    (envelope,) = await store.peek("default", 10)
    job = decode_job(envelope)
    assert (job.attempts, job.losses, job.history) == (0, 0, None)
    assert await store.leases() == {}


async def test_a_run_that_ends_by_itself_when_it_is_stopped_is_done(store: FaultyBackend, jobs: JobQueue) -> None:
    started = asyncio.Event()

    @jobs.job
    async def work(number: int) -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return  # it saved what it had

    await work.enqueue(0)
    async with at_work(jobs, store, grace=0) as crew:
        await happens(started)
        await crew.drained()
    assert await left(store) == 0


async def test_a_run_that_will_not_stop_is_left_to_maintenance(
    store: FaultyBackend, jobs: JobQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "STOP_S", 0.05)
    started, go = threading.Event(), threading.Event()

    @jobs.job
    def stubborn(number: int) -> None:
        started.set()
        while not go.is_set():
            try:
                go.wait(10)
            except BaseException:
                continue

    @jobs.job
    async def quick(number: int) -> None: ...

    await stubborn.enqueue(0)
    await jobs.enqueue_many(quick.prepare(number) for number in range(1, 4))
    async with at_work(jobs, store, grace=0) as crew:
        await until(lambda: started.is_set() and crew.count(Word.DONE) == 3)
        await crew.drained()
        assert crew.worker.unfinished == 1
        # It stays leased, under a claim that the slot names; its neighbours are settled.
        assert len(crew.slot.started()) == 1
        held = (await store.workers(crew.worker._lease))[crew.worker._id]
        assert crew.slot.open_claims() == set(held)
        assert await left(store) == 1
        go.set()
        await until(lambda: crew.slot.started() == {})


async def test_a_second_drain_ends_the_grace_time(store: FaultyBackend, jobs: JobQueue) -> None:
    started = asyncio.Event()

    @jobs.job
    async def work(number: int) -> None:
        started.set()
        await asyncio.Event().wait()

    await work.enqueue(0)
    async with at_work(jobs, store, grace=3600) as crew:
        await happens(started)
        crew.worker.drain()
        for _ in range(10):
            await asyncio.sleep(0)
        assert not crew.task.done()
        await crew.drained()
    assert await ready_numbers(store) == [0]


async def test_cancelling_run_drains_and_raises_the_cancellation_again(store: FaultyBackend, jobs: JobQueue) -> None:
    started, go = asyncio.Event(), asyncio.Event()

    @jobs.job
    async def work(number: int) -> None:
        started.set()
        await go.wait()

    await work.enqueue(0)
    async with at_work(jobs, store) as crew:
        await happens(started)
        crew.task.cancel()
        await until(lambda: crew.slot.state is State.DRAINING)
        assert not crew.task.done()
        go.set()
        with pytest.raises(asyncio.CancelledError):
            await soon(crew.task)
    assert await left(store) == 0


async def test_a_second_cancellation_ends_the_grace_time(store: FaultyBackend, jobs: JobQueue) -> None:
    started = asyncio.Event()

    @jobs.job
    async def work(number: int) -> None:
        started.set()
        await asyncio.Event().wait()

    await work.enqueue(0)
    async with at_work(jobs, store, grace=3600) as crew:
        await happens(started)
        crew.task.cancel()
        await until(lambda: crew.slot.state is State.DRAINING)
        crew.task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await soon(crew.task)
    assert await ready_numbers(store) == [0]


async def test_a_handler_that_fails_with_a_cancelled_error_of_its_own_while_draining_has_failed(
    store: FaultyBackend, jobs: JobQueue
) -> None:
    started, go = asyncio.Event(), asyncio.Event()

    @jobs.job(max_attempts=1)
    async def work(number: int) -> None:
        started.set()
        await go.wait()
        raise asyncio.CancelledError("its own")

    await work.enqueue(0)
    async with at_work(jobs, store) as crew:
        await happens(started)
        crew.task.cancel()
        await until(lambda: crew.slot.state is State.DRAINING)
        go.set()
        await asyncio.wait([crew.task])
    assert len(await dead_jobs(store)) == 1


def test_a_loop_that_is_torn_down_gives_everything_back(store: FaultyBackend, jobs: JobQueue) -> None:
    """`asyncio.run` cancels all tasks at once when its main function returns; no one waits for a grace time then."""
    left_tasks: list[str] = []

    async def main() -> None:
        started = asyncio.Event()

        @jobs.job
        async def work(number: int) -> None:
            started.set()
            await asyncio.Event().wait()

        await jobs.enqueue_many(work.prepare(number) for number in range(30))
        worker = at_work(jobs, store, grace=3600)
        crew = await worker.__aenter__()
        await happens(started)
        left_tasks.append(repr(crew.task))

    loop_errors: list[object] = []
    with asyncio.Runner() as runner:
        runner.get_loop().set_exception_handler(lambda _, context: loop_errors.append(context))
        runner.run(main())
    assert loop_errors == []
    assert asyncio.run(ready_numbers(store)) == list(range(30))
    assert asyncio.run(store.leases()) == {}


async def test_a_worker_told_to_stop_before_it_began_stops(store: FaultyBackend, jobs: JobQueue) -> None:
    @jobs.job
    async def work(number: int) -> None: ...

    await work.enqueue(0)
    async with at_work(jobs, store) as crew:
        await crew.drained()
    assert (await counts(store)).ready == 1
    assert await store.leases() == {}


async def test_a_worker_that_is_idle_stops_at_once(store: FaultyBackend, jobs: JobQueue) -> None:
    @jobs.job
    async def work(number: int) -> None: ...

    async with at_work(jobs, store) as crew:
        await store.until(lambda: store.pending > 0)
        began = time.monotonic()
        await crew.drained()
        assert time.monotonic() - began < 0.5


async def test_what_ended_well_is_settled_even_if_the_store_loses_the_reply_at_the_end(
    store: FaultyBackend, jobs: JobQueue
) -> None:
    started, go = asyncio.Event(), asyncio.Event()

    @jobs.job
    async def work(number: int) -> None:
        started.set()
        await go.wait()

    await jobs.enqueue_many(work.prepare(number) for number in range(5))
    async with at_work(jobs, store) as crew:
        await happens(started)
        crew.worker.drain()
        store.fail("exchange", lose_reply=True, times=2)
        go.set()
        await soon(crew.task)
    assert await left(store) == 0
    assert await store.leases() == {}


async def test_a_drain_with_the_store_away_stops_what_runs_at_the_end_of_the_grace_time(
    store: FaultyBackend, jobs: JobQueue
) -> None:
    """Nobody can be told, so everything stays leased, but no code of a job runs on in the background."""
    started, stopped = asyncio.Event(), asyncio.Event()
    ended: list[int] = []

    @jobs.job
    async def work(number: int) -> None:
        if number:
            ended.append(number)
            return
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()

    await work.enqueue(0)
    async with at_work(jobs, store, grace=0.1) as crew:
        await happens(started)
        await work.enqueue(1)
        await until(lambda: len(ended) == 1)
        store.down()
        await crew.drained()
        assert stopped.is_set()
    store.up()
    assert (await store.stats()).running >= 1
    assert list(await store.workers(crew.worker._lease)) == [crew.worker._id]


async def test_a_worker_in_the_middle_of_an_outage_stops_what_runs_when_it_is_told_to_stop(
    store: FaultyBackend, jobs: JobQueue
) -> None:
    started, stopped = asyncio.Event(), asyncio.Event()

    @jobs.job
    async def work(number: int) -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()

    @jobs.job
    async def quick(number: int) -> None: ...

    await work.enqueue(0)
    async with at_work(jobs, store, grace=0.1) as crew:
        await happens(started)
        store.down()
        await until(lambda: len(store.named("exchange")) + len(store.named("wait")) > 4)
        await crew.drained()
        assert stopped.is_set()


async def test_a_worker_given_up_while_it_drains_still_waits_for_what_runs(store: FaultyBackend, jobs: JobQueue) -> None:
    started: list[int] = []
    ended: list[int] = []
    gates = [asyncio.Event(), asyncio.Event()]

    @jobs.job
    async def work(number: int) -> None:
        started.append(number)
        await gates[number].wait()
        ended.append(number)

    await jobs.enqueue_many(work.prepare(number) for number in range(2))
    async with at_work(jobs, store) as crew:
        await until(lambda: len(started) == 2)
        crew.worker.drain()
        fault = store.fail("exchange", times=1, error=WorkerGone("given up"))
        gates[0].set()
        await happens(fault.reached)
        assert not crew.task.done()
        gates[1].set()
        await soon(crew.task)
    assert ended == [0, 1]


@pytest.mark.parametrize("lost", ["a claim", "a settlement"])
@pytest.mark.parametrize("lose_reply", [False, True])
async def test_a_cancellation_while_it_waits_for_the_store_to_come_back_leaves_nothing_leased(
    store: FaultyBackend, jobs: JobQueue, lost: str, lose_reply: bool
) -> None:
    """When the loop ends all tasks are cancelled: the call that was about to be repeated is made once more."""
    ran: list[int] = []

    @jobs.job
    async def work(number: int) -> None:
        ran.append(number)

    def hit(worker: str, n: int, settlements: list[object], queues: list[str], limit: int) -> bool:
        return bool(settlements) if lost == "a settlement" else limit > 0

    away = store.fail("exchange", lose_reply=lose_reply, when=hit)
    await jobs.enqueue_many(work.prepare(number) for number in range(3))
    async with at_work(jobs, store) as crew:
        await happens(away.reached)
        (feeder,) = [task for task in asyncio.all_tasks() if task.get_name() == "fastjobs-feed"]
        await until(lambda: store.pending == 0)
        crew.task.cancel()
        feeder.cancel()
        await asyncio.wait([crew.task])
    assert len(ran) == (3 if lost == "a settlement" else 0)
    assert (await store.stats()).running == 0
    assert await left(store) == 3 - len(ran)
    assert await store.leases() == {}


async def test_a_stubborn_run_that_ends_after_its_worker_leaves_no_task_behind(
    store: FaultyBackend, jobs: JobQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "STOP_S", 0.02)
    tasks = asyncio.all_tasks()
    started, go = asyncio.Event(), asyncio.Event()
    threaded_started, release = threading.Event(), threading.Event()

    @jobs.job
    async def stubborn() -> None:
        started.set()
        while not go.is_set():
            try:
                await go.wait()
            except asyncio.CancelledError:
                continue

    @jobs.job
    def threaded() -> None:
        threaded_started.set()
        release.wait()  # a call that no exception from outside gets into

    await stubborn.enqueue()
    await threaded.enqueue()
    try:
        async with at_work(jobs, store, grace=0) as crew:
            await happens(started)
            await until(threaded_started.is_set)
            await crew.drained()
            assert crew.worker.unfinished == 2
    finally:
        go.set()
        release.set()
    await until(lambda: asyncio.all_tasks() <= tasks and crew.slot.started() == {})
