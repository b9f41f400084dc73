"""Running jobs inside the user's own process: one at a time by hand, or a whole worker in the user's event loop."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Protocol, TypeVar

from fastjobs import clock
from fastjobs.backends.base import Backend, Store
from fastjobs.context import running
from fastjobs.envelope import decode_job, routed_entry
from fastjobs.errors import BackendError, SerializationError, StoreUnavailable
from fastjobs.execution import Execution, Runner, outcome_of, set_aside
from fastjobs.forks import Guard
from fastjobs.maintenance import EmbeddedMaintenance
from fastjobs.model import Job, Kind, Outcome, Settlement
from fastjobs.options import WorkerOptions, check_queues
from fastjobs.retry import Verdict
from fastjobs.slots import Slots, Word, lease_name, worker_id
from fastjobs.terms import Terms
from fastjobs.worker import App, Worker

T = TypeVar("T")

REPEAT_AFTER_S: Final = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6)
"""Pauses between the calls of `process_one` while the store does not answer."""


class LocalApp(App, Protocol):
    """What is needed of a JobQueue here."""

    @property
    def worker_options(self) -> WorkerOptions: ...
    def load(self) -> None: ...
    def store(self) -> Store: ...


async def process_one(app: LocalApp, backend: Backend, queues: Sequence[str] | None) -> bool:
    """Claim one ready job, run it in this task, settle it. False if none was ready.

    The lifespan is entered for this one job. The lease is renewed while the handler lets the loop turn; a job that blocks the
    loop past the lease may be run again elsewhere.
    """
    app.load()
    options = app.worker_options
    worker = worker_id(lease := lease_name(options.lease_ttl_s), 1, 0)
    names = check_queues(queues) if queues is not None else tuple(options.queues or app.registry.queues())
    await _repeatedly(lambda: backend.register(worker))
    try:
        claimed = await _repeatedly(lambda: backend.exchange(worker, 1, [], names, 1))
        if not claimed.jobs:
            return False
        renewal = asyncio.create_task(_renew(backend, lease, options.lease_ttl_s / 3), name="fastjobs-renew")
        try:
            outcome = await _run_one(app, worker, claimed.jobs[0])
        except BaseException:
            outcome = Outcome(0, int(Kind.RELEASED), routed_entry(claimed.jobs[0], 0.0))
            raise
        finally:
            renewal.cancel()
            await asyncio.wait([renewal])
            settlement = Settlement(1, [outcome] if outcome else [])
            await _repeatedly(lambda: backend.exchange(worker, 2, [settlement], (), 0))
        return True
    finally:
        await _repeatedly(lambda: backend.retire(worker))


async def _repeatedly(call: Callable[[], Awaitable[T]]) -> T:
    """The answer to *call*, repeated after a lost reply too. StoreUnavailable after some 3 seconds without one."""
    for pause_s in REPEAT_AFTER_S:
        try:
            return await call()
        except StoreUnavailable:
            await asyncio.sleep(pause_s)
    return await call()


async def _run_one(app: LocalApp, worker: str, envelope: bytes) -> Outcome | None:
    """Run the job in *envelope*. None: done. Raises what the lifespan raises, and this task's cancellation."""
    try:
        job = decode_job(envelope)
    except SerializationError as error:
        return set_aside(0, envelope, error, worker)
    execution = Execution(
        app.registry, app.queue_options, worker=worker, unknown_is_dead=app.worker_options.unknown == "dead", log_jobs=False
    )
    async with app.lifespan() if app.lifespan else contextlib.nullcontext() as execution.state:
        # A task of its own: the handler's context variables stay in it, and time limits have something to cancel.
        run = asyncio.create_task(_run_limited(execution, job), name="fastjobs-one")
        caller = asyncio.current_task()
        assert caller is not None
        cancelled = caller.cancelling()
        execution.is_cancelled = lambda: caller.cancelling() > cancelled
        try:
            verdict = await run
        finally:
            execution.threads.close()
    return None if verdict is None else outcome_of(0, verdict)


async def _run_limited(execution: Execution, job: Job) -> Verdict | None:
    """Run *job* and stop it at its time limit."""
    loop, runner = asyncio.get_running_loop(), Runner()
    runner.task, runner.job = asyncio.current_task(), job
    assert runner.task is not None
    running.set(runner)
    timers: list[asyncio.TimerHandle] = []

    def limit() -> None:
        assert runner.deadline is not None
        timers.append(loop.call_later(runner.deadline - clock.monotonic(), runner.stop, "timeout"))

    execution.on_limit = limit
    try:
        verdict = await execution.run(job, runner)
        if runner.task.cancelling() and not execution.is_cancelled():
            with contextlib.suppress(asyncio.CancelledError):  # the handler cancelled its own task on its way out
                await asyncio.sleep(0)
        return verdict
    finally:
        for timer in timers:
            timer.cancel()


async def _renew(backend: Backend, lease: str, every_s: float) -> None:
    while True:
        await asyncio.sleep(every_s)
        with contextlib.suppress(BackendError):  # the next one may get through; settling tells whether the job was still ours
            await backend.renew(lease)


async def run_worker(app: LocalApp, options: WorkerOptions) -> None:
    """Run jobs in this event loop until cancelled, then drain. The lease is kept by a thread with a connection of its own."""
    app.load()
    lease = lease_name(options.lease_ttl_s)
    slots = Slots.create(2, options.concurrency)
    slot = slots.slots[0]
    slot.words[Word.NUMBER] = 1
    slot.words[Word.PID] = os.getpid()
    backend = app.store()
    try:
        terms = Terms(app.registry, app.queue_options)
        async with EmbeddedMaintenance(app.store(), lease=lease, slots=slots, options=options, terms=terms):
            with Guard(slots.close):
                await Worker(backend, app, options, lease=lease, slot=slot).run()
    finally:
        os.close(slots.fd)  # the mapping goes with its last user: a run that would not stop may still write to it
        await backend.close()
