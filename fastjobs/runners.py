"""The hot loop: a fixed set of runner tasks that take ready jobs and await their handlers inline.

A task per job would cost 5 to 7 µs, an inline await costs 0.2 (bench/test_micro.py).
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import os
from collections import deque
from collections.abc import Callable, Iterator
from typing import Final

from fastjobs import clock
from fastjobs.claims import OpenClaim, Pace
from fastjobs.context import running
from fastjobs.envelope import decode_job, read_job, routed_entry
from fastjobs.errors import SerializationError
from fastjobs.execution import Execution, Runner, outcome_of, set_aside
from fastjobs.forks import end_copy
from fastjobs.ids import id_text, unpack_word
from fastjobs.model import Job, Kind, Outcome
from fastjobs.retry import Verdict, is_suspect
from fastjobs.slots import Slot, Word

log = logging.getLogger("fastjobs.worker")

SWEEP_S: Final = 0.05
"""How often time limits are looked at while some run is under one, and ready jobs while no runner is idle."""

TICK_S: Final = 0.5
"""How often the worker's loop shows that it turns."""

STALLED_AFTER_S: Final = 0.1
"""Ready jobs that no runner has come to for so long, all being busy, are better off with another worker: of jobs of 1 s that
end and begin together, one worker's share of the last wave ran after the other's (`fastjobs bench --scenario nap`)."""

STUCK_AFTER_S: Final = 10.0
"""A run told to stop that still runs after so long is stuck: its worker has to be replaced."""

ENDED: Final = int(Word.ENDED)

Item = tuple[bytes, OpenClaim, int]
"""A claimed job's envelope, its claim, and its index there.

It is decoded when its turn comes: a claim that arrives must not keep the next one from being asked for (0.4 ms per 1,000).
"""


class Ticking:
    """Shows in a worker's *words* that its event loop turns, from the start of the worker to its end."""

    def __init__(self, words: memoryview) -> None:
        self._words = words
        self._timer: asyncio.TimerHandle | None = None
        self._tick()

    def _tick(self) -> None:
        self._words[Word.TICK_NS] = int(clock.monotonic() * 1e9)
        self._timer = asyncio.get_running_loop().call_later(TICK_S, self._tick, context=contextvars.Context())

    def stop(self) -> None:
        """The worker has ended."""
        if self._timer is not None:
            self._timer.cancel()


class Runners:
    """Runs the jobs put into `ready`. `on_change` is called when it is `low`, a claim is over, or a runner is idle."""

    def __init__(self, execution: Execution, slot: Slot, pace: Pace, on_change: Callable[[], None]) -> None:
        self.ready: deque[Item] = deque()
        self.suspects: list[Item] = []  #: jobs that workers died of, met in `ready`, to be run alone
        self.alone = False  #: what is in `ready` now is one of them
        self._beside: list[Item] = []  # what was ready beside a suspect when it was met
        self.over: list[OpenClaim] = []  #: claims whose jobs have all ended, for the worker to settle
        self.busy = 0  #: runs going on now
        self.low = 0  #: tell of it when so few jobs are left in `ready`
        self.stalled = False  #: `ready` has not moved for `STALLED_AFTER_S`, and no runner is idle
        self._execution = execution
        self._slot = slot
        self._words = slot.words
        self._pace = pace
        self._on_change = on_change
        self._tasks: dict[Runner, asyncio.Task[None]] = {}
        self._idle: list[asyncio.Future[None]] = []
        self._waking = False  # a runner was woken and has not come to itself yet
        self._closing = False
        self._added = 0  # jobs that came into `ready`, less those that left it without a run
        self._sampled = 0  # of those, the ones that the pace knows
        self._waiting_since = 0.0  # clock.monotonic, since when jobs are ready and starts not sampled; 0: nothing is ready
        self._ended = 0  # runs that the pace knows to have ended
        self._ended_at = clock.monotonic()  # when it was told
        self._moved = 0  # `_started` at the last sweep that saw `ready` move
        self._moved_at = clock.monotonic()
        self._timer: asyncio.TimerHandle | None = None
        self._sweeping = False  # the timer is set to the short interval
        self._pid = os.getpid()
        execution.on_limit = self._sweep_soon

    def start(self, concurrency: int) -> None:
        """Start *concurrency* runners and the sweep."""
        for index in range(concurrency):
            self._add(int(Word.FIRST_RUNNER) + 2 * index)
        self._sweep()

    def add(self, items: list[Item]) -> None:
        """Put jobs at the end of `ready` and see to it that they run."""
        if not self.ready:
            self._sampled, self._waiting_since = self._started, clock.monotonic()
        self.ready.extend(items)
        self._added += len(items)
        if not self._waking:
            self._wake_one()
        self._sweep_soon()

    def run_alone(self, item: Item) -> None:
        """Run a job that workers died of, while nothing runs. If this one dies too, nothing else is to look guilty."""
        for runner in self._tasks:
            self._words[runner.base] = 0  # a runner whose job has just ended may not have come to it
        self.alone = True
        self.add([item])

    def take_back(self) -> list[Item]:
        """Empty `ready` and return what was in it."""
        self._added -= len(self.ready)
        items = [*self._beside, *self.ready]
        self._beside.clear()
        self.ready.clear()
        self._waiting_since, self.stalled = 0.0, False
        return items

    def move(self, old: OpenClaim, new: OpenClaim, unfinished: list[int]) -> None:
        """The jobs at *unfinished* of the claim *old* stand at 0, 1, … of *new* from now on, wherever they are here."""
        place = {index: position for position, index in enumerate(unfinished)}
        for runner in self._tasks:
            if runner.item is not None and runner.item[1] is old:
                runner.item = (runner.item[0], new, place[runner.item[2]])
        for items in (self.ready, self.suspects, self._beside):
            for position, (envelope, claim, index) in enumerate(list(items)):
                if claim is old:
                    items[position] = (envelope, new, place[index])

    @property
    def _started(self) -> int:
        """Runs so far. Not counted one by one: an increment of an attribute is 2 % of a no-op job."""
        return self._added - len(self.ready)

    def sample_pace(self) -> None:
        """Tell the pace how many jobs were started while some waited, and how many ended."""
        now = clock.monotonic()
        if self._waiting_since and self._started > self._sampled:
            self._pace.sample_starts(self._started - self._sampled, now - self._waiting_since)
            self._sampled, self._waiting_since = self._started, now if self.ready else 0.0
        ended = self._started - self.busy
        self._pace.sample_ends(ended - self._ended, now - self._ended_at)
        self._ended, self._ended_at = ended, now

    def stop_runs(self, reason: str) -> None:
        """Tell every run to stop, for *reason*."""
        for runner in list(self._tasks):
            if runner.job is not None and runner.cancelled_for is None:
                runner.stop(reason)

    async def close(self) -> None:
        """End the idle runners and the sweep. Runs that would not stop are left."""
        self._closing = True
        if self._timer is not None:
            self._timer.cancel()
        idle = [task for runner, task in self._tasks.items() if runner.job is None]
        for task in idle:
            task.cancel()
        if idle:
            await asyncio.wait(idle)

    def running_jobs(self) -> Iterator[Job]:
        """The jobs whose handlers run now."""
        return (runner.job for runner in self._tasks if runner.job is not None)

    # -- the hot loop -------------------------------------------------------------------------------------------------

    async def _run_jobs(self, runner: Runner) -> None:
        try:
            await self._run_ready(runner)
        except ValueError:  # the mapping is closed: a process forked by a handler has come out of it
            if os.getpid() != self._pid:
                end_copy("a handler")
            raise

    async def _run_ready(self, runner: Runner) -> None:
        ready, words, base, run = self.ready, self._words, runner.base, self._execution.run
        running.set(runner)
        untouched = contextvars.copy_context()
        task = asyncio.current_task()
        assert task is not None
        runner.task = task
        while True:
            while not ready:
                words[base] = 0
                await self._next_job()
            item = ready.popleft()
            if len(ready) == self.low:
                self._on_change()  # time to claim more
            if ready and self._idle and not self._waking:
                self._wake_one()  # one at a time: handlers that never suspend leave nothing for the others
            try:
                job = read_job(item[0])
            except Exception:  # unreadable, or no memory for it
                self._set_aside(item)
                continue
            if job.losses and is_suspect(job) and not self.alone:
                self._set_apart(item)
                continue
            runner.item, runner.job = item, job
            (words[base],) = unpack_word(job.id)  # a death from here on is a loss of this job
            self.busy += 1
            try:
                verdict = await run(job, runner)
            except asyncio.CancelledError:  # this worker's own end, at short notice
                verdict = Verdict(Kind.RELEASED, job)
            self.busy -= 1
            runner.job = None
            _, claim, index = runner.item  # its claim may have been split meanwhile
            runner.item = None
            if verdict is None:
                claim.ended[index] = 1
                claim.left -= 1
            else:
                claim.end(index, outcome_of(index, verdict))
            if not claim.left:
                words[ENDED] = 1
                self.over.append(claim)
                self._on_change()
                await asyncio.sleep(0)  # the worker sends it off while the next claim's jobs run
            elif not claim.ended_since:
                words[ENDED] = 1
                claim.ended_since = clock.monotonic()
                self._on_change()
            # Context variables must not leak into the next job, nor a pending cancellation: a fresh runner goes on. Comparing
            # unchanged contexts costs 0.1 µs: they share one tree.
            if task.cancelling() or runner.cancelled_for or self._closing or contextvars.copy_context() != untouched:
                return

    def _set_apart(self, item: Item) -> None:
        """A job that workers died of. What is ready beside it is for others: nothing is started here until it has ended."""
        self.suspects.append(item)
        self._added -= 1 + len(self.ready)
        self._beside += self.ready
        self.ready.clear()
        self._on_change()

    def _set_aside(self, item: Item) -> None:
        """A job whose envelope cannot be read is not run; one that can be read by now goes back."""
        envelope, claim, index = item
        self._added -= 1
        try:
            decode_job(envelope)
            outcome = Outcome(index, int(Kind.RELEASED), routed_entry(envelope))
        except SerializationError as error:
            outcome = set_aside(index, envelope, error, self._execution.worker)
        claim.end(index, outcome)
        if not claim.left:
            self.over.append(claim)
        elif not claim.ended_since:
            claim.ended_since = clock.monotonic()
        self._on_change()

    async def _next_job(self) -> None:
        """Sleep until a job may be ready."""
        if self._waiting_since:
            self.sample_pace()
        future = asyncio.get_running_loop().create_future()
        self._idle.append(future)
        self._on_change()
        try:
            await future
        finally:
            self._waking = False

    def _wake_one(self) -> None:
        while self._idle:
            future = self._idle.pop()
            if not future.done():
                self._waking = True
                future.set_result(None)
                return

    # -- around it ----------------------------------------------------------------------------------------------------

    def _add(self, base: int) -> None:
        runner = Runner(base)
        # A context of its own, empty of what the user's code around the worker or an earlier job has set.
        task = asyncio.get_running_loop().create_task(
            self._run_jobs(runner), name="fastjobs-runner", context=contextvars.Context()
        )
        self._tasks[runner] = task
        task.add_done_callback(lambda ended: self._gone(runner, ended))

    def _gone(self, runner: Runner, task: asyncio.Task[None]) -> None:
        del self._tasks[runner]
        self._words[runner.base] = self._words[runner.base + 1] = 0
        if not task.cancelled() and (error := task.exception()) is not None:
            log.critical("a runner failed; its job stays leased until this process ends", exc_info=error)
        if not self._closing:
            self._add(runner.base)
            if self.ready and not self._waking:
                self._wake_one()
        self._on_change()

    def _sweep_soon(self) -> None:
        """A run under a time limit begins, or jobs are to wait for a runner."""
        if not self._sweeping and self._timer is not None and not self._closing:
            self._timer.cancel()
            self._sweeping = True
            self._sweep_in(SWEEP_S)

    def _sweep(self) -> None:
        """Stop runs past their time limit, mark those that would not stop, show what runs and waits."""
        now = clock.monotonic()
        words = self._words
        words[Word.RUNNING] = self.busy
        words[Word.HELD] = len(self.ready)
        limited = False
        for runner in list(self._tasks):
            if runner.deadline is not None:
                limited = True
                if now >= runner.deadline:
                    runner.stop("timeout")
            elif runner.job is not None and runner.cancelled_for == "timeout":
                limited = True
                if now - runner.stopping_since >= STUCK_AFTER_S and not words[runner.base + 1]:
                    words[runner.base + 1] = words[Word.TIMED_OUT] = 1
                    name, id = runner.job.name, id_text(runner.job.id)
                    log.error("%s %s still runs %d s after its time limit and cannot be stopped", name, id, STUCK_AFTER_S)
        waiting = bool(self.ready) and not self._idle
        if not waiting or self._moved != self._started:
            self._moved, self._moved_at = self._started, now
        elif now - self._moved_at >= STALLED_AFTER_S and not self.stalled:
            self.stalled = True
            self._pace.end_rate = 0.0  # or what is given back would be claimed again
            self._on_change()
        self._sweeping = limited or waiting
        self._sweep_in(SWEEP_S if self._sweeping else TICK_S)

    def _sweep_in(self, seconds: float) -> None:
        # In a context of no job: this may be called from a run, whose job the sweep's log lines would then carry.
        self._timer = asyncio.get_running_loop().call_later(seconds, self._sweep, context=contextvars.Context())
