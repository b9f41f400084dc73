"""Every exception that fastjobs raises.

::

    FastjobsError
    ├── ConfigError             a bad option, name, handler or URL; nothing was stored (also a ValueError)
    ├── SerializationError      a payload that cannot be stored, or stored bytes that cannot be read; `path` names the field
    ├── BackendError            the store refused or could not be reached
    │   ├── StoreUnavailable    connection refused, lost or timed out; the same call may be repeated
    │   ├── EnqueueUncertain    an enqueue gave up: the jobs in `job_ids` may or may not be stored
    │   ├── EnqueueManyError    `enqueue_many` stopped; `accepted` jobs are stored
    │   ├── SchemaError         the store's schema does not fit this version of fastjobs
    │   ├── StaleCall           a call number that its worker has already passed
    │   └── WorkerGone          the worker was given up or is unknown to the store; its claims belong to others
    ├── NotFoundError           no such dead letter, queue or job
    ├── TimeLimitExceeded       a run took longer than its time limit (also a TimeoutError); for exception filters
    ├── UnknownJobError         no handler of that name
    └── WorkerError             a worker or supervisor cannot go on
        └── AppImportError      the app's module cannot be imported, or names no JobQueue
"""

from __future__ import annotations

import functools
from collections.abc import Sequence


class FastjobsError(Exception):
    """Base of all errors of fastjobs."""


class ConfigError(FastjobsError, ValueError):
    """A bad option, name, handler or URL. Nothing was stored."""


class SerializationError(FastjobsError):
    """A payload that cannot be stored, or stored bytes that cannot be read.

    `path` is the field that is wrong, as in ``$.items[3].price``; empty if the whole payload is.
    """

    def __init__(self, message: str, *, path: str = "") -> None:
        super().__init__(message)
        self.path = path


class BackendError(FastjobsError):
    """The store refused a call or could not be reached."""


class StoreUnavailable(BackendError):
    """The connection was refused, lost or timed out. Repeating the same call is safe."""


class EnqueueUncertain(BackendError):
    """An enqueue gave up before the store confirmed it: each of `job_ids` may or may not be stored."""

    def __init__(self, message: str, *, job_ids: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.job_ids = tuple(job_ids)


class EnqueueManyError(BackendError):
    """`enqueue_many` stopped before the end. `accepted` jobs, the first ones in order, are stored.

    `uncertain` jobs after them may or may not be stored. `__cause__` is what went wrong.
    """

    def __init__(self, message: str, *, accepted: int, uncertain: int = 0) -> None:
        super().__init__(message)
        self.accepted = accepted
        self.uncertain = uncertain

    def __reduce__(self) -> tuple[object, ...]:  # out of a process pool
        return functools.partial(type(self), accepted=self.accepted, uncertain=self.uncertain), self.args


class SchemaError(BackendError):
    """The store's schema is missing, or its version does not fit this version of fastjobs."""


class StaleCall(BackendError):
    """A call number that its worker has already passed: a late duplicate. It changed nothing."""


class WorkerGone(BackendError):
    """The worker was given up or is unknown to the store. Its claims belong to others now."""


class NotFoundError(FastjobsError):
    """No such dead letter, queue or job."""


class TimeLimitExceeded(FastjobsError, TimeoutError):
    """A run took longer than its time limit. It stands in the job's history, and retry policies may name it.

    It is not raised in the handler: that is stopped by a cancellation, in a thread by an exception that only `finally` and
    `except BaseException` see, as one that `except TimeoutError` caught would keep the handler going.
    """


class UnknownJobError(FastjobsError):
    """No handler of that name is registered."""


class WorkerError(FastjobsError):
    """A worker or supervisor cannot go on."""


class AppImportError(WorkerError):
    """The app's module cannot be imported, or names no JobQueue."""
