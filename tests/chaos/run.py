"""One run on one store: load, faults, and in the end the accounts."""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import itertools
import json
import shutil
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, Final, NamedTuple

from fastjobs.backends.base import Store
from fastjobs.envelope import decode_job
from fastjobs.errors import BackendError, SerializationError
from tests.chaos.accounts import Accounts, Balance
from tests.chaos.arena import Arena, make_arena
from tests.chaos.faults import FAULTS, Fault, Steps
from tests.chaos.machines import Machine, ProducerProcess
from tests.chaos.reasons import Span, Story, Strike

TICK_S: Final = 0.05
UP_S: Final = 20.0
"""Until the machines work, at the start."""

SETTLE_S: Final = 90.0
"""Without faults all that was accepted ends within this time; otherwise the run is stuck."""

STACK: Final = "most recent call first"
STACKS_S: Final = 10.0
"""Until a supervisor, if it can, has begun to show the stacks of its processes."""

LETTERS: Final = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a run is to do."""

    store: str
    seed: int
    seconds: float  #: of faults; the time to settle comes on top
    workers: int = 3  #: of each machine
    most_jobs: int = 10_000_000
    backlog: int = 60_000  #: jobs accepted and not finished, at most
    load: float = 20_000  #: jobs offered a second, on average
    faults_s: float = 8.0  #: faults a second
    keep: bool = False  #: ledger and logs, also when all is well
    only: str = ""  #: those whose name has this in it


@dataclass
class Result:
    """What came of it."""

    plan: Plan
    verdict: str = "stuck"  #: "kept", "broken" or "stuck"
    seconds: float = 0.0
    faults: Counter[str] = field(default_factory=Counter)
    balance: Balance = field(default_factory=Balance)
    directory: str = ""  #: of ledger and logs, where something is wrong
    why: str = ""

    @property
    def kept(self) -> bool:
        """Whether every promise was."""
        return self.verdict == "kept"


class _Pending(NamedTuple):
    due: float
    number: int
    steps: Steps


class Run:
    """Carries a plan out. Also the `faults.Scene`."""

    def __init__(self, plan: Plan, show: Callable[[str], None] = lambda line: None) -> None:
        self.plan = plan
        self.random = Random(plan.seed)
        self.directory = Path(tempfile.mkdtemp(prefix="fjc-", dir="/tmp"))
        (self.directory / "ledger").mkdir()
        self.arena: Arena = make_arena(plan.store, ["A", "B", "P"])
        self.machines: list[Machine] = []
        self.story = Story()
        self.accounts = Accounts(self.directory / "ledger")
        self.result = Result(plan)
        self._show = show
        self._held: set[str] = set()
        self._pending: list[_Pending] = []
        self._allowed = 0.0  # jobs
        self._tended = 0.0  # time.monotonic
        self._count = itertools.count()
        self._loop = asyncio.new_event_loop()
        self._faults = [fault for fault in FAULTS if fault.fits(self.arena) and plan.only in fault.words]
        self._diary = (self.directory / "faults.log").open("w", buffering=1)

    def go(self) -> Result:
        """From the start of the servers to the balance. Leaves nothing but, if it is not kept, the directory."""
        began = time.monotonic()
        try:
            self._start()
            self._make_chaos()
            self._settle()
        except Stuck as stuck:
            self.result.why = str(stuck)
            self.result.balance.jobs = self.accounts.accepted
        finally:
            self.result.seconds = time.monotonic() - began
            self._end()
        if self.result.kept and not self.plan.keep:
            shutil.rmtree(self.directory, ignore_errors=True)
        else:
            self.result.directory = str(self.directory)
        return self.result

    # -- the scene ----------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def hold(self, *what: str) -> Iterator[bool]:
        if self._held & set(what):
            yield False
            return
        self._held |= set(what)
        try:
            yield True
        finally:
            self._held -= set(what)

    def struck(self, pids: list[int], why: str, *, killed: bool = False) -> None:
        self.story.strikes += [Strike(pid, time.monotonic_ns(), why, killed) for pid in pids]
        self._note(f"{why}: processes {pids}")

    def _note(self, what: str) -> None:
        self._diary.write(f"{time.monotonic():.6f} {what}\n")

    @contextlib.contextmanager
    def span(self, what: str, machine: str = "") -> Iterator[None]:
        begin_ns = time.monotonic_ns()
        try:
            yield
        finally:
            if what != "crashes" or self.arena.may_repeat_after_crash:
                getattr(self.story, what).append(Span(machine, begin_ns, time.monotonic_ns()))
            self._note(f"{what} {machine} since {begin_ns / 1e9:.6f}")

    def kill_producer(self) -> None:
        self.producer.kill()

    # -- its course ---------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        self.arena.start()
        self._admin(lambda store: store.migrate())
        self.machines = [Machine(name, self.arena.url(name), self.directory, self.plan.workers) for name in ("A", "B")]
        self.producer = ProducerProcess("P", self.arena.url("P"), self.directory)
        for machine in self.machines:
            machine.start()
        self._tended = time.monotonic()
        self._until(self._is_at_work, UP_S, "no job has run")

    def _is_at_work(self) -> bool:
        self._tend(time.monotonic())
        return self.accounts.finished > 0

    def _make_chaos(self) -> None:
        next_fault = self._tended = time.monotonic()
        end = next_fault + self.plan.seconds
        while (now := time.monotonic()) < end and self.accounts.offered < self.plan.most_jobs:
            if now >= next_fault and self._faults:
                next_fault = now + self.random.expovariate(self.plan.faults_s)
                self._inject()
            self._go_on(now)
            self._tend(now)
            time.sleep(TICK_S)

    def _inject(self) -> None:
        fault: Fault = self.random.choices(self._faults, [fault.weight for fault in self._faults])[0]
        steps = fault.harm(self)
        pause_s = next(steps, None)
        if pause_s is None:  # it stood aside
            return
        self.result.faults[fault.words] += 1
        self._note(fault.words)
        heapq.heappush(self._pending, _Pending(time.monotonic() + pause_s, next(self._count), steps))

    def _go_on(self, now: float) -> None:
        while self._pending and self._pending[0].due <= now:
            steps = heapq.heappop(self._pending).steps
            pause_s = next(steps, None)
            if pause_s is not None:
                heapq.heappush(self._pending, _Pending(now + pause_s, next(self._count), steps))

    def _tend(self, now: float) -> None:
        """Count, keep the producer busy, show how it goes."""
        self.accounts.read()
        bound = min(self.accounts.finished + self.plan.backlog, self.plan.most_jobs)
        self._allowed = min(self._allowed + self.plan.load * (now - self._tended), bound)
        self._tended = now
        if not self.producer.is_up:
            self.producer.start(self.accounts.offered, self.random.getrandbits(32), self.plan.only)
        self.producer.allow(int(self._allowed))
        for machine in self.machines:
            if not machine.is_up and machine.name not in self._held:
                raise Stuck(f"supervisor {machine.name} has ended by itself, see {machine.log}")
        self._show(self._line())

    def _line(self) -> str:
        accounts, faults = self.accounts, self.result.faults.total()
        return f"{self.plan.store}: {accounts.accepted:,} accepted, {accounts.finished:,} finished, {faults:,} faults"

    # -- the end ------------------------------------------------------------------------------------------------------

    def _settle(self) -> None:
        """No more faults: everything ends, and then there is nothing."""
        while self._pending:
            self._go_on(self._pending[0].due)
            time.sleep(0.0)
        for machine in self.machines:
            if not machine.is_up:
                machine.start()
        self.producer.finish(40.0)
        self._until(self._is_empty, SETTLE_S, "jobs are left")
        for machine in self.machines:
            machine.send(signal.SIGTERM)
        self._until(lambda: not any(machine.is_up for machine in self.machines), 30.0, "a supervisor does not end")
        codes = {machine.name: machine.process.returncode for machine in self.machines if machine.process}
        self.accounts.read()
        dead = self._bury()
        left = self._loop.run_until_complete(self.arena.leftovers())
        if any(codes.values()):
            left.append(f"exit codes of supervisors: {codes}")
        self.result.balance = self.accounts.balance(self.story, dead, left)
        self.result.verdict = "broken" if self.result.balance.culprits else "kept"

    def _is_empty(self) -> bool:
        """Nothing is to be done, and nobody but those who live has a lease."""
        self.accounts.read()
        self._show(f"{self._line()}; settling")
        try:
            stats = self._admin(lambda store: store.stats())
            leases = self._admin(lambda store: store.leases())
        except BackendError:
            return False
        return not stats.running and not any(queue.ready + queue.delayed for queue in stats.queues) and len(leases) <= 2

    def _bury(self) -> dict[int, str]:
        """Take the dead letters away. The number of each job, and its recorded reason."""

        async def go(store: Store) -> dict[int, str]:
            found: dict[int, str] = {}
            while letters := await store.dead_list(None, None, LETTERS):
                for letter in letters:
                    job, reason = _read_letter(letter.envelope)
                    found[job] = reason
                await store.dead_delete([letter.id for letter in letters])
            return found

        return self._admin(go)

    def _admin(self, work: Callable[[Store], Any]) -> Any:
        async def go() -> Any:
            store = self.arena.store()
            try:
                async with asyncio.timeout(30):
                    return await work(store)
            finally:
                await store.close()

        return self._loop.run_until_complete(go())

    def _until(self, holds: Callable[[], bool], limit_s: float, what: str) -> None:
        deadline = time.monotonic() + limit_s
        while not holds():
            if time.monotonic() > deadline:
                raise Stuck(f"{what} after {limit_s:g} s\n{self._state()}")
            time.sleep(TICK_S)

    def _state(self) -> str:
        """What may explain a run that is stuck; the stacks of all processes go to their logs."""
        for machine in self.machines:
            machine.send(signal.SIGUSR1)
        deadline = time.monotonic() + STACKS_S
        while time.monotonic() < deadline and not all(STACK in machine.log.read_text() for machine in self.machines):
            time.sleep(TICK_S)
        time.sleep(1.0)  # each process writes its own, one after the other

        async def look(store: Store) -> str:
            leases = await store.leases()
            workers = {lease: await store.workers(lease) for lease in leases}
            return f"{await store.stats()}\nleases {leases}\nworkers {workers}"

        try:
            seen = self._admin(look)
        except (BackendError, TimeoutError) as error:
            seen = f"the store does not answer: {error}"
        return f"{self._line()}\n{seen}"

    def _end(self) -> None:
        for steps in self._pending:
            steps.steps.close()  # type: ignore[attr-defined]
        self.producer.kill()
        for machine in self.machines:
            machine.dies()
        self.arena.stop()
        self._loop.close()
        self._diary.close()


class Stuck(Exception):
    """The run does not go on. Says what is known."""


def _read_letter(envelope: bytes) -> tuple[int, str]:
    """The number of a dead job, -1 if it cannot be read; and why it is dead, "" if that is not recorded."""
    try:
        job = decode_job(envelope)
        number = int(json.loads(job.payload)["n"])
    except (SerializationError, ValueError, KeyError, TypeError):
        return -1, "unreadable"
    last = job.history[-1] if job.history else None
    return number, f"{last.kind}: {last.error}: {last.message}" if last is not None and last.error else ""
