"""fastjobs: background jobs that are fast, never lost, and pleasant to write.

from fastjobs import JobQueue

jobs = JobQueue()

@jobs.job
async def resize(path: str, width: int = 800) -> None: ...

await resize.enqueue("a.png", width=400)     # then, in a shell: fastjobs supervise -n 8 shop:jobs
"""

from fastjobs.calls import Call, JobFunction, JobHandle
from fastjobs.context import JobContext
from fastjobs.errors import (
    AppImportError,
    BackendError,
    ConfigError,
    EnqueueManyError,
    EnqueueUncertain,
    FastjobsError,
    NotFoundError,
    SchemaError,
    SerializationError,
    StoreUnavailable,
    TimeLimitExceeded,
    UnknownJobError,
    WorkerError,
)
from fastjobs.joblike import Job
from fastjobs.model import Failure, QueueStats, Stats
from fastjobs.options import EnqueueOptions, HandlerOptions, QueueOptions, WorkerOptions
from fastjobs.queue import JobQueue
from fastjobs.retry import Discard, Retry, RetryPolicy, Snooze

__version__ = "0.1.0"

__all__ = [
    "AppImportError",
    "BackendError",
    "Call",
    "ConfigError",
    "Discard",
    "EnqueueManyError",
    "EnqueueOptions",
    "EnqueueUncertain",
    "Failure",
    "FastjobsError",
    "HandlerOptions",
    "Job",
    "JobContext",
    "JobFunction",
    "JobHandle",
    "JobQueue",
    "NotFoundError",
    "QueueOptions",
    "QueueStats",
    "Retry",
    "RetryPolicy",
    "SchemaError",
    "SerializationError",
    "Snooze",
    "Stats",
    "StoreUnavailable",
    "TimeLimitExceeded",
    "UnknownJobError",
    "WorkerError",
    "WorkerOptions",
]
