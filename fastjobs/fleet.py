"""All that a supervisor keeps running, put together afresh or from a handover: mapping, crew, maintenance, broker."""

from __future__ import annotations

import gc
import logging
import os
import resource
import signal
import sys
import time
from collections.abc import Container, Iterator, Mapping
from dataclasses import replace
from typing import Any, Final, NamedTuple

from fastjobs import clock
from fastjobs.app import find_spec, load_app, other_threads
from fastjobs.backends import scheme_of
from fastjobs.backends.broker import socket_path
from fastjobs.backends.remote import URL_SCHEME
from fastjobs.children import facts_of
from fastjobs.childtask import AppFacts, ChildTask, LogSetup, plain_options, read_options
from fastjobs.crew import QUIET_S, Crew, kill_group
from fastjobs.errors import AppImportError, ConfigError
from fastjobs.launch import Launcher
from fastjobs.local import broker_answers
from fastjobs.options import WorkerOptions
from fastjobs.progress import Tally, Totals
from fastjobs.queue import JobQueue
from fastjobs.relay import Output, Relay, write_through
from fastjobs.reload import Handover, describe
from fastjobs.services import FORK_S, START_S, BrokerProcess, MaintenanceProcess
from fastjobs.signals import Signals
from fastjobs.slots import Head, Slot, Slots, lease_name, lease_ttl_s

log = logging.getLogger("fastjobs.supervisor")

SPARE_WORKERS: Final = 32
"""SIGTTIN can raise the number of workers to at least so many."""


class Plan(NamedTuple):
    """What is asked for."""

    spec: str | None
    app_dir: str | None
    backend: str | None  #: URL in place of the app's
    worker: Mapping[str, Any]  #: `WorkerOptions` fields in place of the app's
    workers: int
    burst: bool
    observe: bool
    preload: bool
    watchdog_s: float | None
    logging: LogSetup | None


class Loaded(NamedTuple):
    """The app as this process knows it."""

    jobs: JobQueue | None  #: None: each child imports it by itself
    facts: AppFacts
    options: WorkerOptions


def load(plan: Plan, handover: Handover | None) -> Loaded:
    """Import the app, or have its facts told where every process is to import it by itself. AppImportError, ConfigError.

    If the import fails although the trial went well, the old workers of *handover* go on.
    """
    try:
        jobs, facts = _import(plan)
    except AppImportError as error:
        if handover is None:
            raise
        log.error("the new code cannot be imported after all, the old workers stay: %s", error)
        jobs, facts = None, handover.facts
    options = read_options({**facts.options, **plan.worker})
    if handover is not None:
        # The lease's name says its time to live; it must not change under those who watch it.
        options = replace(options, lease_ttl=lease_ttl_s(handover.lease, options.lease_ttl_s))
    if plan.logging is not None:
        plan.logging.apply()
    if facts.threads and jobs is None and plan.preload:
        names = ", ".join(facts.threads)
        log.warning(
            "importing %s starts threads, which a fork loses (%s): each process imports it by itself", facts.spec, names
        )
    return Loaded(jobs, facts, options)


def _import(plan: Plan) -> tuple[JobQueue | None, AppFacts]:
    if not plan.preload:
        return None, describe(plan.spec, plan.app_dir, plan.backend)
    jobs = load_app(plan.spec, plan.app_dir)
    if plan.backend is not None:
        scheme_of(plan.backend)
        jobs.use(plan.backend)
    facts = facts_of(jobs, str(find_spec(plan.spec)), other_threads())
    if facts.threads:
        return None, facts
    gc.collect()
    gc.freeze()  # what is shared stays shared: a child's collector does not write to it
    return jobs, facts


class Fleet:
    """The supervisor's children and what they share."""

    def __init__(self, plan: Plan, loaded: Loaded, handover: Handover | None, signals: Signals, output: Output | None) -> None:
        self.facts = loaded.facts
        self.plan = plan
        options = loaded.options
        if handover is not None:
            self.slots = Slots.attach(handover.slots_fd)
        else:
            self.slots = Slots.create(2 * max(plan.workers, SPARE_WORKERS), options.concurrency)
        self.options = _fitting(options, self.slots, loaded.facts)
        self.lease = handover.lease if handover else lease_name(options.lease_ttl_s)
        pipes = handover.pipes if handover else []
        self.relay = Relay(output or write_through, pipes) if output or pipes else None
        self.life = handover.life if handover else _life_pipe()
        self.broker = BrokerProcess(handover.broker if handover else None)
        self.socket = ""  # of the broker, if the jobs are in memory
        if loaded.facts.scheme == "memory":
            self.socket = (handover.socket if handover else "") or _free_socket(loaded.facts.app_id)
        self.maintenance = MaintenanceProcess(
            self._start_maintenance,
            self.slots.head,
            silence_s=options.lease_ttl_s / 3,
            start_s=START_S if loaded.jobs is None else FORK_S,
        )
        totals = handover.totals if handover else Totals()
        self.crew = Crew(
            self.slots,
            self.options,
            start=self._start_worker,
            bereaved=self.maintenance.wake,
            watchdog_s=plan.watchdog_s,
            totals=totals,
        )
        self.tally = Tally(self.slots, handover.started if handover else clock.monotonic(), totals)
        self._launcher = self._make_launcher(loaded, signals)
        if handover is not None:
            self._take_in(handover)
        self.crew.resize(handover.count if handover else plan.workers)

    def _make_launcher(self, loaded: Loaded, signals: Signals) -> Launcher:
        plan = self.plan
        backend = URL_SCHEME + self.socket if self.socket else plan.backend
        if self.socket and loaded.jobs is not None:
            loaded.jobs.use(backend)
        out_fd, err_fd = self.relay.write_ends if self.relay else (-1, -1)
        common = ChildTask(
            role="",
            supervisor=os.getpid(),
            spec=plan.spec,
            app_dir=plan.app_dir,
            backend=backend,
            lease=self.lease,
            slots_fd=self.slots.fd,
            options=plain_options(self.options),
            queues=list(self.options.queues or ()),
            observe=plan.observe,
            burst=plan.burst,
            socket=self.socket,
            out_fd=out_fd,
            err_fd=err_fd,
            life_fd=self.life[0] if self.life else -1,
            log=plan.logging,
        )
        return Launcher(common=common, jobs=loaded.jobs, slots=self.slots, private=self._private, signals=signals)

    def _private(self) -> Iterator[int]:
        """Descriptors that no child may have."""
        yield from self.life[1:]
        for process in self.crew.processes.values():
            yield process.stacks_fd
        if self.maintenance.process is not None:
            yield self.maintenance.process.pipe_fd
        if self.relay is not None:
            yield from self.relay.read_ends

    # -- starting -----------------------------------------------------------------------------------------------------

    def start_broker(self) -> None:
        """Have the memory store served, if that is the store and nobody does yet. StoreUnavailable."""
        if self.socket and self.broker.process is None:
            self.broker.start(lambda pipe_fd: self._launcher.start("broker", pipe_fd=pipe_fd))

    def _start_maintenance(self, pipe_fd: int) -> int:
        return self._launcher.start("maintenance", pipe_fd=pipe_fd)

    def _start_worker(self, slot: Slot) -> tuple[int, int]:
        """A worker process in *slot*. Its pid, and the descriptor that its stacks can be read from."""
        read_end, write_end = os.pipe()
        for fd in (read_end, write_end):
            os.set_blocking(fd, False)
        try:
            return self._launcher.start("worker", pipe_fd=write_end, slot=slot.index), read_end
        except OSError:
            os.close(read_end)
            raise
        finally:
            os.close(write_end)

    def never_reached_store(self, within_s: float) -> bool:
        """Whether the store has not answered maintenance once, *within_s* seconds from the start or longer."""
        head = self.slots.head
        return not head[Head.BEAT_NS] and bool(head[Head.STORE_DOWN]) and clock.monotonic() - self.tally.started > within_s

    # -- running ------------------------------------------------------------------------------------------------------

    def reap(self, now: float) -> list[int]:
        """Take note of every child that has ended, and leave no zombie. The pids of those that are none of the fleet's."""
        others = []
        for pid, status, max_rss_kib in reaped(self.crew.processes):
            maintenance, broker = self.maintenance.process, self.broker.process
            if (process := self.crew.processes.get(pid)) is not None:
                self.crew.ended(process, status, max_rss_kib, now)
            elif maintenance is not None and maintenance.pid == pid:
                self.maintenance.ended(status, now)
            elif broker is not None and broker.pid == pid:
                self.broker.ended(status)
            else:
                others.append(pid)
        return others

    def pids(self) -> list[int]:
        """Of all children."""
        services = [process.pid for process in (self.maintenance.process, self.broker.process) if process is not None]
        return [*self.crew.processes, *services]

    def stacks(self) -> Iterator[tuple[str, str]]:
        """Whose they are, and the stacks of every child in turn. The helpers write theirs to stderr by themselves."""
        yield from self.crew.stacks()
        for name, process in (("maintenance", self.maintenance.process), ("the broker of memory://", self.broker.process)):
            if process is not None:
                yield f"{name} (process {process.pid})", "  (follow)"
                os.kill(process.pid, signal.SIGUSR1)
                time.sleep(QUIET_S)  # they are written in pieces, which must not mix

    # -- handing over -------------------------------------------------------------------------------------------------

    def handover(self, *, had_terminal: bool, hangup_ignored: bool) -> Handover:
        """All of this for the next image of this process."""
        return Handover(
            pid=os.getpid(),
            facts=self.facts,
            slots_fd=self.slots.fd,
            lease=self.lease,
            started=self.tally.started,
            next_number=self.crew.next_number,
            code=self.crew.code,
            count=len(self.crew.seats),
            totals=self.crew.totals,
            workers=list(self.crew.processes.values()),
            maintenance=self.maintenance.process,
            broker=self.broker.process,
            socket=self.socket,
            pipes=self.relay.pipes if self.relay else [],
            life=self.life,
            had_terminal=had_terminal,
            hangup_ignored=hangup_ignored,
        )

    def _take_in(self, handover: Handover) -> None:
        """The children of the image before: workers to be replaced one by one, maintenance at once."""
        self.crew.take_in(handover.workers, next_number=handover.next_number, code=handover.code + 1)
        self.maintenance.process = handover.maintenance
        self.maintenance.dismiss()


def _fitting(options: WorkerOptions, slots: Slots, facts: AppFacts) -> WorkerOptions:
    """*options* with the queues filled in, as far as the mapping has room: it may have been made for earlier code."""
    runners = slots.head[Head.RUNNERS]
    if options.concurrency > runners:
        log.warning("concurrency stays at %d until a restart; %d is asked for", runners, options.concurrency)
    return replace(options, concurrency=min(options.concurrency, runners), queues=tuple(options.queues or facts.queues) or None)


def _free_socket(app_id: str) -> str:
    """Where the broker is to listen. ConfigError if one does already."""
    if broker_answers(app_id):
        raise ConfigError(
            f"a supervisor of this app runs here already, and its jobs are in memory ({socket_path(app_id)}); "
            "stop it first, or give both a store that they can share: FASTJOBS_URL"
        )
    return str(socket_path(app_id))


def _life_pipe() -> list[int]:
    """A pipe that ends with this process, where the system has no signal for that."""
    return [] if sys.platform == "linux" else list(os.pipe())


def reaped(workers: Container[int]) -> Iterator[tuple[int, int, int]]:
    """(pid, wait status, peak resident KiB) of each child that has ended, now reaped; as PID 1 also of adopted ones.

    The process group of one of *workers* that did not end by itself is killed: what its handlers started must be over before
    others run its jobs.
    """
    while (ended := _next_ended()) is not None:
        pid, clean = ended
        if pid in workers and not clean:
            kill_group(pid)  # before it is reaped: the number is still nobody else's
        try:
            pid, status, usage = os.wait4(pid or -1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        if not ended[0] and pid in workers and status:
            kill_group(pid)
        yield pid, status, _kib(usage)


def _next_ended() -> tuple[int, bool] | None:
    """A child that has ended and is not yet reaped, and whether with exit code 0; None if there is none.

    (0, True) where the system cannot say without reaping: macOS before Python 3.13.
    """
    if not hasattr(os, "waitid"):
        return 0, True
    try:
        ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return None
    return None if ended is None else (ended.si_pid, ended.si_code == os.CLD_EXITED and ended.si_status == 0)


def _kib(usage: resource.struct_rusage) -> int:
    return usage.ru_maxrss // 1024 if sys.platform == "darwin" else usage.ru_maxrss
