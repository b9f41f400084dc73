"""Prepared calls and the options of one enqueue: calls as values, and whose option wins."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

import fastjobs
from fastjobs import (
    ConfigError,
    EnqueueOptions,
    JobQueue,
    QueueOptions,
    RetryPolicy,
    SerializationError,
)
from fastjobs.envelope import decode_job
from tests.faults import FaultyBackend
from tests.working import counts, payload, stored

# -- prepared calls


async def test_a_prepared_call_is_a_value_that_enqueue_takes(store: FaultyBackend, jobs: JobQueue) -> None:
    @jobs.job
    async def resize(path: str) -> None: ...

    call = resize.options(priority=9, max_attempts=2).prepare("a.png")
    assert await counts(store) == fastjobs.QueueStats("default", 0, 0, 0)
    first, second = await jobs.enqueue(call), await jobs.enqueue(call)
    assert first.id != second.id
    assert [(job.priority, job.max_attempts) for job in await stored(store)] == [(9, 2), (9, 2)]


def test_a_handle_is_compiled_once_however_it_is_called(jobs: JobQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    @jobs.job
    def resize(path: str, width: int = 800) -> None: ...

    compiled = list[object]()
    bind_into = type(resize.handler).bind_into
    monkeypatch.setattr(type(resize.handler), "bind_into", lambda *given: compiled.append(given) or bind_into(*given))
    held = resize.prepare  # from before the first call
    calls = [held("a.png"), resize.prepare("a.png"), held(path="a.png"), resize.prepare("a.png")]
    assert len(compiled) == 1
    assert {call.payload for call in calls} == {b'{"path":"a.png"}'}
    for prepare in (held, resize.prepare):
        with pytest.raises(TypeError, match=r"resize\(\) missing 1 required positional argument: 'path'"):
            prepare()


async def test_a_prepared_call_takes_no_further_arguments_or_options(jobs: JobQueue) -> None:
    @jobs.job
    async def resize(path: str) -> None: ...

    call = resize.prepare("a.png")
    with pytest.raises(ConfigError, match=r"f\.options\(…\)\.prepare\(…\)"):
        await jobs.enqueue(call, priority=9)
    with pytest.raises(ConfigError, match=r"f\.options\(…\)\.prepare\(…\)"):
        await jobs.enqueue(call, {"path": "b"})


async def test_wrong_arguments_are_refused_as_python_would(jobs: JobQueue) -> None:
    @jobs.job
    async def resize(path: str, *, width: int = 800) -> None: ...

    calls: list[Callable[[], Any]] = [
        lambda: resize.prepare(),
        lambda: resize.prepare("a", 5),
        lambda: resize.prepare("a", height=5),
        lambda: resize.prepare("a", path="b"),
    ]
    for call in calls:
        with pytest.raises(TypeError, match="resize"):
            call()
    with pytest.raises(SerializationError) as caught:
        resize.prepare("a", width="wide")
    assert caught.value.path == "$.width"


async def test_a_payload_over_the_limit_is_refused_with_both_sizes(store: FaultyBackend) -> None:
    jobs = JobQueue(store, max_payload_bytes=100)

    @jobs.job
    async def work(text: str) -> None: ...

    work.prepare("x" * 80)
    with pytest.raises(SerializationError, match=r"1,0\d\d bytes is over the limit of 100"):
        work.prepare("x" * 1_000)
    with pytest.raises(SerializationError, match="over the limit"):
        jobs.prepare("by-name", {"text": "x" * 1_000})


def test_what_calls_are_made_of_cannot_be_changed_afterwards(store: FaultyBackend) -> None:
    """Functions have taken it over when they were registered."""
    jobs = JobQueue(store, queues={"mail": QueueOptions(priority=9)})
    with pytest.raises(TypeError):
        jobs.queue_options["mail"] = QueueOptions()  # type: ignore[index]
    with pytest.raises(AttributeError):
        jobs.max_payload_bytes = 10  # type: ignore[misc]
    assert jobs.max_payload_bytes == 1024 * 1024


def test_a_name_is_called_as_its_handler_has_it_from_when_there_is_one(jobs: JobQueue) -> None:
    def place_of(options: EnqueueOptions | None = None) -> tuple[str, int]:
        envelope = decode_job(jobs.prepare("late", {}, options).entry().envelope)
        return envelope.queue, envelope.priority

    assert [place_of() for _ in range(3)] == [("default", 5)] * 3

    @jobs.job(queue="mail", priority=7)
    async def late() -> None: ...

    assert [place_of() for _ in range(3)] == [("mail", 7)] * 3
    assert place_of(EnqueueOptions(priority=1)) == ("mail", 1)
    assert place_of() == ("mail", 7)


def test_names_made_up_at_run_time_do_not_fill_the_memory(jobs: JobQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastjobs.queue.MOST_SHAPES", 10)
    for number in range(100):
        assert jobs.prepare(f"name{number % 50}", {}).name == f"name{number % 50}"
    assert len(jobs._shapes) <= 10


# -- options, nearest wins


async def test_options_stand_apart_from_arguments_of_the_same_name(store: FaultyBackend, jobs: JobQueue) -> None:
    @jobs.job
    async def work(queue: str, priority: int, delay: float) -> None: ...

    await work.options(queue="mail", priority=9).enqueue("q", 1, 2.5)
    (job,) = await stored(store, "mail")
    assert (job.priority, payload(job)) == (9, {"queue": "q", "priority": 1, "delay": 2.5})


@pytest.mark.parametrize(
    ("enqueue", "handler", "queue", "expected"),
    [(None, None, None, 5), (None, None, 2, 2), (None, 0, 2, 0), (9, 0, 2, 9), (0, 8, 7, 0)],
)
async def test_the_nearest_priority_wins(
    store: FaultyBackend, enqueue: int | None, handler: int | None, queue: int | None, expected: int
) -> None:
    jobs = JobQueue(store, queues={"default": QueueOptions(priority=queue)})

    @jobs.job(priority=handler)
    async def work() -> None: ...

    await work.options(priority=enqueue).enqueue()
    assert [job.priority for job in await stored(store)] == [expected]


async def test_the_options_of_the_queue_that_an_enqueue_chose_count(store: FaultyBackend) -> None:
    jobs = JobQueue(store, queues={"slow": QueueOptions(priority=1)})

    @jobs.job
    async def work() -> None: ...

    await work.options(queue="slow").enqueue()
    assert [job.priority for job in await stored(store, "slow")] == [1]


async def test_what_an_enqueue_says_travels_with_the_job(store: FaultyBackend, jobs: JobQueue) -> None:
    @jobs.job(max_losses=9)
    async def work() -> None: ...

    await work.options(max_attempts=4, timeout="90s", retry=RetryPolicy(base=3), max_losses=7).enqueue()
    await work.enqueue()
    one, other = await stored(store)
    assert (one.max_attempts, one.timeout_s, one.max_losses) == (4, 90.0, 7)
    assert one.headers is not None
    assert (other.max_attempts, other.timeout_s, other.max_losses, other.headers) == (None, None, 9, None)


async def test_a_delay_and_a_time_put_the_job_off(store: FaultyBackend, jobs: JobQueue) -> None:
    @jobs.job
    async def work() -> None: ...

    await work.options(delay="5m").enqueue()
    await work.options(run_at=datetime.now(UTC) + timedelta(hours=1)).enqueue()
    await work.options(run_at=datetime.now(UTC) - timedelta(hours=1)).enqueue()
    await work.options(delay=0).enqueue()
    found = await counts(store)
    assert (found.ready, found.delayed) == (2, 2)


@pytest.mark.parametrize("options", [{"tries": 3}, {"countdown": 5}, {"eta": 5, "queue": "mail"}])
async def test_an_option_that_does_not_exist_is_refused_with_those_that_do(jobs: JobQueue, options: dict[str, Any]) -> None:
    @jobs.job
    async def work() -> None: ...

    for call in (lambda: work.options(**options), lambda: jobs.make_call("work", {}, None, (), options)):  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match="max_attempts"):
            call()
    with pytest.raises(ConfigError, match="there are: name, queue"):
        jobs.job(**options)


async def test_options_may_come_as_an_object_or_as_keywords_but_not_both(store: FaultyBackend, jobs: JobQueue) -> None:
    await jobs.enqueue("work", {}, EnqueueOptions(priority=1))
    await jobs.enqueue("work", {}, priority=2)
    assert [job.priority for job in await stored(store)] == [2, 1]
    with pytest.raises(ConfigError, match="not both"):
        await jobs.enqueue("work", {}, EnqueueOptions(priority=1), queue="mail")
