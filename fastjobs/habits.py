"""Calls as other libraries take them: refused with the right one shown.

`enqueue(func, *args)` is RQ's and arq's way, a coroutine is what `await f(…)` without the `await` leaves.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from fastjobs.calls import JobFunction
from fastjobs.errors import ConfigError
from fastjobs.joblike import Job
from fastjobs.options import EnqueueOptions


def refuse_foreign(job: object, data: object, rest: tuple[object, ...], keywords: Mapping[str, object]) -> None:
    """ConfigError if what `enqueue` was given is no call of ours: *job*, *data*, and *rest* behind the options."""
    if inspect.iscoroutine(job):
        raise ConfigError(_of_coroutine(job))
    if isinstance(job, JobFunction):
        foreign = keywords.keys() - EnqueueOptions.__dataclass_fields__.keys()
        if rest or foreign or (data is not None and not isinstance(data, Mapping)):
            raise ConfigError(f"enqueue: use {job.name}.enqueue(…) with its arguments, or enqueue({job.name}.prepare(…))")
    elif callable(job) and not isinstance(job, (Job, type)):
        name = getattr(job, "__name__", repr(job))
        raise ConfigError(f"enqueue: {name} is no job; decorate it with @jobs.job, then: await {name}.enqueue(…)")
    if rest:
        raise ConfigError(f"enqueue: takes a job, its data and options, got {len(rest)} more: {rest!r:.100}")


def _of_coroutine(job: Any) -> str:
    """What is wrong with the coroutine *job*, which is closed."""
    owner, name = (job.cr_frame.f_locals.get("self") if job.cr_frame else None), job.__name__
    job.close()
    if name == "enqueue" and owner is not None:
        return "enqueue: got the coroutine of f.enqueue(…), which stores the job by itself: await it"
    return f"enqueue: got the coroutine of {name}(…), which has been called already; use {name}.enqueue(…)"
