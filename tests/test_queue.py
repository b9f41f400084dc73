"""`JobQueue`: registering, calling, enqueueing by handle, class and name, and the errors that show the right way."""

from __future__ import annotations

import asyncio
import os
import pickle
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

import fastjobs
from fastjobs import (
    ConfigError,
    Discard,
    EnqueueManyError,
    EnqueueOptions,
    EnqueueUncertain,
    Job,
    JobContext,
    JobQueue,
    QueueOptions,
    Retry,
    SerializationError,
    Snooze,
    TimeLimitExceeded,
    WorkerOptions,
)
from fastjobs.backends.memory import MemoryBackend
from fastjobs.ids import parse_id
from tests.faults import FaultyBackend
from tests.working import counts, payload, stored

# -- the three ways to name a job


async def test_a_handle_enqueues_its_function_with_its_arguments(store: FaultyBackend, jobs: JobQueue) -> None:
    @jobs.job
    async def resize(path: str, width: int = 800) -> None: ...

    handle = await resize.enqueue("a.png", width=400)
    (job,) = await stored(store)
    assert (job.id, job.name, job.queue, job.priority) == (parse_id(handle.id), "resize", "default", 5)
    assert payload(job) == {"path": "a.png", "width": 400}
    assert str(handle) == handle.id
    assert handle in {handle}


async def test_only_arguments_that_were_given_are_stored(store: FaultyBackend, jobs: JobQueue) -> None:
    @jobs.job
    async def resize(path: str, width: int = 800) -> None: ...

    await resize.enqueue("a.png")
    assert payload((await stored(store))[0]) == {"path": "a.png"}


async def test_the_function_itself_is_called_as_ever(jobs: JobQueue) -> None:
    @jobs.job
    async def double(number: int) -> int:
        """Twice as much."""
        return 2 * number

    @jobs.job(queue="mail")
    def plain(ctx: JobContext, text: str) -> str:
        return f"{ctx.name}: {text}"

    assert await double(21) == 42
    assert plain(JobContext.for_test(name="x"), "hello") == "x: hello"
    assert (double.__name__, double.__doc__, double.name) == ("double", "Twice as much.", "double")


async def test_a_job_can_be_enqueued_by_name_without_its_code(store: FaultyBackend, jobs: JobQueue) -> None:
    await jobs.enqueue("resize", {"path": "c.png"}, queue="images", priority=7)
    (job,) = await stored(store, "images")
    assert (job.name, job.priority, payload(job)) == ("resize", 7, {"path": "c.png"})


async def test_a_known_name_is_checked_against_its_handler(store: FaultyBackend, jobs: JobQueue) -> None:
    @jobs.job(queue="images", priority=3)
    async def resize(path: str, width: int = 800) -> None: ...

    for data in ({"path": 5}, {}, {"path": "a", "more": 1}, ["a"], "a"):
        with pytest.raises(SerializationError):
            await jobs.enqueue("resize", data)
    await jobs.enqueue("resize", {"path": "a"})
    (job,) = await stored(store, "images")
    assert job.priority == 3


@dataclass
class ResizeData:
    path: str
    width: int = 800


async def test_a_job_class_is_registered_and_enqueued_as_in_the_crate(store: FaultyBackend, jobs: JobQueue) -> None:
    ran: list[object] = []

    class Resize(Job[ResizeData]):
        name = "resize"

        async def execute(self, ctx: JobContext, data: ResizeData) -> None:
            ran.append((ctx.name, data))

    jobs.register_job(Resize(), queue="images", max_attempts=4)
    handle = await jobs.enqueue(Resize, ResizeData("a.png"), EnqueueOptions(max_attempts=3))
    (job,) = await stored(store, "images")
    assert (handle.name, job.name, job.max_attempts) == ("resize", "resize", 3)
    assert await jobs.process_one()
    assert ran == [("resize", ResizeData("a.png"))]


async def test_a_job_class_that_was_given_another_name_is_found_under_it(store: FaultyBackend, jobs: JobQueue) -> None:
    ran: list[object] = []

    class Resize(Job[ResizeData]):
        async def execute(self, ctx: JobContext, data: ResizeData) -> None:
            ran.append(data)

    instance = Resize()
    jobs.register_job(instance, name="images.resize")
    assert (await jobs.enqueue(Resize, ResizeData("a"))).name == "images.resize"
    assert (await jobs.enqueue(instance, ResizeData("b"))).name == "images.resize"
    while await jobs.process_one():
        pass
    assert ran == [ResizeData("a"), ResizeData("b")]


async def test_a_job_class_that_is_registered_elsewhere_goes_by_its_name(store: FaultyBackend, jobs: JobQueue) -> None:
    class Resize(Job[ResizeData]):
        name = "resize"

        async def execute(self, ctx: JobContext, data: ResizeData) -> None: ...

    await jobs.enqueue(Resize, ResizeData("a"))
    (job,) = await stored(store)
    assert (job.name, payload(job)) == ("resize", {"path": "a", "width": 800})


async def test_a_job_class_wants_its_own_kind_of_data(jobs: JobQueue) -> None:
    class Resize(Job[ResizeData]):
        async def execute(self, ctx: JobContext, data: ResizeData) -> None: ...

    jobs.register_job(Resize())
    for data in ({"path": 5}, 5, None, {"width": 1}):
        with pytest.raises(SerializationError):
            await jobs.enqueue(Resize, data)


def test_registering_a_class_instead_of_an_instance_shows_what_to_write(jobs: JobQueue) -> None:
    class Resize(Job[ResizeData]):
        async def execute(self, ctx: JobContext, data: ResizeData) -> None: ...

    def function() -> None: ...

    with pytest.raises(ConfigError, match=r"Resize\(\)"):
        jobs.register_job(Resize)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"@jobs\.job"):
        jobs.register_job(function)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="tries"):
        jobs.register_job(Resize(), tries=3)  # type: ignore[call-arg]


def test_a_class_without_execute_is_refused_when_it_is_registered(jobs: JobQueue) -> None:
    class Empty(Job[ResizeData]):
        async def exceute(self, ctx: JobContext, data: ResizeData) -> None: ...

    with pytest.raises(ConfigError, match="Empty must define: async def execute"):
        jobs.register_job(Empty())


async def test_a_parameter_may_be_called_self(store: FaultyBackend, jobs: JobQueue) -> None:
    @jobs.job
    async def resize(number: int, self: str) -> None: ...

    await resize.enqueue(1, self="a")
    await resize.options(priority=1).enqueue(2, self="b")
    assert [payload(job)["self"] for job in await stored(store)] == ["a", "b"]


def test_a_context_for_tests_takes_an_id_and_a_time_as_users_have_them() -> None:
    id, moment = "0192a3b4-c5d6-7e8f-9a0b-1c2d3e4f5061", datetime(2026, 11, 24, tzinfo=UTC)
    ctx = JobContext.for_test(job_id=id, created_at=moment)
    assert (ctx.job_id, ctx.created_at) == (id, moment)
    with pytest.raises(ValueError, match="not a job id"):
        JobContext.for_test(job_id="abc")
    with pytest.raises(ConfigError, match="created_at"):
        JobContext.for_test(created_at=datetime(2026, 11, 24))  # noqa: DTZ001 - what is refused


@pytest.mark.parametrize(
    "error",
    [
        Retry("busy", after=5),
        Discard("gone"),
        Snooze("5s", "later"),
        EnqueueManyError("stopped", accepted=3, uncertain=2),
        EnqueueUncertain("lost", job_ids=["a"]),
        SerializationError("bad", path="$.a"),
        TimeLimitExceeded("late"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_our_exceptions_come_out_of_a_process_pool_whole(error: Exception) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), vars(again)) == (type(error), str(error), vars(error))


async def test_a_handle_may_be_passed_to_enqueue_with_its_arguments_by_name(store: FaultyBackend, jobs: JobQueue) -> None:
    @jobs.job
    async def resize(path: str) -> None: ...

    await jobs.enqueue(resize, {"path": "a.png"}, priority=8)
    (job,) = await stored(store)
    assert (job.priority, payload(job)) == (8, {"path": "a.png"})


# -- idioms of other libraries


@pytest.mark.parametrize("idiom", ["delay", "apply_async", "send", "kiq", "defer", "s"])
def test_the_calls_of_other_libraries_show_the_right_one(jobs: JobQueue, idiom: str) -> None:
    @jobs.job
    async def resize(path: str) -> None: ...

    with pytest.raises(AttributeError, match=r"await resize\.enqueue"):
        getattr(resize, idiom)("a.png")
    with pytest.raises(AttributeError, match=r"await resize\.options\(…\)\.enqueue"):
        getattr(resize.options(priority=1), idiom)("a.png")
    for thing in (resize, resize.options(priority=1)):
        with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
            thing.nonsense  # type: ignore[attr-defined]  # noqa: B018


async def test_a_coroutine_is_refused_with_the_right_call_and_no_warning(jobs: JobQueue) -> None:
    @jobs.job
    async def resize(path: str) -> None: ...

    with pytest.raises(ConfigError, match=r"use resize\.enqueue"):
        await jobs.enqueue(resize("a.png"))  # type: ignore[arg-type]
    for twice in (resize.enqueue("a.png"), resize.options(priority=1).enqueue("a.png"), jobs.enqueue("resize", {"path": "a"})):
        with pytest.raises(ConfigError, match="stores the job by itself: await it"):
            await jobs.enqueue(twice)  # type: ignore[call-overload]


async def test_a_function_that_is_no_job_is_refused_with_what_to_do(jobs: JobQueue) -> None:
    async def plain() -> None: ...

    for thing in (plain, lambda: None, print):
        with pytest.raises(ConfigError, match=r"@jobs\.job"):
            await jobs.enqueue(thing)  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match=r"@jobs\.job"):
            await jobs.enqueue(thing, seconds=1)  # type: ignore[call-overload]


@pytest.mark.parametrize(
    "call",
    [
        lambda jobs, f: jobs.enqueue(f, "a.png"),
        lambda jobs, f: jobs.enqueue(f, "a.png", 400),
        lambda jobs, f: jobs.enqueue(f, path="a.png"),
        lambda jobs, f: jobs.enqueue(f, path="a.png", width=400),
        lambda jobs, f: jobs.enqueue(f, "a.png", 400, 5, 6),
    ],
    ids=["one", "two", "keyword", "keywords", "many"],
)
async def test_arguments_given_as_in_rq_get_the_right_call_shown(jobs: JobQueue, call: Callable[..., Any]) -> None:
    @jobs.job
    async def resize(path: str, width: int = 800) -> None: ...

    with pytest.raises(ConfigError, match=r"resize\.enqueue\("):
        await call(jobs, resize)


@pytest.mark.parametrize("options", [400, {"priority": 3}, "mail", WorkerOptions()])
async def test_options_that_are_none_are_refused(jobs: JobQueue, options: Any) -> None:
    with pytest.raises(ConfigError, match="EnqueueOptions"):
        await jobs.enqueue("work", {}, options)


async def test_more_than_a_job_its_data_and_options_is_refused(jobs: JobQueue) -> None:
    with pytest.raises(ConfigError, match="got 1 more: "):
        await jobs.enqueue("work", {}, None, "mail")  # type: ignore[call-overload]
    with pytest.raises(ConfigError, match="got 1 more: "):
        await asyncio.to_thread(jobs.sync.enqueue, "work", {}, None, "mail")
    jobs.sync.close()


@pytest.mark.parametrize("thing", [5, None, b"work", ["work"], object()])
async def test_what_names_no_job_is_refused(jobs: JobQueue, thing: Any) -> None:
    with pytest.raises(ConfigError, match="a job is named by"):
        await jobs.enqueue(thing)


@pytest.mark.parametrize("name", ["", "two words", "x" * 300, "nul\0"])
async def test_a_bad_job_name_is_refused(jobs: JobQueue, name: str) -> None:
    with pytest.raises(ConfigError, match="job name"):
        await jobs.enqueue(name)


# -- the queue itself


async def bare_lifespan() -> AsyncIterator[None]:
    """Its decorator was forgotten."""
    yield


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"backend": "mysql://host"}, "names no store"),
        ({"backend": "nonsense"}, "names no store"),
        ({"backend": 5}, "backend"),
        ({"include": "shop.mail"}, "include"),
        ({"queues": {"a b": QueueOptions()}}, "queues"),
        ({"queues": {"mail": {"priority": 3}}}, "QueueOptions"),
        ({"queues": {"mail": None}}, "QueueOptions"),
        ({"worker": {"concurrency": 5}}, "WorkerOptions"),
        ({"lifespan": 5}, "lifespan"),
        ({"lifespan": bare_lifespan}, "asynccontextmanager"),
        ({"include": [5]}, "include"),
        ({"queues": ["mail"]}, "queues"),
        ({"types": {"Path": str}}, "types"),
        ({"types": 5}, "types"),
        ({"codec": "pickle"}, "codec"),
        ({"max_payload_bytes": 0}, "max_payload_bytes"),
        ({"max_payload_bytes": None}, "max_payload_bytes"),
        ({"enqueue_timeout": -1}, "enqueue_timeout"),
    ],
)
def test_a_bad_option_of_the_queue_is_refused_and_named(options: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        JobQueue(**options)


def test_a_password_is_not_printed() -> None:
    jobs = JobQueue("redis://user:geheim@host:6379/0")
    assert "geheim" not in repr(jobs)
    assert "user" in repr(jobs)
    with pytest.raises(ConfigError) as caught:
        JobQueue("mysql://user:geheim@host/db")
    assert "geheim" not in str(caught.value)


async def test_override_swaps_the_store_and_keeps_the_handlers(store: FaultyBackend, jobs: JobQueue) -> None:
    ran: list[int] = []

    @jobs.job
    async def work(number: int) -> None:
        ran.append(number)

    await work.enqueue(1)
    with jobs.override("memory://") as same:
        assert same is jobs
        assert not await jobs.process_one()
        await work.enqueue(2)
        assert await jobs.process_one()
        with jobs.override("memory://"):
            assert not await jobs.process_one()
    assert ran == [2]
    assert await jobs.process_one()
    assert ran == [2, 1]
    assert (await store.stats()).running == 0


async def test_override_is_undone_by_an_exception_too(store: FaultyBackend, jobs: JobQueue) -> None:
    with pytest.raises(KeyError), jobs.override("memory://"):
        raise KeyError
    await jobs.enqueue("work")
    assert (await counts(store)).ready == 1


async def test_a_store_given_as_an_object_is_shared_with_its_clock(jobs: JobQueue) -> None:
    """A test that moves the clock of the store it gave moves that of the queue."""
    store = MemoryBackend()

    @jobs.job
    async def work() -> None: ...

    with jobs.override(store):
        await work.options(delay="1h").enqueue()
        assert not await jobs.process_one()
        store.time_shift_s += 3600
        assert await jobs.process_one()


async def test_two_queues_on_memory_have_stores_of_their_own() -> None:
    one, other = JobQueue("memory://"), JobQueue("memory://")
    await one.enqueue("work")
    assert [queue.ready for queue in (await one.stats()).queues] == [1]
    assert (await other.stats()).queues == []
    assert await one.purge("default") == 1


def test_every_event_loop_has_connections_of_its_own(store: FaultyBackend, jobs: JobQueue) -> None:
    async def enqueue() -> None:
        await jobs.enqueue("work")
        await jobs.close()

    for _ in range(3):
        asyncio.run(enqueue())
    assert asyncio.run(store.stats()).queues[0].ready == 3
    assert len({call.args[0] for call in store.named("push")}) == 3


async def test_a_queue_is_an_async_context_manager_and_may_be_used_again(store: FaultyBackend, jobs: JobQueue) -> None:
    async with jobs:
        await jobs.enqueue("work")
    async with jobs as same:
        assert same is jobs
        await jobs.enqueue("work")
    assert (await counts(store)).ready == 2


async def test_stats_and_purge_look_after_the_store(jobs: JobQueue) -> None:
    await jobs.enqueue("work")
    await jobs.enqueue("work", delay=60)
    await jobs.enqueue("work", queue="mail")
    stats = {queue.queue: (queue.ready, queue.delayed) for queue in (await jobs.stats()).queues}
    assert stats == {"default": (1, 1), "mail": (1, 0)}
    assert await jobs.purge("default") == 2
    with pytest.raises(ConfigError):
        await jobs.purge("no such name")


def test_included_modules_are_imported_when_the_app_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "more_handlers_of_a_test.py").write_text("loaded = True\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    jobs = JobQueue("memory://", include=["more_handlers_of_a_test"])
    assert "more_handlers_of_a_test" not in sys.modules
    jobs.load()
    assert "more_handlers_of_a_test" in sys.modules


def test_load_refuses_a_handler_whose_types_cannot_be_stored(jobs: JobQueue) -> None:
    @jobs.job
    async def work(path: complex) -> None: ...

    with pytest.raises(ConfigError, match=r"work\(path: complex\) at .*test_queue\.py:\d+"):
        jobs.load()


def test_the_same_name_twice_is_refused_with_both_places(jobs: JobQueue) -> None:
    @jobs.job
    async def work() -> None: ...

    def other() -> None: ...

    with pytest.raises(ConfigError, match=r"(?s)taken.*test_queue\.py.*test_queue\.py"):
        jobs.job(name="work")(other)


def test_queues_are_those_of_the_handlers(jobs: JobQueue) -> None:
    @jobs.job(queue="mail")
    async def mail() -> None: ...

    @jobs.job
    async def work() -> None: ...

    assert jobs.queues() == ("mail", "default")


# -- where the jobs are: resolved at first use


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    ours = {key for key in os.environ if key.startswith("FASTJOBS_")} - {"FASTJOBS_CODEC"}
    clean = {key: value for key, value in os.environ.items() if key not in ours}
    root = str(Path(fastjobs.__file__).parent.parent)
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        env={**clean, "PYTHONPATH": root, "PYTHONDONTWRITEBYTECODE": "1", **environment},
        check=False,
    )


def test_the_url_is_resolved_at_first_use_not_at_import(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FASTJOBS_URL", raising=False)
    jobs = JobQueue()
    assert jobs.url == "memory://"
    monkeypatch.setenv("FASTJOBS_URL", "redis://somewhere:6379/3")
    assert jobs.url == "redis://somewhere:6379/3"
    assert jobs.store().url == "redis://somewhere:6379/3"
    assert JobQueue("memory://").url == "memory://"


def test_a_bad_url_in_the_environment_is_said_at_first_use() -> None:
    done = python(
        "import asyncio\nfrom fastjobs import JobQueue\njobs = JobQueue()\nprint('imported')\nasyncio.run(jobs.enqueue('x'))",
        FASTJOBS_URL="mysql://host",
    )
    assert done.stdout == "imported\n"
    assert "ConfigError" in done.stderr
    assert "names no store" in done.stderr


def test_making_a_queue_starts_no_thread_and_opens_nothing() -> None:
    done = python(
        "import threading, os\nbefore = set(os.listdir('/dev/fd'))\nfrom fastjobs import JobQueue\njobs = JobQueue()\n"
        "@jobs.job\nasync def work(n: int) -> None: ...\njobs.load()\ncall = work.prepare(1)\n"
        "print(threading.active_count(), len(set(os.listdir('/dev/fd')) - before))",
        FASTJOBS_URL="redis://localhost:1/0",
    )
    assert done.stdout == "1 0\n", done.stderr


ENDING = """
import asyncio
from fastjobs import JobQueue
jobs = JobQueue()
@jobs.job
async def work() -> None: ...
async def main():
    for _ in range({count}):
        await work.enqueue()
    for _ in range({run}):
        await jobs.process_one()
asyncio.run(main())
"""


@pytest.mark.parametrize(
    ("count", "run", "line"),
    [(0, 0, ""), (3, 3, ""), (1, 0, "1 job ends"), (3, 1, "2 jobs end"), (1_200, 0, "1,200 jobs end")],
)
def test_a_process_that_ends_with_undone_jobs_in_memory_says_so(count: int, run: int, line: str) -> None:
    done = python(ENDING.format(count=count, run=run))
    expected = f"fastjobs: {line} with this process: set FASTJOBS_URL or start fastjobs supervise\n" if line else ""
    assert (done.returncode, done.stderr) == (0, expected)


def test_a_forked_child_does_not_claim_its_parents_jobs() -> None:
    done = python(
        ENDING.format(count=2, run=0) + "import os, sys\npid = os.fork()\nif pid == 0:\n    sys.exit(0)\nos.waitpid(pid, 0)\n"
    )
    assert done.stderr.count("2 jobs end with this process") == 1
