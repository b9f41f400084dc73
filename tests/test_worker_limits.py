"""Time limits: a run is stopped, and its job is judged only when its code has stopped."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from fastjobs import JobQueue, QueueOptions
from fastjobs import runners as runners_module
from fastjobs.slots import Word
from tests.faults import FaultyBackend
from tests.working import at_work, dead_jobs, happens, left, until


async def only_failure(store: FaultyBackend) -> tuple[str, str, str]:
    (dead,) = await dead_jobs(store)
    assert dead.history
    (failure,) = dead.history
    return failure.kind, failure.error, failure.message


async def test_a_coroutine_past_its_time_limit_is_stopped_and_fails(store: FaultyBackend, jobs: JobQueue) -> None:
    stopped = asyncio.Event()

    @jobs.job(timeout=0.05, max_attempts=1)
    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()

    await work.enqueue()
    async with at_work(jobs, store) as crew:
        await store.until(lambda: crew.count(Word.DIED) == 1)
    assert stopped.is_set()
    kind, error, message = await only_failure(store)
    assert (kind, error) == ("timeout", "TimeLimitExceeded")
    assert "0.05 s" in message


async def test_a_thread_past_its_time_limit_is_stopped_and_fails(store: FaultyBackend, jobs: JobQueue) -> None:
    stopped = threading.Event()

    @jobs.job(timeout=0.05, max_attempts=1)
    def work() -> None:
        try:
            while True:
                time.sleep(0.001)
        finally:
            stopped.set()

    await work.enqueue()
    async with at_work(jobs, store) as crew:
        await store.until(lambda: crew.count(Word.DIED) == 1)
    assert stopped.is_set()
    assert (await only_failure(store))[:2] == ("timeout", "TimeLimitExceeded")


async def test_an_isolated_run_past_its_time_limit_is_stopped_and_fails(store: FaultyBackend, jobs: JobQueue) -> None:
    @jobs.job(timeout=0.05, max_attempts=1, isolate=True)
    async def work() -> None:
        await asyncio.Event().wait()

    await work.enqueue()
    async with at_work(jobs, store) as crew:
        await store.until(lambda: crew.count(Word.DIED) == 1)
    assert (await only_failure(store))[0] == "timeout"


@pytest.mark.parametrize("kind", ["async", "sync"])
async def test_a_job_is_retried_only_when_its_code_has_stopped(store: FaultyBackend, jobs: JobQueue, kind: str) -> None:
    targeted, go = threading.Event(), threading.Event()

    if kind == "async":

        @jobs.job(timeout=0.01, max_attempts=1)
        async def work() -> None:
            try:
                await asyncio.Event().wait()
            finally:
                targeted.set()
                while not go.is_set():
                    await asyncio.sleep(0.001)
    else:

        @jobs.job(timeout=0.01, max_attempts=1)
        def work() -> None:
            try:
                while True:
                    time.sleep(0.001)
            finally:
                targeted.set()
                go.wait(10)

    @jobs.job
    async def other() -> None: ...

    await work.enqueue()
    async with at_work(jobs, store) as crew:
        await until(targeted.is_set)
        for done in range(1, 4):  # the worker goes on with others meanwhile
            await other.enqueue()
            await store.until(lambda: crew.count(Word.DONE) == done)  # noqa: B023

        async def only_one_left() -> bool:
            return await left(store) == 1

        await store.until(only_one_left)
        assert crew.count(Word.DIED) == 0
        go.set()
        await store.until(lambda: crew.count(Word.DIED) == 1)
    assert (await only_failure(store))[0] == "timeout"


async def test_a_handler_that_ends_well_in_spite_of_its_time_limit_is_done(store: FaultyBackend, jobs: JobQueue) -> None:
    @jobs.job(timeout=0.01, max_attempts=1)
    async def work() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return

    await work.enqueue()
    async with at_work(jobs, store) as crew:
        await store.until(lambda: crew.count(Word.DONE) == 1)
    assert await left(store) == 0


async def test_what_a_handler_raises_at_its_time_limit_is_what_is_recorded(store: FaultyBackend, jobs: JobQueue) -> None:
    @jobs.job(timeout=0.01, max_attempts=1)
    async def work() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise ConnectionError("half written") from None

    await work.enqueue()
    async with at_work(jobs, store) as crew:
        await store.until(lambda: crew.count(Word.DIED) == 1)
    assert (await only_failure(store))[:2] == ("failed", "ConnectionError")


async def test_the_next_job_is_not_hit_by_the_limit_of_the_last(store: FaultyBackend, jobs: JobQueue) -> None:
    """A cancellation that comes just as the run ends by itself must not reach the next one."""
    ran: list[int] = []

    @jobs.job(timeout=0.05, max_attempts=1)
    async def close_call(number: int) -> None:
        try:
            await asyncio.sleep(0.049 + number % 5 * 0.001)
        except asyncio.CancelledError:
            if number % 2:
                raise

    @jobs.job(max_attempts=1)
    async def innocent(number: int) -> None:
        await asyncio.sleep(0)
        ran.append(number)

    for number in range(40):
        await close_call.enqueue(number)
        await innocent.enqueue(number)
    async with at_work(jobs, store, concurrency=4) as crew:
        await store.until(lambda: crew.count(Word.DONE) + crew.count(Word.DIED) == 80)
    assert sorted(ran) == list(range(40))
    assert all(dead.name == "close_call" for dead in await dead_jobs(store))


async def test_a_thread_that_was_targeted_runs_no_other_job(store: FaultyBackend, jobs: JobQueue) -> None:
    targeted: list[int] = []
    later: list[int] = []

    @jobs.job(timeout=0.02, max_attempts=1)
    def slow() -> None:
        targeted.append(threading.get_native_id())
        while True:
            time.sleep(0.001)

    @jobs.job
    def quick() -> None:
        later.append(threading.get_native_id())

    await jobs.enqueue_many(slow.prepare() for _ in range(3))
    async with at_work(jobs, store, concurrency=3) as crew:
        await store.until(lambda: crew.count(Word.DIED) == 3)
        await jobs.enqueue_many(quick.prepare() for _ in range(20))
        await store.until(lambda: crew.count(Word.DONE) == 20)
    assert len(later) == 20
    # A thread's id may be given out again once it has ended; none that still lived was used.
    assert all(dead.history and dead.history[-1].kind == "timeout" for dead in await dead_jobs(store))


@pytest.mark.parametrize(("enqueue", "handler", "queue"), [(None, None, 0.02), (None, 0.02, 60), (0.02, 60, 60)])
async def test_the_nearest_time_limit_wins(
    store: FaultyBackend, enqueue: float | None, handler: float | None, queue: float | None
) -> None:
    jobs = JobQueue(store, queues={"default": QueueOptions(timeout=queue)})

    @jobs.job(timeout=handler, max_attempts=1)
    async def work() -> None:
        await asyncio.Event().wait()

    await work.options(timeout=enqueue).enqueue()
    async with at_work(jobs, store) as crew:
        await store.until(lambda: crew.count(Word.DIED) == 1)
    assert "0.02 s" in (await only_failure(store))[2]


async def test_a_time_limit_counts_from_the_handlers_start_not_from_the_claim(store: FaultyBackend, jobs: JobQueue) -> None:
    ran: list[int] = []

    @jobs.job
    async def first() -> None:
        await asyncio.sleep(0.12)

    @jobs.job(timeout=0.1, max_attempts=1)
    async def second(number: int) -> None:
        ran.append(number)

    await first.enqueue()
    await jobs.enqueue_many(second.prepare(number) for number in range(5))
    async with at_work(jobs, store, concurrency=1) as crew:
        await store.until(lambda: crew.count(Word.DONE) == 6)
    assert ran == [0, 1, 2, 3, 4]


async def test_a_run_that_cannot_be_stopped_is_marked_so_that_its_worker_is_replaced(
    store: FaultyBackend, jobs: JobQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runners_module, "STUCK_AFTER_S", 0.1)
    go = asyncio.Event()

    @jobs.job(timeout=0.01, max_attempts=1)
    async def stubborn() -> None:
        while not go.is_set():
            try:
                await go.wait()
            except asyncio.CancelledError:
                continue

    handle = await stubborn.enqueue()
    async with at_work(jobs, store) as crew:
        await until(lambda: crew.count(Word.TIMED_OUT) == 1)
        ((word, timed_out),) = crew.slot.started().items()
        assert f"{word:016x}" == handle.id.replace("-", "")[16:]
        assert timed_out
        go.set()
        await until(lambda: crew.slot.started() == {})


async def test_without_a_time_limit_a_job_may_take_as_long_as_it_likes(store: FaultyBackend, jobs: JobQueue) -> None:
    started, go = asyncio.Event(), asyncio.Event()

    @jobs.job
    async def long() -> None:
        started.set()
        await go.wait()

    @jobs.job(timeout=0.02, max_attempts=1)
    async def limited() -> None:
        await asyncio.Event().wait()

    await long.enqueue()
    async with at_work(jobs, store) as crew:
        await happens(started)
        await jobs.enqueue_many(limited.prepare() for _ in range(5))
        await store.until(lambda: crew.count(Word.DIED) == 5)
        assert crew.count(Word.DONE) == 0
        go.set()
        await store.until(lambda: crew.count(Word.DONE) == 1)
