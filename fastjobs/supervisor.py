"""The supervisor: watches, signals, drains. No event loop, no threads, so it may fork at any time.

One loop waits for signals with a deadline. Handlers only record; `Supervisor` has one method per signal, and `_tend` for what
time brings.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, Final, NamedTuple

from fastjobs import clock
from fastjobs.childtask import EXIT_FAILED, EXIT_REFUSED, AppFacts, LogSetup
from fastjobs.crew import kill_group
from fastjobs.durations import Duration, duration_s, duration_text
from fastjobs.errors import AppImportError, ConfigError
from fastjobs.fleet import Fleet, Plan, load
from fastjobs.options import WorkerOptions, check_int
from fastjobs.progress import Progress
from fastjobs.relay import Output
from fastjobs.reload import Handover, Place, Trial, reexecute, take_over, this_place
from fastjobs.signals import Signals, has_terminal
from fastjobs.slots import Head

log = logging.getLogger("fastjobs.supervisor")

MOST_WORKERS: Final = 1_000

TICK_S: Final = 0.25
QUICK_TICK_S: Final = 0.05
"""While something is awaited that gives no signal: a new worker coming up, the end of a burst."""

BURST_PATIENCE_S: Final = 10.0
"""A burst waits so long for a store that was not reached yet; one that goes away later is waited for without end."""

LIVE_REPORT_S: Final = 0.25
REPORT_S: Final = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SuperviseOptions:
    """Options of a supervisor, beside those of its workers."""

    workers: int | None = None  #: worker processes, 1 to 1,000; default: one per CPU
    burst: bool = False  #: end when nothing is ready or running; exit code 1 if jobs died
    watchdog: Duration | None = None  #: kill a worker whose event loop is silent for so long; its jobs count a loss
    preload: bool = True  #: import the app once and fork; if not, each process imports it by itself

    def __post_init__(self) -> None:
        check_int(self.workers, "workers", 1, MOST_WORKERS)
        if self.watchdog is not None and duration_s(self.watchdog, "watchdog") < 2:
            raise ConfigError(
                f"watchdog: must be at least 2 s, as loops show twice a second that they turn, got {self.watchdog!r}"
            )

    @property
    def watchdog_s(self) -> float | None:
        """`watchdog` in seconds."""
        return None if self.watchdog is None else duration_s(self.watchdog, "watchdog")


class Launch(NamedTuple):
    """What is about to run; for the command line's first lines."""

    facts: AppFacts
    options: WorkerOptions
    workers: int
    reloaded: bool  #: new code in a supervisor that has been running


def supervise(
    spec: str | None,
    options: SuperviseOptions,
    report: Callable[[Progress], None],
    *,
    worker: Mapping[str, Any] | None = None,
    app_dir: str | os.PathLike[str] | None = None,
    backend: str | None = None,
    report_s: float = REPORT_S,
    observe: bool = True,
    logging: LogSetup | None = None,
    started: Callable[[Launch], None] | None = None,
    output: Output | None = None,
) -> int:
    """Run the app *spec* in worker processes until told to stop, or a burst is over. Returns the exit code. Main thread only.

    *worker*: `WorkerOptions` fields that override the app's own. *backend*: a URL in place of the app's. *report* gets a
    `Progress` every *report_s* seconds, and a final one; with *observe* it has counts of what is ready, at the price of one
    look at the store a second. *started* is called once the app is imported, before the first fork, and again after a reload.
    With *output* the children's lines go there.

    Exit codes: 0; 1 when jobs died in a burst or the memory store was lost; 4 when the store refuses the workers; 128 + the
    signal when a drain was cut short. Raises ConfigError, AppImportError, BackendError before anything runs.
    """
    handover, place = take_over(), this_place()
    plan = Plan(
        spec=spec,
        app_dir=os.fspath(app_dir) if app_dir is not None else None,
        backend=backend,
        worker=worker or {},
        workers=options.workers or usable_cpus(),
        burst=options.burst,
        observe=observe,
        preload=options.preload,
        watchdog_s=options.watchdog_s,
        logging=logging,
    )
    with Signals() as signals:
        return Supervisor(plan, place, handover, signals, output).run(report, report_s, started)


def usable_cpus() -> int:
    """CPUs that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Stage(Enum):
    """Of a supervisor's life."""

    RUNNING = auto()
    DRAINING = auto()  #: workers finish what they run
    SETTLING = auto()  #: maintenance gives back what they left, then the broker ends
    ENDED = auto()


class Supervisor:
    """One run of `supervise`."""

    def __init__(self, plan: Plan, place: Place, handover: Handover | None, signals: Signals, output: Output | None) -> None:
        self._place = place
        self._signals = signals
        self._had_terminal = handover.had_terminal if handover else has_terminal()
        self._hangup_ignored = handover.hangup_ignored if handover else signals.hangup_ignored
        self._reloaded = handover is not None
        self._fleet = Fleet(plan, load(plan, handover), handover, signals, output)
        self._stage = Stage.RUNNING
        self._stop_signal = 0
        self._failed = 0  # exit code of what ended everything
        self._trial: Trial | None = None
        self._actions: dict[int, Callable[[], None]] = {
            signal.SIGTERM: lambda: self._on_stop(signal.SIGTERM),
            signal.SIGINT: lambda: self._on_stop(signal.SIGINT),
            signal.SIGHUP: self._on_hangup,
            signal.SIGTTIN: lambda: self._resize(+1),
            signal.SIGTTOU: lambda: self._resize(-1),
            signal.SIGUSR1: self._show_stacks,
        }

    def run(self, report: Callable[[Progress], None], report_s: float, started: Callable[[Launch], None] | None) -> int:
        """The loop, to its end."""
        fleet = self._fleet
        if started is not None:
            started(Launch(fleet.facts, fleet.options, len(fleet.crew.seats), self._reloaded))
        try:
            fleet.start_broker()
            report_at = clock.monotonic() + report_s
            while self._stage is not Stage.ENDED:
                now = clock.monotonic()
                self._reap(now)
                self._tend(now)
                if now >= report_at:
                    report_at = now + report_s
                    report(self._progress(now))
                self._wait(min(report_at, *self._deadlines()) - clock.monotonic())
                self._act()
        finally:
            self._kill_everything()
        final = self._progress(clock.monotonic(), final=True)
        report(final)
        return self._exit_code(final)

    def _wait(self, timeout_s: float) -> None:
        others = [*(self._fleet.relay.read_ends if self._fleet.relay else ()), *([self._trial.fd] if self._trial else ())]
        self._signals.wait(timeout_s, others)
        if self._fleet.relay is not None:
            self._fleet.relay.pass_on()
        if self._trial is not None:
            self._trial.read()

    def _deadlines(self) -> Iterator[float]:
        fleet = self._fleet
        quick = fleet.plan.burst or any(seat.successor is not None for seat in fleet.crew.seats)
        yield clock.monotonic() + (QUICK_TICK_S if quick or self._stage is not Stage.RUNNING else TICK_S)
        yield from fleet.crew.deadlines()
        yield from fleet.maintenance.deadlines()

    def _progress(self, now: float, *, final: bool = False) -> Progress:
        fleet = self._fleet
        return fleet.tally.progress(now, len(fleet.crew.processes), draining=self._stage is not Stage.RUNNING, final=final)

    def _exit_code(self, final: Progress) -> int:
        if self._failed:
            return self._failed
        if self._stop_signal and self._fleet.crew.cut_short:
            return 128 + self._stop_signal
        failed = final.dead or self._fleet.crew.only_died
        return EXIT_FAILED if self._fleet.plan.burst and failed else 0

    # -- what time brings ---------------------------------------------------------------------------------------------

    def _tend(self, now: float) -> None:
        fleet = self._fleet
        if self._stage is not Stage.SETTLING or fleet.maintenance.process is not None:
            fleet.maintenance.tend(now)
        fleet.crew.tend(now)
        fleet.broker.tend(now)
        if self._stage is Stage.RUNNING:
            self._watch_for_the_end()
        elif self._stage is Stage.DRAINING and not fleet.crew.processes:
            self._stage = Stage.SETTLING
            if self._failed:  # nothing can be settled, or nothing ever ran
                fleet.maintenance.dismiss()
            else:
                fleet.maintenance.finish(now)
        elif self._stage is Stage.SETTLING and fleet.maintenance.process is None:
            fleet.broker.dismiss()
            if fleet.broker.process is None:
                self._stage = Stage.ENDED

    def _watch_for_the_end(self) -> None:
        if self._fleet.crew.refused:
            self._failed = EXIT_REFUSED
            self._fleet.maintenance.kill()  # it could not settle anything either
            self._drain()
        elif self._fleet.plan.burst and self._fleet.crew.hopeless:
            log.error("no worker comes up, and a burst is not to wait for ever: giving up")
            self._failed = EXIT_FAILED
            self._drain()
        elif self._fleet.plan.burst and self._fleet.never_reached_store(BURST_PATIENCE_S):
            log.error("the store cannot be reached, and a burst is not to wait for ever: giving up")
            self._failed = EXIT_REFUSED
            self._fleet.maintenance.kill()
            self._fleet.crew.kill_all()
            self._drain()
        elif self._fleet.plan.burst and self._fleet.slots.head[Head.BURST_DONE]:
            self._drain()

    def _reap(self, now: float) -> None:
        for pid in self._fleet.reap(now):
            if self._trial is not None and pid == self._trial.pid:
                trial, self._trial = self._trial, None
                self._tried(trial)
        if self._fleet.broker.died and not self._failed:
            log.critical("the process that holds the jobs of memory:// %s: its jobs are lost", self._fleet.broker.died)
            self._failed = EXIT_FAILED
            self._fleet.crew.dismiss_all()
            self._fleet.crew.kill_all()
            self._fleet.maintenance.kill()
            self._stage = Stage.SETTLING

    def _drain(self) -> None:
        self._stage = Stage.DRAINING
        self._fleet.crew.dismiss_all()

    def _kill_everything(self) -> None:
        """Nothing of ours may be left, whatever ended the loop."""
        for pid in [*self._fleet.pids(), *([self._trial.pid] if self._trial else [])]:
            kill_group(pid)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)
        if self._fleet.relay is not None:
            self._fleet.relay.pass_on(final=True)

    # -- signals ------------------------------------------------------------------------------------------------------

    def _act(self) -> None:
        """Do what the signals since the last time ask for. SIGCHLD only ends the wait: children are reaped every round."""
        for number in self._signals.take():
            action = self._actions.get(number)
            if action is not None:
                action()

    def _on_stop(self, number: int) -> None:
        """Drain; the second time end at once."""
        fleet = self._fleet
        if self._stage is Stage.RUNNING:
            self._stop_signal = number
            running = sum(len(slot.started()) for slot in fleet.slots)
            grace = duration_text(fleet.options.grace_s)
            again = "again to stop at once (unfinished jobs go back to the queue)"
            if running:
                log.info("draining: %d running, up to %s; %s", running, grace, again)
            else:
                log.info("stopping: nothing is running")
            self._drain()
        elif self._stage is Stage.DRAINING:
            log.info("stopping at once: unfinished jobs go back to the queue")
            fleet.crew.kill_all()
        else:
            fleet.maintenance.kill()

    def _on_hangup(self) -> None:
        """New code, or the terminal has closed: then drain, unless started with nohup."""
        if self._had_terminal and not has_terminal():
            self._had_terminal = False
            if not self._hangup_ignored:
                self._on_stop(signal.SIGHUP)
        elif self._stage is not Stage.RUNNING:
            log.info("no new code is loaded: this supervisor is stopping")
        else:
            plan = self._fleet.plan
            if self._trial is not None:
                log.info("the import that is under way is given up")
                self._trial.abandon()
            log.info("loading new code: trying to import %s", self._fleet.facts.spec)
            self._trial = None
            try:
                self._trial = Trial(plan.spec, plan.app_dir, plan.backend, self._place)
            except OSError as error:
                log.error("the new code cannot be tried, the old one stays: %s", error)

    def _tried(self, trial: Trial) -> None:
        """The new code was imported in a throwaway process, or was not."""
        if self._stage is not Stage.RUNNING:
            return
        try:
            facts = trial.result()
        except AppImportError as error:
            log.error("the new code cannot be imported, the old one stays: %s", error)
            return
        if facts.versions != self._fleet.facts.versions:
            log.error("fastjobs itself has changed: restart this supervisor; the old code stays")
            return
        log.info("the new code can be imported: re-executing, then replacing workers one by one")
        handover = self._fleet.handover(had_terminal=self._had_terminal, hangup_ignored=self._hangup_ignored)
        reexecute(handover, self._place)

    def _resize(self, step: int) -> None:
        """One worker more or less."""
        crew = self._fleet.crew
        count = min(max(len(crew.seats) + step, 1), crew.most)
        if self._stage is Stage.RUNNING and count != len(crew.seats):
            log.info("%d %s now", count, "worker" if count == 1 else "workers")
            crew.resize(count)

    def _show_stacks(self) -> None:
        """The stacks of every child, one after the other."""
        for title, stacks in self._fleet.stacks():
            log.info("stacks of %s:\n%s", title, stacks)
