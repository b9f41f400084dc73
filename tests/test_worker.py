"""A worker on the memory store: jobs run, at most so many at once, apart from one another."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from fastjobs import JobContext, JobQueue, Retry
from fastjobs.context import JobRecordFilter
from fastjobs.envelope import encode_job
from fastjobs.ids import new_id
from fastjobs.model import ENVELOPE_VERSION, Entry, Job
from fastjobs.slots import State, Word
from tests.faults import FaultyBackend
from tests.working import at_work, counts, dead_jobs, happens, left, soon, until


async def test_every_job_runs_once_and_is_gone(store: FaultyBackend, jobs: JobQueue) -> None:
    ran: list[int] = []

    @jobs.job
    async def work(number: int) -> None:
        ran.append(number)

    await jobs.enqueue_many(work.prepare(number) for number in range(5_000))
    async with at_work(jobs, store) as crew:
        await store.until(lambda: crew.count(Word.DONE) == 5_000)
    assert sorted(ran) == list(range(5_000))
    assert await left(store) == 0
    assert await store.leases() == {}


async def test_jobs_that_end_at_once_are_claimed_in_batches_and_settled_with_the_next_claim(
    store: FaultyBackend, jobs: JobQueue
) -> None:
    @jobs.job
    async def work() -> None: ...

    await jobs.enqueue_many(work.prepare() for _ in range(10_000))
    async with at_work(jobs, store) as crew:
        await store.until(lambda: crew.count(Word.DONE) == 10_000)
    exchanges = [call.args for call in store.named("exchange")]
    assert len(exchanges) < 100
    riding = [args for args in exchanges if args[2] and args[4]]
    assert len(riding) > len(exchanges) / 3


async def test_the_next_batch_is_claimed_while_this_one_runs(store: FaultyBackend, jobs: JobQueue) -> None:
    """Once it has warmed up a worker has jobs to run while the store answers, whatever moment is looked at."""
    ran: list[int] = []

    @jobs.job
    async def work(number: int) -> None:
        ran.append(number)
        await asyncio.sleep(0)

    await jobs.enqueue_many(work.prepare(number) for number in range(3_000))
    slow = store.hang("exchange", skip=10)
    async with at_work(jobs, store) as crew:
        await happens(slow.reached)
        assert len(ran) < 2_000
        before = len(ran)
        await until(lambda: len(ran) > before)  # although the exchange has not been answered
        assert slow.gate is not None
        slow.gate.set()
        await store.until(lambda: crew.count(Word.DONE) == 3_000)


@pytest.mark.parametrize("kind", ["async", "sync"])
async def test_no_more_jobs_run_at_once_than_allowed(store: FaultyBackend, jobs: JobQueue, kind: str) -> None:
    lock, running, most = threading.Lock(), 0, 0

    def enter() -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)

    def leave() -> None:
        nonlocal running
        with lock:
            running -= 1

    if kind == "async":

        @jobs.job
        async def work() -> None:
            enter()
            await asyncio.sleep(0.001)
            leave()
    else:

        @jobs.job
        def work() -> None:
            enter()
            threading.Event().wait(0.001)
            leave()

    await jobs.enqueue_many(work.prepare() for _ in range(200))
    async with at_work(jobs, store, concurrency=7) as crew:
        await store.until(lambda: crew.count(Word.DONE) == 200)
    assert most == 7


async def test_all_runners_are_put_to_work_on_jobs_that_take_long(store: FaultyBackend, jobs: JobQueue) -> None:
    started, go = 0, asyncio.Event()

    @jobs.job
    async def work() -> None:
        nonlocal started
        started += 1
        await go.wait()

    await jobs.enqueue_many(work.prepare() for _ in range(150))
    async with at_work(jobs, store, concurrency=100) as crew:
        await until(lambda: started == 100)
        go.set()
        await store.until(lambda: crew.count(Word.DONE) == 150)


async def test_a_new_job_starts_at_once_on_an_idle_worker(store: FaultyBackend, jobs: JobQueue) -> None:
    ran = asyncio.Event()

    @jobs.job
    async def work() -> None:
        ran.set()

    async with at_work(jobs, store):
        await store.until(lambda: store.pending > 0 and bool(store.named("wait")))
        await work.enqueue()
        async with asyncio.timeout(0.5):  # an idle worker asks by itself only every second
            await ran.wait()


@pytest.mark.parametrize("kind", ["async", "sync"])
async def test_context_variables_do_not_leak_from_job_to_job(store: FaultyBackend, jobs: JobQueue, kind: str) -> None:
    var = contextvars.ContextVar("var", default="clean")
    seen: list[str] = []

    def look() -> None:
        seen.append(var.get())
        var.set("dirty")

    if kind == "async":

        @jobs.job
        async def work() -> None:
            look()
    else:

        @jobs.job
        def work() -> None:
            look()

    var.set("of the code around the worker")
    await jobs.enqueue_many(work.prepare() for _ in range(50))
    async with at_work(jobs, store, concurrency=1) as crew:
        await store.until(lambda: crew.count(Word.DONE) == 50)
    assert seen == ["clean"] * 50


async def test_jobs_side_by_side_have_contexts_of_their_own(store: FaultyBackend, jobs: JobQueue) -> None:
    var: contextvars.ContextVar[int] = contextvars.ContextVar("var")
    wrong: list[int] = []

    @jobs.job
    async def work(number: int) -> None:
        var.set(number)
        await asyncio.sleep(0.001)
        if var.get() != number:
            wrong.append(number)

    await jobs.enqueue_many(work.prepare(number) for number in range(100))
    async with at_work(jobs, store) as crew:
        await store.until(lambda: crew.count(Word.DONE) == 100)
    assert wrong == []


async def test_an_asyncio_timeout_in_a_handler_works_as_ever(store: FaultyBackend, jobs: JobQueue) -> None:
    ends: list[str] = []

    @jobs.job
    async def work() -> None:
        try:
            async with asyncio.timeout(0.001):
                await asyncio.Event().wait()
        except TimeoutError:
            ends.append("timed out")
        await asyncio.sleep(0)
        ends.append("went on")

    await jobs.enqueue_many(work.prepare() for _ in range(20))
    async with at_work(jobs, store, concurrency=2) as crew:
        await store.until(lambda: crew.count(Word.DONE) == 20)
    assert ends.count("went on") == ends.count("timed out") == 20


async def test_a_task_group_in_a_handler_works_as_ever(store: FaultyBackend, jobs: JobQueue) -> None:
    sums: list[int] = []

    @jobs.job
    async def work(fail: bool) -> None:
        async def part(number: int) -> int:
            await asyncio.sleep(0)
            if fail and number == 3:
                raise ValueError(number)
            return number

        async with asyncio.TaskGroup() as group:
            parts = [group.create_task(part(number)) for number in range(5)]
        sums.append(sum(task.result() for task in parts))

    await work.enqueue(False)
    await work.options(max_attempts=1).enqueue(True)
    await work.enqueue(False)
    async with at_work(jobs, store, concurrency=1) as crew:
        await store.until(lambda: crew.count(Word.DONE) == 2 and crew.count(Word.DIED) == 1)
    assert sums == [10, 10]
    (dead,) = await dead_jobs(store)
    assert dead.history
    assert dead.history[0].error == "ExceptionGroup"
    assert "ValueError: 3" in dead.history[0].traceback


@pytest.mark.parametrize("then", ["awaits", "returns", "raises", "swallows"])
async def test_a_handler_that_cancels_its_own_task_harms_no_other_job(store: FaultyBackend, jobs: JobQueue, then: str) -> None:
    ran: list[int] = []

    @jobs.job(max_attempts=1)
    async def work(number: int) -> None:
        ran.append(number)
        if number % 2:
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
            if then == "awaits":
                await asyncio.sleep(0)
            if then == "raises":
                raise ValueError
            if then == "swallows":
                try:
                    await asyncio.sleep(0)
                except asyncio.CancelledError:
                    return
        await asyncio.sleep(0)

    await jobs.enqueue_many(work.prepare(number) for number in range(40))
    async with at_work(jobs, store, concurrency=2) as crew:
        await store.until(lambda: crew.count(Word.DONE) + crew.count(Word.DIED) == 40)
        assert sorted(ran) == list(range(40))
        failed = 0 if then == "swallows" else 20
        assert (crew.count(Word.DONE), crew.count(Word.DIED)) == (40 - failed, failed)
    assert await left(store) == 0


async def test_a_handler_that_cancels_its_task_and_returns_is_done(store: FaultyBackend, jobs: JobQueue) -> None:
    ran: list[int] = []

    @jobs.job(max_attempts=1)
    async def work(number: int) -> None:
        ran.append(number)
        task = asyncio.current_task()
        assert task is not None
        task.cancel()

    await jobs.enqueue_many(work.prepare(number) for number in range(20))
    async with at_work(jobs, store, concurrency=1) as crew:
        await store.until(lambda: crew.count(Word.DONE) == 20)
    assert ran == list(range(20))


async def test_a_cancelled_error_that_nobody_asked_for_is_an_ordinary_failure(store: FaultyBackend, jobs: JobQueue) -> None:
    @jobs.job(max_attempts=1)
    async def work() -> None:
        raise asyncio.CancelledError("from some library")

    await work.enqueue()
    async with at_work(jobs, store) as crew:
        await store.until(lambda: crew.count(Word.DIED) == 1)
    (dead,) = await dead_jobs(store)
    assert dead.history
    assert (dead.history[0].error, dead.history[0].message) == ("CancelledError", "from some library")


@pytest.mark.parametrize("error", [SystemExit(1), KeyboardInterrupt(), GeneratorExit()])
@pytest.mark.parametrize("kind", ["async", "sync"])
async def test_a_handler_cannot_end_its_worker(store: FaultyBackend, jobs: JobQueue, error: BaseException, kind: str) -> None:
    if kind == "async":

        @jobs.job(max_attempts=1)
        async def work(fail: bool) -> None:
            if fail:
                raise error
    else:

        @jobs.job(max_attempts=1)
        def work(fail: bool) -> None:
            if fail:
                raise error

    await jobs.enqueue_many(work.prepare(number % 2 == 0) for number in range(20))
    async with at_work(jobs, store) as crew:
        await store.until(lambda: crew.count(Word.DONE) + crew.count(Word.DIED) == 20)
        assert not crew.task.done()
    assert [job.history[0].error for job in await dead_jobs(store) if job.history] == [type(error).__name__] * 10


async def test_log_records_say_which_job_they_are_of_from_coroutines_and_threads(store: FaultyBackend, jobs: JobQueue) -> None:
    records: list[logging.LogRecord] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(record)

    library, handler = logging.getLogger("some.package"), Keep()
    handler.addFilter(JobRecordFilter())
    library.addHandler(handler)
    library.setLevel(logging.INFO)

    @jobs.job
    async def coroutine() -> None:
        library.info("in a job")
        await asyncio.sleep(0)
        library.info("still in it")

    @jobs.job
    def threaded() -> None:
        library.info("in a job")

    @jobs.job(isolate=True)
    async def isolated() -> None:
        library.info("in a job")

    @jobs.job
    async def by_context(ctx: JobContext) -> None:
        ctx.log.logger.addHandler(handler)
        ctx.log.warning("width %d", 5)
        ctx.log.logger.removeHandler(handler)

    library.info("outside")
    handles = [await function.enqueue() for function in (coroutine, threaded, isolated, by_context)]
    async with at_work(jobs, store, concurrency=1) as crew:
        await store.until(lambda: crew.count(Word.DONE) == 4)
    library.removeHandler(handler)
    found = {(getattr(record, "job_name", "?"), getattr(record, "job_id", "?")) for record in records}
    assert found == {("", "")} | {(handle.name, handle.id) for handle in handles}
    assert records[-1].getMessage() == f"by_context {handles[3].id}: width 5"


async def test_the_lifespan_is_entered_once_and_left_after_the_last_job(store: FaultyBackend) -> None:
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

    await jobs.enqueue_many(work.prepare() for _ in range(3))
    async with at_work(jobs, store) as crew:
        await store.until(lambda: crew.count(Word.DONE) == 3)
    assert events == ["enter", "pool", "pool", "pool", "leave"]


async def test_a_lifespan_that_fails_ends_the_worker_and_leaves_nothing_behind(store: FaultyBackend) -> None:
    @asynccontextmanager
    async def lifespan() -> AsyncIterator[None]:
        raise ConnectionError("no database")
        yield

    jobs = JobQueue(store, lifespan=lifespan)

    @jobs.job
    async def work() -> None: ...

    await work.enqueue()
    with pytest.raises(ConnectionError, match="no database"):
        async with at_work(jobs, store) as crew:
            await asyncio.wait([crew.task])
    assert await store.leases() == {}
    assert (await counts(store)).ready == 1


async def test_each_queue_is_served_and_no_other(store: FaultyBackend, jobs: JobQueue) -> None:
    ran: list[str] = []

    @jobs.job(queue="mail")
    async def mail() -> None:
        ran.append("mail")

    @jobs.job(queue="video")
    async def video() -> None:
        ran.append("video")

    await mail.enqueue()
    await video.enqueue()
    await mail.options(queue="elsewhere").enqueue()
    async with at_work(jobs, store, queues=("mail", "elsewhere")) as crew:
        await store.until(lambda: crew.count(Word.DONE) == 2)
    assert ran == ["mail", "mail"]
    assert (await counts(store, "video")).ready == 1


async def test_jobs_of_higher_priority_run_first(store: FaultyBackend, jobs: JobQueue) -> None:
    ran: list[int] = []

    @jobs.job
    async def work(priority: int) -> None:
        ran.append(priority)

    for priority in (3, 9, 0, 5, 9, 7):
        await work.options(priority=priority).enqueue(priority)
    async with at_work(jobs, store, concurrency=1) as crew:
        await store.until(lambda: crew.count(Word.DONE) == 6)
    assert ran == [9, 9, 7, 5, 3, 0]


async def test_a_retried_job_comes_back_when_its_delay_is_over_by_the_stores_clock(
    store: FaultyBackend, jobs: JobQueue
) -> None:
    attempts: list[int] = []

    @jobs.job
    async def work(ctx: JobContext) -> None:
        attempts.append(ctx.attempt)
        if ctx.attempt < 3:
            raise Retry(after="1h")

    await work.enqueue()
    async with at_work(jobs, store) as crew:
        for retried in (1, 2):
            await store.until(lambda: crew.count(Word.RETRIED) == retried)  # noqa: B023
            await _until_delayed(store)
            assert attempts == list(range(1, retried + 1))
            store.time_shift_s += 3600
        await store.until(lambda: crew.count(Word.DONE) == 1)
    assert attempts == [1, 2, 3]


async def _until_delayed(store: FaultyBackend) -> None:
    async def delayed() -> bool:
        return (await counts(store)).delayed == 1

    await store.until(delayed)


async def test_a_retry_reaches_the_store_although_its_neighbours_still_run(store: FaultyBackend, jobs: JobQueue) -> None:
    go = asyncio.Event()

    @jobs.job
    async def work(fail: bool) -> None:
        if fail:
            raise Retry(after="1h")
        await go.wait()

    await jobs.enqueue_many(work.prepare(number == 3) for number in range(6))
    async with at_work(jobs, store) as crew:
        await _until_delayed(store)
        assert crew.count(Word.DONE) == 0
        go.set()
        await store.until(lambda: crew.count(Word.DONE) == 5)


async def test_a_corrupt_envelope_is_dead_with_its_bytes_and_harms_no_other(store: FaultyBackend, jobs: JobQueue) -> None:
    ran: list[int] = []

    @jobs.job
    async def work(number: int) -> None:
        ran.append(number)

    good = encode_job(Job(ENVELOPE_VERSION, 5, new_id(), "work", "default", b'{"number":7}', 1.7e9))
    corrupt = [b"", b"\xff\xfe", b"not an envelope", good[:-3], good.replace(b"work", b"w\xff\xfek"), b"\x91" * 1000]
    await store.push("p", 1, 1, [Entry(new_id(), "default", 5, envelope) for envelope in (*corrupt, good)])
    async with at_work(jobs, store) as crew:
        await store.until(lambda: crew.count(Word.DONE) == 1 and crew.count(Word.DIED) == len(corrupt))
    assert ran == [7]
    assert sorted(job.payload for job in await dead_jobs(store)) == sorted(corrupt)


async def test_a_claim_of_nothing_but_corrupt_envelopes_is_settled(store: FaultyBackend, jobs: JobQueue) -> None:
    @jobs.job
    async def work() -> None: ...

    await store.push("p", 1, 1, [Entry(new_id(), "default", 5, b"?") for _ in range(3)])
    async with at_work(jobs, store) as crew:
        await store.until(lambda: crew.count(Word.DIED) == 3)
        await work.enqueue()
        await store.until(lambda: crew.count(Word.DONE) == 1)
    assert await left(store) == 0


async def test_a_job_that_there_was_no_memory_to_read_goes_back_and_runs_later(
    store: FaultyBackend, jobs: JobQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fastjobs import runners
    from fastjobs.envelope import read_job

    ran: list[int] = []
    short = [MemoryError(), MemoryError()]

    @jobs.job
    async def work(number: int) -> None:
        ran.append(number)

    def read(envelope: bytes) -> Job:
        if len(ran) == 3 and short:
            raise short.pop()
        return read_job(envelope)

    monkeypatch.setattr(runners, "read_job", read)
    await jobs.enqueue_many(work.prepare(number) for number in range(10))
    async with at_work(jobs, store) as crew:
        await store.until(lambda: crew.count(Word.DONE) == 10)
    assert sorted(ran) == list(range(10))
    assert not short
    assert await left(store) == 0


async def test_a_job_of_a_later_version_is_left_for_newer_workers_byte_for_byte(store: FaultyBackend, jobs: JobQueue) -> None:
    import msgspec

    @jobs.job
    async def work() -> None: ...

    newer = msgspec.msgpack.encode([ENVELOPE_VERSION + 1, 7, new_id(), "work", "default", {"other": "fields"}])
    await store.push("p", 1, 1, [Entry(new_id(), "default", 7, newer)])
    async with at_work(jobs, store) as crew:
        await _until_delayed(store)
        assert crew.count(Word.RETRIED) == 1
    store.time_shift_s += 60
    await store.register("newer.1")
    claimed = await store.exchange("newer.1", 1, [], ["default"], 10)
    assert claimed.jobs == [newer]


async def test_the_slot_shows_what_the_worker_does(store: FaultyBackend, jobs: JobQueue) -> None:
    started, go = asyncio.Event(), asyncio.Event()

    @jobs.job
    async def work() -> None:
        started.set()
        await go.wait()

    async with at_work(jobs, store) as crew:
        await until(lambda: crew.slot.state is State.RUNNING)
        handle = await work.enqueue()
        await happens(started)
        (word,) = crew.slot.started()
        assert f"{word:016x}" == handle.id.replace("-", "")[16:]
        claims = crew.slot.open_claims()
        assert claims
        assert claims == set((await store.workers(crew.worker._lease))[crew.worker._id])
        go.set()
        await store.until(lambda: crew.slot.open_claims() == set())
        assert crew.slot.started() == {}
        assert (crew.count(Word.CLAIMED), crew.count(Word.DONE)) == (1, 1)
        crew.worker.drain()
        assert crew.slot.state is State.DRAINING
        await soon(crew.task)


async def test_the_number_of_a_call_stands_in_the_slot_before_the_store_hears_of_it(
    store: FaultyBackend, jobs: JobQueue
) -> None:
    @jobs.job
    async def work() -> None: ...

    slow = store.hang("exchange", skip=1)
    async with at_work(jobs, store) as crew:
        await work.enqueue()
        await happens(slow.reached)
        called = store.named("exchange")[-1].args[1]
        assert crew.count(Word.CALL) == called
        assert slow.gate is not None
        slow.gate.set()
        await store.until(lambda: crew.count(Word.DONE) == 1)
        await until(lambda: crew.count(Word.CALL) != called)


async def test_an_isolated_handler_runs_in_a_task_of_its_own(store: FaultyBackend, jobs: JobQueue) -> None:
    tasks: list[object] = []

    @jobs.job(isolate=True)
    async def work() -> None:
        tasks.append(asyncio.current_task())

    await jobs.enqueue_many(work.prepare() for _ in range(5))
    async with at_work(jobs, store, concurrency=1) as crew:
        await store.until(lambda: crew.count(Word.DONE) == 5)
    assert len(set(map(id, tasks))) == 5


async def test_a_worker_leaves_no_task_or_thread_behind(store: FaultyBackend, jobs: JobQueue) -> None:
    @jobs.job
    async def work() -> None:
        await asyncio.sleep(0)

    @jobs.job
    def threaded() -> None: ...

    tasks, threads = asyncio.all_tasks(), set(threading.enumerate())
    await jobs.enqueue_many(work.prepare() for _ in range(20))
    await jobs.enqueue_many(threaded.prepare() for _ in range(20))
    async with at_work(jobs, store) as crew:
        await store.until(lambda: crew.count(Word.DONE) == 40)
    await until(lambda: asyncio.all_tasks() <= tasks)
    for thread in set(threading.enumerate()) - threads:
        if thread.name == "fastjobs-job":
            await asyncio.to_thread(thread.join, 10)
            assert not thread.is_alive()
