"""One claimed job to one outcome, without a worker around it."""

from __future__ import annotations

import asyncio
import functools
import json
import logging
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastjobs import Discard, JobContext, JobQueue, QueueOptions, Retry, RetryPolicy, Snooze
from fastjobs import Job as JobClass
from fastjobs.calls import bounded_call
from fastjobs.envelope import decode_job, encode_job
from fastjobs.execution import MESSAGE_LIMIT, TRACEBACK_LIMIT, Execution, Runner, failure_of, outcome_of, set_aside
from fastjobs.ids import new_id
from fastjobs.model import ENVELOPE_VERSION, MOST_COUNTED, Failure, Job, Kind
from fastjobs.retry import Verdict


def a_job(name: str = "work", payload: Any = None, **fields: Any) -> Job:
    encoded = payload if isinstance(payload, bytes) else json.dumps(payload or {}).encode()
    return msgspec.structs.replace(Job(ENVELOPE_VERSION, 5, new_id(), name, "default", encoded, 1.7e9), **fields)


def execution_of(jobs: JobQueue, **options: Any) -> Execution:
    jobs.load()
    return Execution(jobs.registry, jobs.queue_options, worker="lease.1-0", **options)


async def run(jobs: JobQueue, job: Job, **options: Any) -> Verdict | None:
    runner = Runner()
    runner.task = asyncio.current_task()
    runner.job = job
    return await execution_of(jobs, **options).run(job, runner)


async def raising(error: BaseException, **handler: Any) -> Verdict:
    """The verdict on a run that raised *error*."""
    jobs = JobQueue("memory://")

    @jobs.job(**handler)
    async def work() -> None:
        raise error

    verdict = await run(jobs, a_job())
    assert verdict is not None
    decode_job(outcome_of(0, verdict).entry.envelope)  # it can be stored
    return verdict


def last(verdict: Verdict | None) -> Failure:
    assert verdict is not None
    assert verdict.job.history
    return verdict.job.history[-1]


async def test_a_run_that_returns_has_no_verdict() -> None:
    jobs, seen = JobQueue("memory://"), []

    @jobs.job
    async def work(path: str, width: int = 800) -> str:
        seen.append((path, width))
        return "ignored"

    assert await run(jobs, a_job(payload={"path": "a.png"})) is None
    assert seen == [("a.png", 800)]


async def test_the_context_says_what_the_handler_may_know() -> None:
    jobs, seen = JobQueue("memory://"), []

    @jobs.job(max_attempts=7)
    async def work(ctx: JobContext[str], path: str) -> None:
        seen.append(
            (ctx.attempt, ctx.max_attempts, ctx.losses, ctx.state, ctx.queue, ctx.name, ctx.last_error, ctx.job_id, path)
        )

    job = a_job(payload={"path": "a"}, attempts=2, losses=1, queue="mail")
    jobs.load()
    execution = Execution(jobs.registry, {}, worker="w", state="pool")
    runner = Runner()
    runner.task = asyncio.current_task()
    assert await execution.run(job, runner) is None
    (found,) = seen
    assert found[:7] == (3, 7, 1, "pool", "mail", "work", None)
    assert found[8] == "a"


@pytest.mark.parametrize(
    ("error", "kind", "recorded"),
    [
        (ValueError("no"), Kind.RETRY, "failed"),
        (Retry("busy", after=5), Kind.RETRY, "failed"),
        (Snooze(5), Kind.RETRY, None),
        (Discard("gone"), Kind.DEAD, "discarded"),
        (SystemExit(3), Kind.RETRY, "failed"),
        (KeyboardInterrupt(), Kind.RETRY, "failed"),
        (asyncio.CancelledError("mine"), Kind.RETRY, "failed"),
        (GeneratorExit(), Kind.RETRY, "failed"),
        (StopIteration(5), Kind.RETRY, "failed"),
        (StopAsyncIteration(), Kind.RETRY, "failed"),
        (TimeoutError(), Kind.RETRY, "failed"),
        (ExceptionGroup("many", [ValueError("one"), KeyError("two")]), Kind.RETRY, "failed"),
        (BaseExceptionGroup("many", [SystemExit(1)]), Kind.RETRY, "failed"),
        (MemoryError(), Kind.RETRY, "failed"),
        (RecursionError(), Kind.RETRY, "failed"),
    ],
    ids=lambda value: type(value).__name__,
)
async def test_whatever_a_handler_raises_becomes_a_verdict(error: BaseException, kind: Kind, recorded: str | None) -> None:
    verdict = await raising(error)
    assert verdict.kind is kind
    assert (verdict.job.history[-1].kind if verdict.job.history else None) == recorded


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), asyncio.CancelledError(), GeneratorExit(), ValueError()])
async def test_what_a_sync_handler_raises_becomes_a_verdict_too(error: BaseException) -> None:
    jobs = JobQueue("memory://")

    @jobs.job
    def work() -> None:
        raise error

    verdict = await run(jobs, a_job())
    assert verdict is not None
    assert verdict.kind is Kind.RETRY
    assert last(verdict).error == type(error).__name__


class Unprintable(Exception):
    def __str__(self) -> str:
        raise ValueError("str is broken")


class Exiting(Exception):
    def __str__(self) -> str:
        raise SystemExit(1)


class OddText(str):
    __slots__ = ()


class Subclassed(Exception):
    def __str__(self) -> str:
        return OddText("odd")


@pytest.mark.parametrize(
    "error",
    [
        Unprintable(),
        Exiting(),
        Subclassed(),
        ValueError("x" * 10_000_000),
        ValueError("nul \0 and half a pair \ud800"),
        ValueError("ü" * 100_000),
        type("E" * 1_000_000, (Exception,), {})("long name"),
        ExceptionGroup("deep", [ValueError("x" * 1_000_000)]),
    ],
    ids=["str-raises", "str-exits", "str-subclass", "10MB", "surrogate", "wide", "long-name", "group"],
)
async def test_an_exception_that_is_hard_to_keep_is_kept_all_the_same(error: Exception) -> None:
    verdict = await raising(error)
    assert verdict.kind is Kind.RETRY
    failure = last(verdict)
    assert len(failure.message) <= 2 * MESSAGE_LIMIT
    assert len(failure.traceback) <= TRACEBACK_LIMIT + 100
    assert len(encode_job(verdict.job)) < 50_000


async def test_an_exception_with_a_long_chain_of_causes_is_kept() -> None:
    error: Exception = ValueError("root")
    for number in range(2_000):
        try:
            raise RuntimeError(number) from error
        except RuntimeError as caused:
            error = caused
    failure = last(await raising(error))
    assert failure.message == "1999"
    assert len(failure.traceback) <= TRACEBACK_LIMIT + 100


async def test_a_failure_says_when_where_and_what() -> None:
    failure = last(await raising(ValueError("no such file")))
    assert (failure.error, failure.message, failure.attempt, failure.worker) == ("ValueError", "no such file", 1, "lease.1-0")
    assert failure.traceback.rstrip().endswith("ValueError: no such file")
    assert "raise error" in failure.traceback


@pytest.mark.parametrize("sync", [False, True])
async def test_a_stored_traceback_begins_with_the_handler(sync: bool) -> None:
    jobs = JobQueue("memory://")

    if sync:

        @jobs.job
        def work() -> None:
            raise ValueError("no")
    else:

        @jobs.job
        async def work() -> None:
            raise ValueError("no")

    frames = [line for line in last(await run(jobs, a_job())).traceback.splitlines() if line.startswith("  File ")]
    assert len(frames) == 1
    assert __file__ in frames[0]


async def test_a_cut_message_and_traceback_say_so() -> None:
    failure = last(await raising(ValueError("a" * 50_000)))
    assert failure.message.startswith("aaa")
    assert "48000 characters cut" in failure.message
    assert "characters cut" in failure.traceback


async def test_a_job_without_a_handler_is_put_off_with_what_is_known() -> None:
    jobs = JobQueue("memory://")

    @jobs.job
    async def resize() -> None: ...

    verdict = await run(jobs, a_job("rezise"))
    assert verdict is not None
    assert (verdict.kind, verdict.delay_s, verdict.job.attempts) == (Kind.RETRY, 1.0, 0)
    verdict = await run(jobs, a_job("rezise"), unknown_is_dead=True)
    assert verdict is not None
    assert verdict.kind is Kind.DEAD
    assert "it knows: resize" in last(verdict).message


@pytest.mark.parametrize(
    "payload", [b"", b"{", b"\xff", b"[]", b"null", b'{"width": 5}', b'{"path": 5}', b'{"path":"a","more":1}', b"[" * 100_000]
)
async def test_a_payload_that_does_not_fit_makes_the_job_dead_byte_for_byte(payload: bytes) -> None:
    jobs = JobQueue("memory://")

    @jobs.job
    async def work(path: str) -> None:
        raise AssertionError("it must not run")

    verdict = await run(jobs, a_job(payload=payload or b" "))
    assert verdict is not None
    assert (verdict.kind, verdict.job.payload) == (Kind.DEAD, payload or b" ")
    assert last(verdict).kind == "undecodable"


@pytest.mark.parametrize(
    "payload", [b'{"sizes": {"1": 1, "a"]}', b'{"sizes": {"1": 1, "a": "\xff"}}', b'{"sizes": {"1": 1}' + b"[" * 5_000]
)
async def test_a_payload_that_does_not_fit_and_is_no_json_behind_that_makes_the_job_dead_too(payload: bytes) -> None:
    jobs = JobQueue("memory://")

    @jobs.job
    async def pack(sizes: dict[int, tuple[int, str]]) -> None: ...

    verdict = await run(jobs, a_job("pack", payload))
    assert verdict is not None
    assert (verdict.kind, verdict.job.payload) == (Kind.DEAD, payload)
    assert last(verdict).kind == "undecodable"


async def test_a_handler_whose_annotations_cannot_be_resolved_fails_its_jobs_not_its_worker() -> None:
    jobs = JobQueue("memory://")
    execution = execution_of(jobs)

    @jobs.job
    async def work(thing: "Nowhere") -> None: ...  # type: ignore[name-defined]  # noqa: F821, UP037

    runner = Runner()
    runner.task = asyncio.current_task()
    verdict = await execution.run(a_job(payload={"thing": 1}), runner)
    assert verdict is not None
    assert verdict.kind is Kind.RETRY
    assert "Nowhere" in last(verdict).message


@pytest.mark.parametrize(
    ("enqueue", "handler", "queue", "delay_s"),
    [(None, None, None, 2.0), (None, None, 5, 5.0), (None, 7, 5, 7.0), (9, 7, 5, 9.0)],
)
async def test_the_nearest_retry_policy_wins(
    enqueue: float | None, handler: float | None, queue: float | None, delay_s: float
) -> None:
    def policy(base: float | None) -> RetryPolicy | None:
        return None if base is None else RetryPolicy(base=base)

    jobs = JobQueue("memory://", queues={"default": QueueOptions(retry=policy(queue))})

    @jobs.job(retry=policy(handler))
    async def work() -> None:
        raise ValueError

    entry = bounded_call(jobs.shape_of(jobs.registry.get("work"), _options(retry=policy(enqueue))), b"{}").entry()
    verdict = await run(jobs, decode_job(entry.envelope))
    assert verdict is not None
    assert verdict.delay_s == delay_s


def _options(**options: Any) -> Any:
    from fastjobs import EnqueueOptions

    return EnqueueOptions(**options)


async def test_the_handlers_exception_filters_hold_under_the_policy_of_an_enqueue() -> None:
    jobs = JobQueue("memory://")

    @jobs.job(retry=RetryPolicy(dead_on=(ValueError,)))
    async def work() -> None:
        raise ValueError

    entry = bounded_call(jobs.shape_of(jobs.registry.get("work"), _options(retry=RetryPolicy(base=3))), b"{}").entry()
    verdict = await run(jobs, decode_job(entry.envelope))
    assert verdict is not None
    assert verdict.kind is Kind.DEAD


@pytest.mark.parametrize(
    ("enqueue", "handler", "queue", "runs"),
    [(None, None, None, 20), (None, None, 4, 4), (None, 3, 4, 3), (2, 3, 4, 2), (5, 3, 1, 5)],
)
async def test_the_nearest_max_attempts_wins(enqueue: int | None, handler: int | None, queue: int | None, runs: int) -> None:
    jobs, ran = JobQueue("memory://", queues={"default": QueueOptions(max_attempts=queue)}), []

    @jobs.job(max_attempts=handler)
    async def work(ctx: JobContext) -> None:
        ran.append((ctx.attempt, ctx.max_attempts))
        raise ValueError

    job = decode_job(
        bounded_call(jobs.shape_of(jobs.registry.get("work"), _options(max_attempts=enqueue)), b"{}").entry().envelope
    )
    while True:
        verdict = await run(jobs, job)
        assert verdict is not None
        job = verdict.job
        if verdict.kind is Kind.DEAD:
            break
    assert ran == [(attempt, runs) for attempt in range(1, runs + 1)]


async def test_a_dead_job_is_always_logged_with_its_error(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "fastjobs.job"):
        await raising(Discard("no such user"))
    assert "✗ work" in caplog.text
    assert "no such user" in caplog.text


async def test_an_envelope_that_cannot_be_read_is_dead_with_its_bytes() -> None:
    envelope = b"\x9enonsense"
    with pytest.raises(Exception, match="unreadable") as caught:
        decode_job(envelope)
    outcome = set_aside(3, envelope, caught.value, "w")  # type: ignore[arg-type]
    assert (outcome.index, outcome.kind) == (3, Kind.DEAD)
    assert decode_job(outcome.entry.envelope).payload == envelope


counts = st.integers(0, MOST_COUNTED)
hostile = st.builds(
    Job,
    st.just(ENVELOPE_VERSION),
    st.integers(0, 9),
    st.binary(min_size=16, max_size=16),
    st.just("work"),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=5),
    st.sampled_from([b"{}", b"", b"\xff"]),
    st.floats(),
    counts,
    counts,
    st.none() | st.integers(1, MOST_COUNTED),
    st.integers(1, MOST_COUNTED),
    st.none() | st.floats(1e-9, 1e10),
    st.none()
    | st.dictionaries(st.sampled_from(["retry", "snoozes", "unknown_s"]), st.binary(min_size=1, max_size=1).map(msgspec.Raw)),
    st.none(),
)


@given(hostile, st.sampled_from([None, ValueError("x"), Retry(), Snooze(1), Discard()]))
def test_any_job_that_can_be_read_comes_to_a_verdict_that_can_be_stored(job: Job, error: Exception | None) -> None:
    jobs = JobQueue("memory://")

    @jobs.job
    async def work() -> None:
        if error is not None:
            raise error

    try:
        job = decode_job(encode_job(job))
    except Exception:
        return
    verdict = asyncio.run(run(jobs, job))
    if verdict is not None:
        outcome_of(0, verdict)


def test_a_failure_without_a_traceback_is_kept() -> None:
    assert failure_of(a_job(), "failed", ValueError("no"), "w").traceback == ""


def handing_on(function: Callable[..., Any]) -> Callable[..., Any]:
    """A decorator whose plain wrapper returns the coroutine."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return call


def running(function: Callable[..., Any]) -> Callable[..., Any]:
    """One whose wrapper runs it to its end by itself."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        return asyncio.run(function(*args, **kwargs))

    return call


@pytest.mark.parametrize("isolate", [False, True])
@pytest.mark.parametrize("decorator", [handing_on, running])
async def test_an_async_function_in_a_plain_wrapper_runs_once(
    decorator: Callable[[Callable[..., Any]], Callable[..., Any]], isolate: bool
) -> None:
    jobs, ran = JobQueue("memory://"), []

    @jobs.job(isolate=isolate)
    @decorator
    async def work() -> None:
        await asyncio.sleep(0)
        ran.append(1)

    class Wrapped(JobClass[int]):
        @decorator
        async def execute(self, ctx: JobContext[Any], data: int) -> None:
            ran.append(data)

    jobs.register_job(Wrapped())
    assert await run(jobs, a_job()) is None
    assert await run(jobs, a_job("Wrapped", payload=b"2")) is None
    assert ran == [1, 2]


@pytest.mark.parametrize("isolate", [False, True])
async def test_an_async_handler_that_returns_what_it_should_have_awaited_has_failed(isolate: bool) -> None:
    jobs = JobQueue("memory://")

    async def other() -> None: ...

    @jobs.job(isolate=isolate)
    async def work() -> Any:
        return other()

    failure = last(await run(jobs, a_job()))
    assert failure.message.endswith("returned an awaitable that nobody awaited; await it there")


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), asyncio.CancelledError(), GeneratorExit(), ValueError()])
async def test_what_an_isolated_handler_raises_becomes_a_verdict_too(error: BaseException) -> None:
    verdict = await raising(error, isolate=True)
    assert (verdict.kind, last(verdict).error) == (Kind.RETRY, type(error).__name__)
