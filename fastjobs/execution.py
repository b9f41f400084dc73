"""Run one claimed job to one outcome: resolve, decode, run, judge. Used by the worker and `process_one` alike."""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
import random
import traceback
from collections.abc import Awaitable, Callable, Mapping
from types import FrameType, TracebackType
from typing import Any, Final

from fastjobs import clock
from fastjobs.claims import OpenClaim
from fastjobs.context import JobContext, Running
from fastjobs.durations import duration_text
from fastjobs.envelope import NewerEnvelope, corrupt_job, encode_job, routed_entry
from fastjobs.errors import SerializationError, TimeLimitExceeded, UnknownJobError
from fastjobs.forks import end_copy
from fastjobs.ids import id_text
from fastjobs.model import Entry, Failure, Job, Kind, Outcome
from fastjobs.options import QueueOptions
from fastjobs.registry import Handler, Registry
from fastjobs.retry import Discard, Snooze, Verdict, after_failure, after_undecodable, after_unknown, known_again
from fastjobs.terms import Terms
from fastjobs.threads import JobThread, ThreadPool

log = logging.getLogger("fastjobs.job")

MESSAGE_LIMIT: Final = 2_000
"""Characters of an error message kept with a job."""

NAME_LIMIT: Final = 200
"""Characters of an exception type's name kept with a job."""

TRACEBACK_LIMIT: Final = 4_000
"""Characters of a traceback kept with a job: its end, where the cause stands."""


NEWER_DELAY_S: Final = 5.0
"""A job whose envelope only newer workers can read comes back after so long."""


class Runner(Running):
    """What is known of the run that a task is in: the job, its deadline, and how to stop it."""

    __slots__ = ("base", "cancelled_for", "deadline", "future", "item", "stopping_since", "task", "thread")

    def __init__(self, base: int = 0) -> None:
        super().__init__()
        self.base = base  #: index of its words in the worker's slot
        self.item: tuple[bytes, OpenClaim, int] | None = None  #: what it runs: the envelope, its claim, its index there
        self.task: asyncio.Task[Any] | None = None  #: that awaits the handler; for an isolated run, the run's own
        self.thread: JobThread | None = None  #: that runs a sync handler
        self.future: asyncio.Future[Any] | None = None  #: of that thread's call
        self.deadline: float | None = None  #: clock.monotonic
        self.cancelled_for: str | None = None  #: "timeout" or "drain" once this run was told to stop
        self.stopping_since = 0.0  #: clock.monotonic when it was told

    def stop(self, reason: str) -> None:
        """Tell the run to stop, for *reason*. It has stopped when `Execution.run` returns."""
        self.cancelled_for = reason
        self.stopping_since = clock.monotonic()
        self.deadline = None
        if self.thread is not None:
            assert self.future is not None
            self.thread.interrupt(self.future, Interrupted)
        elif self.task is not None:
            self.task.cancel()


class Interrupted(BaseException):
    """Raised in the thread of a sync handler that is to stop, because of its time limit or its worker's end."""


def entry_of(job: Job, delay_s: float = 0.0) -> Entry:
    """*job* as it is stored."""
    return Entry(job.id, job.queue, job.priority, encode_job(job), None, delay_s)


def outcome_of(index: int, verdict: Verdict) -> Outcome:
    """*verdict* on the job at *index* of its claim, for the store."""
    return Outcome(index, int(verdict.kind), entry_of(verdict.job, verdict.delay_s))


def set_aside(index: int, envelope: bytes, error: SerializationError, worker: str) -> Outcome:
    """What to do with an envelope that *worker* cannot read.

    One of a later version goes back untouched, for newer workers; any other is dead, its bytes kept as the payload.
    """
    if isinstance(error, NewerEnvelope):
        try:
            return Outcome(index, int(Kind.RETRY), routed_entry(envelope, NEWER_DELAY_S))
        except SerializationError as unreadable:
            error = unreadable
    log.error("an envelope of %d bytes cannot be read and is set aside as a dead letter: %s", len(envelope), error)
    job = corrupt_job(envelope, clock.wall())
    return outcome_of(index, after_undecodable(job, failure_of(job, "undecodable", error, worker)))


def clean_text(text: str, limit: int) -> str:
    """*text* cut to its last *limit* characters, storable as UTF-8."""
    if len(text) > limit:
        text = f"[{len(text) - limit} characters cut]…{text[-limit:]}"
    clean = text.encode("utf-8", "backslashreplace").decode()
    return clean if len(clean) <= 2 * limit else clean[-limit:]  # escapes are up to ten times as long


def failure_of(job: Job, kind: str, error: BaseException, worker: str) -> Failure:
    """*error* as an entry for *job*'s history, message and traceback cut at their limits."""
    try:
        message = str(error)
    except BaseException as broken:
        message = f"(its message cannot be shown: str() raised {type(broken).__name__})"
    frames = _from_the_handler_on(error.__traceback__)
    lines = traceback.format_exception(type(error), error, frames, limit=-20) if frames else []
    if len(message) > MESSAGE_LIMIT:
        message = f"{message[:MESSAGE_LIMIT]}… [{len(message) - MESSAGE_LIMIT} characters cut]"
    return Failure(
        at=clock.wall(),
        attempt=job.attempts + 1,
        kind=kind,
        error=_type(error),
        message=clean_text(message, 2 * MESSAGE_LIMIT),
        traceback=clean_text("".join(lines), TRACEBACK_LIMIT),
        worker=worker,
    )


def _from_the_handler_on(frames: TracebackType | None) -> TracebackType | None:
    """*frames* without ours above the handler's: they tell a user nothing. All of them if there are no others."""
    user = frames
    while user is not None and _is_ours(user.tb_frame):
        user = user.tb_next
    return user or frames


def _is_ours(frame: FrameType) -> bool:
    space = frame.f_globals
    if space.get("__package__") == __package__:
        return space.get("__name__") != f"{__package__}.demo"
    return frame.f_code.co_filename.startswith("<fastjobs")  # made by binding.py


class Execution:
    """Runs jobs for one worker. `state` is what the app's lifespan yielded; `worker` the worker's id, for histories."""

    def __init__(
        self,
        registry: Registry,
        queue_options: Mapping[str, QueueOptions],
        *,
        worker: str,
        state: Any = None,
        unknown_is_dead: bool = False,
        log_jobs: bool = False,
    ) -> None:
        self.registry = registry
        self.terms = Terms(registry, queue_options)
        self.worker = worker
        self.state = state
        self.unknown_is_dead = unknown_is_dead
        self.log_jobs = log_jobs
        self.is_cancelled: Callable[[], bool] = lambda: False
        """Whether whoever runs the jobs is being cancelled.

        If not, or if no one cancelled the run's task, a handler's CancelledError is an ordinary failure.
        """
        self.on_limit: Callable[[], None] = lambda: None
        """Called when a run under a time limit starts."""
        self.threads = ThreadPool()
        self._pid = os.getpid()
        self._rng = random.Random()  # nosec B311  # noqa: S311 - spreads retries, guards nothing

    async def run(self, job: Job, runner: Runner) -> Verdict | None:
        """Run *job* in this task. None: done. Never raises, but for a cancellation that neither job nor *runner* asked for."""
        handler = self.registry.get(job.name)
        if handler is None:
            return self._unknown(job)
        try:
            arguments = handler.read(job.payload)
        except Exception as error:
            return self._unreadable(job, handler, error, runner)
        runner.cancelled_for = None
        limit_s = job.timeout_s or handler.timeout_s or self.terms.queue_timeouts.get(job.queue)
        started = clock.monotonic() if limit_s or self.log_jobs else 0.0
        if limit_s:
            runner.deadline = started + limit_s
            self.on_limit()
        if self.log_jobs:
            log.info("→ %s %s", job.name, id_text(job.id))
        try:
            if handler.is_async and not handler.options.isolate:
                context = JobContext(job, self.terms.max_attempts(job, handler), self.state) if handler.wants_ctx else None
                result = await handler.call(context, arguments)
                if result is not None:
                    _refuse_awaitable(handler, result)
            else:
                await self._run_apart(job, handler, arguments, runner)
        except BaseException as error:
            return self._failed(job, handler, error, runner, limit_s, started)
        finally:
            runner.deadline = None
        if self.log_jobs:
            log.info("✓ %s %s in %s", job.name, id_text(job.id), duration_text(clock.monotonic() - started))
        return None

    def _unreadable(self, job: Job, handler: Handler, error: Exception, runner: Runner) -> Verdict:
        """The verdict on a job whose payload could not be read."""
        try:
            handler.decode(job.payload)
        except SerializationError as named:
            return self._judged(job, named, after_undecodable(job, failure_of(job, "undecodable", named, self.worker)), 0.0)
        except Exception as unresolved:  # a handler registered after the start, whose annotations cannot be resolved
            error = unresolved
        return self._failed(job, handler, error, runner, None, 0.0)

    async def _run_apart(self, job: Job, handler: Handler, arguments: Any, runner: Runner) -> None:
        """In a thread, or in a task of the job's own."""
        context = JobContext(job, self.terms.max_attempts(job, handler), self.state) if handler.wants_ctx else None
        result: Any
        if handler.is_async:
            result = handler.call(context, arguments)
        else:
            runner.thread, runner.future = self.threads.start(lambda: handler.call(context, arguments))
            try:
                result = await _to_its_end(runner.future, runner)
            finally:
                runner.thread = runner.future = None
        if handler.is_async or (handler.gives_coroutine and inspect.iscoroutine(result)):
            result = await (_in_own_task(result, runner) if handler.options.isolate else result)
        if result is not None:
            _refuse_awaitable(handler, result)

    def _failed(
        self, job: Job, handler: Handler, error: BaseException, runner: Runner, limit_s: float | None, started: float
    ) -> Verdict:
        """The verdict on a run that raised *error*; raises it again if it is a cancellation from outside."""
        if os.getpid() != self._pid:
            end_copy(handler.name)
        kind = "failed"
        if isinstance(error, (asyncio.CancelledError, Interrupted)) and runner.cancelled_for:
            if runner.cancelled_for == "drain":
                return Verdict(Kind.RELEASED, job)
            kind, error = "timeout", TimeLimitExceeded(f"still running after its time limit of {duration_text(limit_s or 0)}")
        elif isinstance(error, asyncio.CancelledError):
            task = asyncio.current_task()
            if task is not None and task.cancelling() and self.is_cancelled():
                raise error
        elif isinstance(error, Snooze):
            kind = "snoozed"
        elif isinstance(error, Discard):
            kind = "discarded"
        failure = failure_of(job, kind, error, self.worker)
        policy, allowed = self.terms.policy(job, handler), self.terms.max_attempts(job, handler)
        verdict = after_failure(known_again(job), error, failure, policy, allowed, self._rng)
        return self._judged(job, error, verdict, started)

    def _unknown(self, job: Job) -> Verdict:
        known = ", ".join(sorted(self.registry.names())[:20]) or "none"
        error = UnknownJobError(f"no handler named {job.name!r} in this worker; it knows: {known}")
        failure = failure_of(job, "unknown", error, self.worker)
        verdict = after_unknown(job, failure, dead=self.unknown_is_dead)
        return self._judged(job, error, verdict, 0.0)

    def _judged(self, job: Job, error: BaseException, verdict: Verdict, started: float) -> Verdict:
        """Say what became of the run: a dead job always, a retry at INFO."""
        name, id = job.name, id_text(job.id)
        if verdict.kind is Kind.DEAD:
            count = verdict.job.attempts
            attempts = "1 attempt" if count == 1 else f"{count} attempts"
            log.warning("✗ %s %s dead after %s: %s: %s", name, id, attempts, _type(error), _short(error))
        elif self.log_jobs or log.isEnabledFor(logging.INFO):
            delay = duration_text(verdict.delay_s)
            ran = f"attempt {job.attempts + 1}" if verdict.job.attempts > job.attempts else "no attempt"
            log.info("↻ %s %s again in %s, %s: %s: %s", name, id, delay, ran, _type(error), _short(error))
        return verdict


async def _in_own_task(call: Awaitable[Any], runner: Runner) -> Any:
    """The result of *call*, awaited in a task that is stopped in place of the runner's."""
    outer, own = runner.task, asyncio.ensure_future(_without_exit(call))
    runner.task = own
    try:
        result, exit = await _to_its_end(own, runner)
    finally:
        runner.task = outer
    if exit is not None:
        raise exit
    return result


async def _without_exit(call: Awaitable[Any]) -> tuple[Any, BaseException | None]:
    """The result of *call*, or the SystemExit or KeyboardInterrupt it raised.

    A task that ends with one of those raises it out of the whole event loop, whoever awaits the task.
    """
    try:
        return await call, None
    except (SystemExit, KeyboardInterrupt) as error:
        return None, error


def _refuse_awaitable(handler: Handler, result: object) -> None:
    """A function that returns a coroutine has not done its work: say so rather than call the job done."""
    if inspect.isawaitable(result):
        if inspect.iscoroutine(result):
            result.close()
        hint = "await it there" if handler.is_async else "make it `async def`"
        raise TypeError(f"{handler.name} at {handler.place} returned an awaitable that nobody awaited; {hint}")


async def _to_its_end(future: asyncio.Future[Any], runner: Runner) -> Any:
    """The result of *future*, once it has ended, also when this task is cancelled meanwhile.

    For the job's code must have stopped first. A thread cannot be cancelled; an isolated task is cancelled along.
    """
    cancelled: asyncio.CancelledError | None = None
    while not future.done():
        try:
            await asyncio.wait([future])
        except asyncio.CancelledError as error:
            cancelled = error
            if runner.thread is None:
                future.cancel()
    if cancelled is not None and runner.cancelled_for is None:
        if not future.cancelled():
            future.exception()  # it is seen: the cancellation outweighs it
        raise cancelled
    return future.result()


def _type(error: BaseException) -> str:
    return type(error).__qualname__[:NAME_LIMIT]


def _short(error: BaseException) -> str:
    try:
        text = str(error)
    except BaseException:
        return "(no message)"
    line = "".join(sign if sign.isprintable() else "?" for sign in " ".join(text[:1000].split()))  # harmless to a terminal
    return line if len(line) <= 300 else f"{line[:300]}…"
