"""What holds for the runs of a job: nearest wins, enqueue over handler over queue over default.

Of a retry policy an enqueue carries base, cap and jitter; exception filters are always the handler's or the queue's.
"""

from __future__ import annotations

from collections.abc import Mapping

from fastjobs.durations import duration_s
from fastjobs.model import DEFAULT_MAX_ATTEMPTS, Job
from fastjobs.options import QueueOptions
from fastjobs.registry import Handler, Registry
from fastjobs.retry import DEFAULT_POLICY, RetryPolicy, carried_policy


class Terms:
    """The terms of one app. A *handler* is None where a job's name is not registered: then enqueue and queue decide."""

    def __init__(self, registry: Registry, queue_options: Mapping[str, QueueOptions]) -> None:
        self.handler_of = registry.get
        self._queues = queue_options
        self.queue_timeouts = {  #: seconds, by queue
            name: duration_s(options.timeout, "timeout")
            for name, options in queue_options.items()
            if options.timeout is not None
        }

    def max_attempts(self, job: Job, handler: Handler | None) -> int:
        """Runs in all before the job is dead."""
        options = self._queues.get(job.queue)
        of_handler = handler.max_attempts if handler is not None else None
        return job.max_attempts or of_handler or (options.max_attempts if options else None) or DEFAULT_MAX_ATTEMPTS

    def policy(self, job: Job, handler: Handler | None) -> RetryPolicy:
        """When it runs again after a failure, and after which failures at all."""
        options = self._queues.get(job.queue)
        ours = (handler.policy if handler is not None else None) or (options.retry if options else None) or DEFAULT_POLICY
        carried = carried_policy(job)
        if carried is None:
            return ours
        return RetryPolicy(
            base=carried.base, cap=carried.cap, jitter=carried.jitter, retry_on=ours.retry_on, dead_on=ours.dead_on
        )
