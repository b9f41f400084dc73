"""Running jobs in the user's own process: one by hand, or a whole worker."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from fastjobs import ConfigError, JobContext, JobQueue, Retry, WorkerOptions
from fastjobs.envelope import decode_job
from fastjobs.ids import new_id
from fastjobs.model import Entry
from tests.faults import FaultyBackend
from tests.working import beneath, counts, dead_jobs, happens, left, soon

# -- process_one


@pytest.mark.parametrize("queues", ["mail", [5], []])
async def test_queues_that_are_no_list_of_names_are_refused(jobs: JobQueue, queues: Any) -> None:
    with pytest.raises(ConfigError, match="queues"):
        await jobs.process_one(queues)


async def test_one_job_is_run_and_gone(store: FaultyBackend, jobs: JobQueue) -> None:
    ran: list[int] = []

    @jobs.job
    async def work(number: int) -> None:
        ran.append(number)

    await work.enqueue(1)
    await work.enqueue(2)
    assert await jobs.process_one()
    assert ran == [1]
    assert await jobs.process_one()
    assert not await jobs.process_one()
    assert ran == [1, 2]
    assert await left(store) == 0
    assert await store.leases() == {}


async def test_a_failing_job_does_not_raise_but_is_retried_and_then_dead(store: FaultyBackend, jobs: JobQueue) -> None:
    attempts: list[int] = []

    @jobs.job(max_attempts=3)
    async def work(ctx: JobContext) -> None:
        attempts.append(ctx.attempt)
        raise ValueError(ctx.attempt)

    await work.enqueue()
    for _ in range(3):
        assert await jobs.process_one()
        assert not await jobs.process_one()
        store.time_shift_s += 3600
    assert attempts == [1, 2, 3]
    (dead,) = await dead_jobs(store)
    assert dead.history
    assert [failure.message for failure in dead.history] == ["1", "2", "3"]


async def test_only_the_named_queues_are_served(jobs: JobQueue) -> None:
    ran: list[str] = []

    @jobs.job(queue="mail")
    async def mail() -> None:
        ran.append("mail")

    @jobs.job
    async def work() -> None:
        ran.append("work")

    await mail.enqueue()
    await work.enqueue()
    assert await jobs.process_one(["default"])
    assert not await jobs.process_one(["default"])
    assert await jobs.process_one()
    assert ran == ["work", "mail"]


async def test_a_sync_handler_runs_in_a_thread(jobs: JobQueue) -> None:
    threads: list[int] = []

    @jobs.job
    def work() -> None:
        threads.append(threading.get_ident())

    await work.enqueue()
    assert await jobs.process_one()
    assert threads != [threading.get_ident()]


async def test_the_lifespan_is_around_the_job(store: FaultyBackend) -> None:
    events: list[str] = []

    @asynccontextmanager
    async def lifespan() -> AsyncIterator[str]:
        events.append("enter")
        yield "pool"
        events.append("leave")

    jobs = JobQueue(store, lifespan=lifespan)

    @jobs.job
    async def work(ctx: JobContext[str]) -> None:
        events.append(ctx.state)

    await work.enqueue()
    assert await jobs.process_one()
    assert events == ["enter", "pool", "leave"]
    assert not await jobs.process_one()
    assert len(events) == 3


async def test_a_lifespan_that_fails_raises_and_gives_the_job_back_as_it_was(store: FaultyBackend) -> None:
    @asynccontextmanager
    async def lifespan() -> AsyncIterator[None]:
        raise ConnectionError("no database")
        yield

    jobs = JobQueue(store, lifespan=lifespan)

    @jobs.job
    async def work() -> None: ...

    await work.enqueue()
    before = await store.peek("default", 1)
    with pytest.raises(ConnectionError, match="no database"):
        await jobs.process_one()
    assert await store.peek("default", 1) == before
    assert await store.leases() == {}


@pytest.mark.parametrize("kind", ["async", "sync"])
async def test_a_time_limit_holds_here_too(store: FaultyBackend, jobs: JobQueue, kind: str) -> None:
    if kind == "async":

        @jobs.job(timeout=0.05, max_attempts=1)
        async def work() -> None:
            await asyncio.Event().wait()
    else:

        @jobs.job(timeout=0.05, max_attempts=1)
        def work() -> None:
            while True:
                time.sleep(0.001)

    await work.enqueue()
    assert await soon(jobs.process_one())
    (dead,) = await dead_jobs(store)
    assert dead.history
    assert dead.history[0].kind == "timeout"


@pytest.mark.parametrize("then", ["awaits", "returns", "swallows"])
async def test_a_handler_that_cancels_its_own_task_does_not_cancel_its_caller(
    store: FaultyBackend, jobs: JobQueue, then: str
) -> None:
    @jobs.job(max_attempts=1)
    async def work() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        if then == "awaits":
            await asyncio.sleep(0)
        if then == "swallows":
            try:
                await asyncio.sleep(0)
            except asyncio.CancelledError:
                return

    await work.enqueue()
    assert await jobs.process_one()
    assert len(await dead_jobs(store)) == (1 if then == "awaits" else 0)
    assert await left(store) == 0


async def test_a_handlers_cancelled_error_is_an_ordinary_failure(store: FaultyBackend, jobs: JobQueue) -> None:
    @jobs.job
    async def work() -> None:
        raise asyncio.CancelledError

    await work.enqueue()
    assert await jobs.process_one()
    assert (await counts(store)).delayed == 1


async def test_cancelling_it_stops_the_job_and_gives_it_back_without_an_attempt(store: FaultyBackend, jobs: JobQueue) -> None:
    started, stopped = asyncio.Event(), asyncio.Event()

    @jobs.job
    async def work() -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()

    await work.enqueue()
    task = asyncio.create_task(jobs.process_one())
    await happens(started)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await soon(task)
    assert stopped.is_set()
    (envelope,) = await store.peek("default", 10)
    assert decode_job(envelope).attempts == 0
    assert await store.leases() == {}


async def test_context_variables_of_a_job_stay_in_it(jobs: JobQueue) -> None:
    from contextvars import ContextVar

    var = ContextVar("var", default="clean")

    @jobs.job
    async def work() -> None:
        var.set("dirty")

    await work.enqueue()
    await jobs.process_one()
    assert var.get() == "clean"


async def test_a_corrupt_envelope_is_dead_with_its_bytes(store: FaultyBackend, jobs: JobQueue) -> None:
    @jobs.job
    async def work() -> None: ...

    await store.push("p", 1, 1, [Entry(new_id(), "default", 5, b"nonsense")])
    assert await jobs.process_one()
    (dead,) = await dead_jobs(store)
    assert dead.payload == b"nonsense"


async def test_a_lost_reply_to_the_settlement_leaves_nothing_leased(store: FaultyBackend, jobs: JobQueue) -> None:
    @jobs.job
    async def work() -> None: ...

    await work.enqueue()
    store.fail("exchange", skip=1, times=2, lose_reply=True)
    assert await jobs.process_one()
    assert await left(store) == 0
    assert await store.leases() == {}


async def test_a_lost_reply_to_the_claim_leaves_nothing_leased(store: FaultyBackend, jobs: JobQueue) -> None:
    ran: list[int] = []

    @jobs.job
    async def work() -> None:
        ran.append(1)

    await work.enqueue()
    store.fail("exchange", times=2, lose_reply=True)
    assert await jobs.process_one()
    assert ran == [1]
    assert await left(store) == 0


async def test_the_lease_is_renewed_while_the_job_runs(store: FaultyBackend) -> None:
    jobs = JobQueue(store, worker=WorkerOptions(lease_ttl=0.03))
    go = asyncio.Event()

    @jobs.job
    async def work() -> None:
        await go.wait()

    await work.enqueue()
    task = asyncio.create_task(jobs.process_one())
    await store.until(lambda: len(store.named("renew")) >= 3)
    go.set()
    assert await soon(task)


# -- start_worker


async def test_a_worker_in_the_users_loop_runs_jobs_until_it_is_cancelled(store: FaultyBackend, jobs: JobQueue) -> None:
    ran: list[int] = []
    all_ran = asyncio.Event()

    @jobs.job
    async def work(number: int) -> None:
        ran.append(number)
        if len(ran) == 100:
            all_ran.set()

    task = asyncio.create_task(jobs.start_worker())
    await jobs.enqueue_many(work.prepare(number) for number in range(100))
    await happens(all_ran)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await soon(task)
    assert sorted(ran) == list(range(100))
    assert await left(store) == 0
    assert await store.leases() == {}


async def test_cancelled_in_the_middle_of_a_job_it_finishes_that_job(store: FaultyBackend, jobs: JobQueue) -> None:
    started, go, ended = asyncio.Event(), asyncio.Event(), asyncio.Event()

    @jobs.job
    async def work() -> None:
        started.set()
        await go.wait()
        ended.set()

    await work.enqueue()
    task = asyncio.create_task(jobs.start_worker())
    await happens(started)
    task.cancel()
    for _ in range(20):
        await asyncio.sleep(0)
    assert not task.done()
    go.set()
    with pytest.raises(asyncio.CancelledError):
        await soon(task)
    assert ended.is_set()
    assert await left(store) == 0
    assert await store.leases() == {}


async def test_a_second_cancellation_gives_the_job_back(store: FaultyBackend, jobs: JobQueue) -> None:
    started = asyncio.Event()

    @jobs.job
    async def work() -> None:
        started.set()
        await asyncio.Event().wait()

    await work.enqueue()
    task = asyncio.create_task(jobs.start_worker(WorkerOptions(grace=3600)))
    await happens(started)
    task.cancel()
    for _ in range(20):
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await soon(task)
    assert (await counts(store)).ready == 1
    assert await store.leases() == {}


async def test_what_will_not_stop_is_given_back_when_the_worker_has_gone(
    store: FaultyBackend, jobs: JobQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fastjobs import worker as worker_module

    monkeypatch.setattr(worker_module, "STOP_S", 0.05)
    started, go = threading.Event(), threading.Event()

    @jobs.job
    def stubborn() -> None:
        started.set()
        while not go.is_set():
            try:
                go.wait(10)
            except BaseException:
                continue

    await stubborn.enqueue()
    task = asyncio.create_task(jobs.start_worker(WorkerOptions(grace=0)))
    assert await asyncio.to_thread(started.wait, 10)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await soon(task)
    go.set()
    assert await left(store) == 1
    assert (await beneath(store).stats()).running in (0, 1)


async def test_a_handler_that_blocks_the_loop_keeps_its_lease(store: FaultyBackend) -> None:
    jobs = JobQueue(store, worker=WorkerOptions(lease_ttl=0.3))
    runs: list[int] = []
    ended = asyncio.Event()

    @jobs.job
    async def work() -> None:
        runs.append(1)
        before = len(store.named("renew"))
        deadline = time.monotonic() + 5
        while len(store.named("renew")) < before + 2 and time.monotonic() < deadline:
            time.sleep(0.001)  # the loop stands still; the lease's keeper does not
        runs.append(len(store.named("renew")) - before)
        ended.set()

    await work.enqueue()
    task = asyncio.create_task(jobs.start_worker())
    await happens(ended)
    task.cancel()
    await asyncio.wait([task])
    assert runs[0] == 1
    assert runs[1] >= 2
    assert len(runs) == 2


async def test_a_retry_is_due_by_the_stores_clock(store: FaultyBackend, jobs: JobQueue) -> None:
    attempts: list[int] = []
    again = asyncio.Event()

    @jobs.job
    async def work(ctx: JobContext) -> None:
        attempts.append(ctx.attempt)
        if ctx.attempt == 1:
            raise Retry(after=0.01)
        again.set()

    await work.enqueue()
    task = asyncio.create_task(jobs.start_worker())
    await happens(again)
    task.cancel()
    await asyncio.wait([task])
    assert attempts == [1, 2]


async def test_workers_leave_no_descriptor_thread_or_task_behind(store: FaultyBackend, jobs: JobQueue) -> None:
    @jobs.job
    async def work() -> None: ...

    async def once() -> None:
        await work.enqueue()
        before = len(store.named("exchange"))
        task = asyncio.create_task(jobs.start_worker())
        await store.until(lambda: len(store.named("exchange")) > before + 1)
        task.cancel()
        await asyncio.wait([task])

    await once()
    gc.collect()
    threads, tasks = set(threading.enumerate()), asyncio.all_tasks()
    descriptors = len(os.listdir("/dev/fd"))
    for _ in range(5):
        await once()
    for thread in set(threading.enumerate()) - threads:
        await asyncio.to_thread(thread.join, 10)
        assert not thread.is_alive()
    gc.collect()
    assert len(os.listdir("/dev/fd")) <= descriptors + 1
    assert asyncio.all_tasks() <= tasks


def test_a_loop_torn_down_around_a_worker_gives_its_jobs_back(store: FaultyBackend, jobs: JobQueue) -> None:
    async def main() -> None:
        started = asyncio.Event()

        @jobs.job
        async def work() -> None:
            started.set()
            await asyncio.Event().wait()

        for _ in range(5):
            await work.enqueue()
        main.task = asyncio.create_task(jobs.start_worker(WorkerOptions(grace=3600)))  # type: ignore[attr-defined]
        await happens(started)

    asyncio.run(main())
    assert asyncio.run(counts(store)).ready == 5
    assert asyncio.run(beneath(store).leases()) == {}
