"""What a handler may know about the run it is in."""

from __future__ import annotations

import logging
from collections.abc import MutableMapping
from contextvars import ContextVar
from datetime import datetime
from typing import TYPE_CHECKING, Any, Generic

from fastjobs import clock
from fastjobs.durations import epoch_s
from fastjobs.ids import id_text, new_id, parse_id
from fastjobs.model import DEFAULT_MAX_ATTEMPTS, DEFAULT_PRIORITY, DEFAULT_QUEUE, ENVELOPE_VERSION, Failure, Job

if TYPE_CHECKING:
    from typing_extensions import TypeVar

    # None, as the state of an app without a lifespan is. With Any, mypy could not tell whether a function takes a context: an
    # argument with Any in it matches both overloads of the decorator, and its handle's calls would go unchecked.
    S = TypeVar("S", default=None)
else:
    from typing import TypeVar

    S = TypeVar("S")

JOB_LOGGER = logging.getLogger("fastjobs.job")


class Running:
    """Holds the job that a runner runs now; one per runner, in its context, so that log records find it at no cost per job."""

    __slots__ = ("job",)

    def __init__(self) -> None:
        self.job: Job | None = None


running: ContextVar[Running | None] = ContextVar("fastjobs_running", default=None)
"""The runner that this task or thread works for."""


class JobContext(Generic[S]):
    """One run of one job, as its handler sees it.

    `S` is the type of `state`, what the app's lifespan yielded: ``ctx: JobContext[Pool]``; None for an app without one.
    """

    __slots__ = ("_job", "max_attempts", "state")

    def __init__(self, job: Job, max_attempts: int, state: S) -> None:
        self._job = job
        self.max_attempts = max_attempts  #: runs in all, this one and the past ones included
        self.state: S = state  #: what the lifespan yielded in this process; None without one

    @property
    def job_id(self) -> str:
        """The job's id, as `JobHandle.id` had it."""
        return id_text(self._job.id)

    @property
    def name(self) -> str:
        """The job's name."""
        return self._job.name

    @property
    def queue(self) -> str:
        """The queue it came from."""
        return self._job.queue

    @property
    def attempt(self) -> int:
        """Which run this is, 1-based."""
        return self._job.attempts + 1

    @property
    def losses(self) -> int:
        """How many workers died while running this job; they count as no attempt."""
        return self._job.losses

    @property
    def created_at(self) -> datetime:
        """When it was enqueued, by the producer's clock, in UTC."""
        return clock.as_datetime(self._job.created_at)

    @property
    def last_error(self) -> Failure | None:
        """How the run before this one failed; None on the first."""
        return self._job.history[-1] if self._job.history else None

    @property
    def log(self) -> logging.LoggerAdapter[logging.Logger]:
        """A logger whose records and messages carry the job's name and id."""
        return JobLogger(JOB_LOGGER, {"job_id": self.job_id, "job_name": self.name})

    @classmethod
    def for_test(
        cls,
        *,
        state: Any = None,
        job_id: str | None = None,
        name: str = "test",
        queue: str = DEFAULT_QUEUE,
        attempt: int = 1,
        max_attempts: int = DEFAULT_MAX_ATTEMPTS,
        losses: int = 0,
        created_at: datetime | None = None,
        last_error: Failure | None = None,
    ) -> JobContext[Any]:
        """A context to call a handler with in a unit test. ValueError for an id or time that a job cannot have."""
        created = clock.wall() if created_at is None else epoch_s(created_at, "for_test(created_at)")
        id = new_id() if job_id is None else parse_id(job_id)
        job = Job(ENVELOPE_VERSION, DEFAULT_PRIORITY, id, name, queue, b"{}", created)
        job.attempts, job.losses = attempt - 1, losses
        job.history = None if last_error is None else [last_error]
        return JobContext(job, max_attempts, state)

    def __repr__(self) -> str:
        return f"<JobContext {self.name} {self.job_id} attempt {self.attempt} of {self.max_attempts}>"


class JobLogger(logging.LoggerAdapter[logging.Logger]):
    """Puts the job's name and id before each message, and on the record."""

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        assert self.extra is not None
        kwargs["extra"] = {**(kwargs.get("extra") or {}), **self.extra}
        return f"{self.extra['job_name']} {self.extra['job_id']}: {msg}", kwargs


class JobRecordFilter(logging.Filter):
    """Gives every record `job_id` and `job_name`, of the job that logs it, "" outside jobs. For handlers, not loggers."""

    def filter(self, record: logging.LogRecord) -> bool:
        if not hasattr(record, "job_id"):
            runner = running.get()
            job = runner.job if runner is not None else None
            record.job_id = id_text(job.id) if job is not None else ""
            record.job_name = job.name if job is not None else ""
        return True
