"""Options: frozen, checked once when built, and the only list of their fields. Unset is None where another may say.

"Nearest wins": what an enqueue says over what its handler says over what its queue says over the default.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from fastjobs.durations import Duration, duration_s, epoch_s
from fastjobs.errors import ConfigError
from fastjobs.model import MAX_PRIORITY
from fastjobs.retry import RetryPolicy, carry_policy

MAX_NAME = 200
"""Longest job or queue name, in characters."""


def check_name(name: object, field: str) -> str:
    """*name* if it can name a job or a queue; ConfigError naming *field* otherwise."""
    if not isinstance(name, str) or not 0 < len(name) <= MAX_NAME or not name.isprintable() or " " in name:
        raise ConfigError(f"{field}: must be 1 to {MAX_NAME} printable characters without spaces, got {name!r:.250}")
    return name


def check_queues(queues: object) -> tuple[str, ...]:
    """*queues* as a tuple of names, each once. ConfigError if it is none, or empty."""
    if isinstance(queues, str) or not isinstance(queues, Iterable):
        raise ConfigError(f'queues: must be a list of queue names, ["mail", "video"], got {queues!r:.250}')
    names = tuple(dict.fromkeys(check_name(queue, "queues") for queue in queues))
    if not names:
        raise ConfigError("queues: name at least one queue")
    return names


def check_int(value: object, field: str, low: int, high: int, hint: str = "") -> None:
    """ConfigError naming *field* unless *value* is None or a whole number from *low* to *high*."""
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int):
        raise ConfigError(f"{field}: must be a whole number from {low} to {high:,}, got {value!r}")
    if not low <= value <= high:
        raise ConfigError(f"{field}: must be from {low} to {high:,}, got {value}{hint}")


def check_bool(value: object, field: str) -> None:
    """ConfigError naming *field* unless *value* is True or False."""
    if not isinstance(value, bool):
        raise ConfigError(f"{field}: must be True or False, got {value!r}")


def _check_common(owner: str, priority: object, max_attempts: object, timeout: Duration | None, retry: object) -> None:
    check_int(priority, f"{owner}(priority)", 0, MAX_PRIORITY)
    check_int(max_attempts, f"{owner}(max_attempts)", 1, 1_000_000, "; it counts runs, so for no retries use 1")
    if timeout is not None:
        duration_s(timeout, f"{owner}(timeout)", zero=False)
    if retry is not None and not isinstance(retry, RetryPolicy):
        raise ConfigError(f"{owner}(retry): must be a RetryPolicy, got {retry!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class EnqueueOptions:
    """Options of one enqueue. `run_at` and `delay` exclude each other."""

    queue: str | None = None  #: default: the handler's
    priority: int | None = None  #: 9 first, 0 last; default: the handler's, the queue's, or 5
    delay: Duration | None = None  #: not before so long from now, by the store's clock
    run_at: datetime | None = None  #: not before then; aware
    max_attempts: int | None = None  #: runs in all; default: the handler's, the queue's, or 20
    timeout: Duration | None = None  #: of one run, from the handler's start; default: the handler's, the queue's, or none
    retry: RetryPolicy | None = None  #: without exception filters; default: the handler's, the queue's, or 2**attempts seconds
    max_losses: int | None = None  #: worker deaths before the job can be dead of them; default: the handler's, or 3

    def __post_init__(self) -> None:
        if self.queue is not None:
            check_name(self.queue, "EnqueueOptions(queue)")
        _check_common("EnqueueOptions", self.priority, self.max_attempts, self.timeout, self.retry)
        check_int(self.max_losses, "EnqueueOptions(max_losses)", 1, 1_000)
        if self.retry is not None:
            carry_policy(self.retry)
        if self.delay is not None:
            duration_s(self.delay, "EnqueueOptions(delay)")
        if self.run_at is not None:
            epoch_s(self.run_at, "EnqueueOptions(run_at)")
            if self.delay is not None:
                raise ConfigError("EnqueueOptions(run_at): cannot stand beside a delay; give one of them")


@dataclass(frozen=True, slots=True, kw_only=True)
class HandlerOptions:
    """Options of one handler, as `@jobs.job(…)` takes them."""

    name: str | None = None  #: default: the function's name
    queue: str | None = None  #: default: "default"
    priority: int | None = None
    max_attempts: int | None = None
    timeout: Duration | None = None
    retry: RetryPolicy | None = None
    max_losses: int | None = None
    ctx: bool | None = None  #: True: the first parameter, Any or without annotation, is the JobContext; False: it is not
    check: bool = True  #: False: arguments are not decoded again at the enqueue to check them
    isolate: bool = False  #: True: each run in a task of its own, for libraries keyed by the current task

    def __post_init__(self) -> None:
        if self.name is not None:
            check_name(self.name, "job(name)")
        if self.queue is not None:
            check_name(self.queue, "job(queue)")
        _check_common("job", self.priority, self.max_attempts, self.timeout, self.retry)
        check_int(self.max_losses, "job(max_losses)", 1, 1_000)
        for field in ("check", "isolate") if self.ctx is None else ("check", "isolate", "ctx"):
            check_bool(getattr(self, field), f"job({field})")


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueOptions:
    """What the jobs of one queue get where neither enqueue nor handler says."""

    priority: int | None = None
    max_attempts: int | None = None
    timeout: Duration | None = None
    retry: RetryPolicy | None = None

    def __post_init__(self) -> None:
        _check_common("QueueOptions", self.priority, self.max_attempts, self.timeout, self.retry)


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerOptions:
    """Options of one worker process."""

    concurrency: int = 100  #: jobs at once per process, 1 to 10,000
    queues: Sequence[str] | None = None  #: queues to serve; default: those of the registered handlers
    grace: Duration = 25.0  #: to finish what runs after SIGTERM (Kubernetes kills at 30)
    batch: int = 1_000  #: most jobs of one claim, 1 to 10,000
    lease_ttl: Duration = 15.0  #: after this long without renewal, seen by others, the worker's jobs are theirs
    unknown: Literal["wait", "dead"] = "wait"  #: jobs without a handler: wait an hour for a worker that has it, or dead
    log_jobs: bool = False  #: a log line per job (costs more than a small job does)
    max_jobs: int | None = None  #: a supervised worker takes at most so many jobs and is replaced
    max_rss_mb: int | None = None  #: replace a supervised worker once its resident memory is above so many MiB

    def __post_init__(self) -> None:
        for field in ("concurrency", "batch"):
            if getattr(self, field) is None:
                raise ConfigError(f"{field}: must be a whole number from 1 to 10,000, got None")
            check_int(getattr(self, field), field, 1, 10_000)
        check_bool(self.log_jobs, "log_jobs")
        check_int(self.max_jobs, "max_jobs", 1, 10**15)
        check_int(self.max_rss_mb, "max_rss_mb", 1, 10**9)
        duration_s(self.grace, "grace")
        duration_s(self.lease_ttl, "lease_ttl", zero=False)
        if self.unknown not in ("wait", "dead"):
            raise ConfigError(f'unknown: must be "wait" or "dead", got {self.unknown!r}')
        if self.queues is not None:
            object.__setattr__(self, "queues", check_queues(self.queues))

    @property
    def grace_s(self) -> float:
        """`grace` in seconds."""
        return duration_s(self.grace, "grace")

    @property
    def lease_ttl_s(self) -> float:
        """`lease_ttl` in seconds."""
        return duration_s(self.lease_ttl, "lease_ttl")
