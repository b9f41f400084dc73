"""The worker processes of a supervisor: who sits where, who is told to leave, who is replaced and when.

A seat is the place of one worker among N. Its worker may be replaced while it still drains, so a seat has at most one worker
that stays, and for a reload one more that is to take its place as soon as it is up.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import select
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Final

import msgspec

from fastjobs import clock
from fastjobs.adoption import describe_exit
from fastjobs.childtask import EXIT_REFUSED, EXIT_UNFINISHED
from fastjobs.durations import duration_text
from fastjobs.options import WorkerOptions
from fastjobs.progress import Totals
from fastjobs.slots import Slot, Slots, State, Word

log = logging.getLogger("fastjobs.supervisor")

HOPELESS: Final = 5
"""Young deaths in a row of every seat, with no worker ever at work, after which a burst will not get anywhere."""

YOUNG_S: Final = 5.0
"""A worker that dies younger is started again with a growing delay."""

FIRST_DELAY_S: Final = 0.1
LONGEST_DELAY_S: Final = 10.0

NO_FORK_S: Final = 1.0
"""Between tries while the system has no room for another process."""

STOP_S: Final = 2.5
"""After the grace time, for telling the store; then a worker is killed."""

ANSWER_S: Final = 0.25
"""For a process that was asked for its stacks; one that is stopped does not answer."""

QUIET_S: Final = 0.02

STACKS_S: Final = 0.5
"""Between asking a silent worker for its stacks and killing it."""

RECYCLE_JITTER: Final = 0.1
"""Workers are recycled at up to so much below their limits, not all at once."""

PAUSE_S: Final = 1.0
"""The supervisor looks four times a second; after so long without a look it had been stopped itself, and others with it."""


class Attention:
    """Since when this process has looked on without a pause: whatever was silent while it was stopped itself may be well."""

    def __init__(self) -> None:
        self._since = self._looked = 0.0

    def since(self, now: float) -> float:
        """clock.monotonic. To be called at each look."""
        if now - self._looked > PAUSE_S:
            self._since = now
        self._looked = now
        return self._since


class WorkerProcess(msgspec.Struct):
    """One worker process. Survives the supervisor's exec as JSON."""

    pid: int
    slot: int
    stacks_fd: int  #: to read its stacks from
    born: float  #: clock.monotonic
    code: int  #: generation of the code it runs
    leaving: bool = False  #: told to drain: nobody expects it to stay
    busy: bool = False  #: ran jobs when it was told so
    cut_short: bool = False  #: killed, or still running a job when its grace time ended
    kill_at: float | None = None  #: clock.monotonic, when it will be killed
    silent: bool = False  #: its stacks were asked for, its loop does not turn
    spread: float = 0.0  #: 0 to 1, its own part of the recycling jitter


class Seat(msgspec.Struct):
    """The place of one worker."""

    worker: WorkerProcess | None = None
    successor: WorkerProcess | None = None  #: of newer code, on its way up
    failures: int = 0  #: young deaths in a row
    start_at: float = 0.0  #: clock.monotonic


class Crew:
    """All workers. *start* starts a process in a slot; *bereaved* is called when a slot became DEAD."""

    def __init__(
        self,
        slots: Slots,
        options: WorkerOptions,
        *,
        start: Callable[[Slot], tuple[int, int]],
        bereaved: Callable[[], None],
        watchdog_s: float | None,
        totals: Totals,
    ) -> None:
        self.slots = slots
        self.options = options
        self.totals = totals
        self.seats: list[Seat] = []
        self.processes: dict[int, WorkerProcess] = {}
        self.next_number = 1
        self.code = 1
        self.refused = False  #: the store refused a worker before any has worked
        self.cut_short = False  #: some job did not end within its grace time
        self._start = start
        self._bereaved = bereaved
        self._watchdog_s = watchdog_s
        self._worked = False
        self._died_young = False
        self._weighed_at = 0.0  # clock.monotonic, of the last look at resident memory
        self._attention = Attention()

    # -- the number of workers ----------------------------------------------------------------------------------------

    @property
    def most(self) -> int:
        """As many workers as the mapping can hold while each is being replaced."""
        return len(self.slots.slots) // 2

    def resize(self, count: int) -> None:
        """Have *count* workers; those too many drain."""
        while len(self.seats) < count:
            self.seats.append(Seat())
        while len(self.seats) > count:
            seat = self.seats.pop()
            for process in (seat.worker, seat.successor):
                if process is not None:
                    self.dismiss(process)

    @property
    def hopeless(self) -> bool:
        """Whether workers only die, and none has ever been at work."""
        return not self._worked and bool(self.seats) and all(seat.failures >= HOPELESS for seat in self.seats)

    @property
    def only_died(self) -> bool:
        """Whether workers have died young, and none has ever been at work."""
        return not self._worked and self._died_young

    def take_in(self, processes: Iterable[WorkerProcess], *, next_number: int, code: int) -> None:
        """Workers of the supervisor's earlier image, which run earlier code than *code*."""
        self.next_number, self.code = next_number, code
        self._worked = True
        for process in processes:
            self.processes[process.pid] = process
            if not process.leaving:
                self.seats.append(Seat(process))

    def tend(self, now: float) -> None:
        """Start who is missing, replace who is outdated, recycle who is over a limit, kill who is overdue."""
        self._watch(now)
        self._kill_overdue(now)
        for seat in self.seats:
            if seat.worker is None and seat.successor is None and now >= seat.start_at:
                seat.worker = self._new(seat, now)
        self._replace_outdated(now)

    def _new(self, seat: Seat, now: float) -> WorkerProcess | None:
        """A worker in a free slot. None if there is none, maintenance having to deal with the dead ones first, or no fork."""
        slot = next((slot for slot in self.slots if slot.state is State.FREE), None)
        if slot is None:
            return None
        slot.words[Word.NUMBER] = self.next_number
        slot.words[Word.CODE] = self.code
        slot.state = State.STARTING
        self.next_number += 1
        try:
            pid, stacks_fd = self._start(slot)
        except OSError as error:  # no memory, too many processes or files
            log.error("a worker cannot be started, the next try is in %s: %s", duration_text(NO_FORK_S), error)
            slot.clear()
            seat.start_at = now + NO_FORK_S
            return None
        slot.words[Word.PID] = pid
        process = WorkerProcess(pid, slot.index, stacks_fd, now, self.code, spread=random.random())  # nosec B311  # noqa: S311
        self.processes[pid] = process
        return process

    def _replace_outdated(self, now: float) -> None:
        """One by one: the new one is up before the old one drains, and that one gone before the next is started."""
        for seat in self.seats:
            if seat.successor is not None:
                if self._state(seat.successor) is State.RUNNING:
                    old, seat.worker, seat.successor = seat.worker, seat.successor, None
                    if old is not None:
                        self.dismiss(old)
                return
        if any(process.leaving and process.code != self.code for process in self.processes.values()):
            return
        for seat in self.seats:
            if seat.worker is not None and seat.worker.code != self.code:
                if now >= seat.start_at:
                    seat.successor = self._new(seat, now)
                return

    def _state(self, process: WorkerProcess) -> State:
        return self.slots.slots[process.slot].state

    # -- leaving ------------------------------------------------------------------------------------------------------

    def dismiss(self, process: WorkerProcess) -> None:
        """Tell a worker to drain; it is killed when its grace time is over. What it leaves behind counts no loss."""
        if process.leaving:
            return
        slot = self.slots.slots[process.slot]
        slot.words[Word.DRAINED] = 1
        process.leaving, process.busy = True, bool(slot.started())
        deadline = clock.monotonic() + self.options.grace_s + STOP_S
        process.kill_at = deadline if process.kill_at is None else min(process.kill_at, deadline)
        _send(process.pid, signal.SIGTERM)

    def dismiss_all(self) -> None:
        """Drain everybody; nobody is replaced."""
        # First the marks, then the signals: whatever ends from here on was told to.
        for process in self.processes.values():
            self.slots.slots[process.slot].words[Word.DRAINED] = 1
        self.seats.clear()
        self.cut_short = False
        for process in self.processes.values():
            self.dismiss(process)

    def kill_all(self) -> None:
        """End everybody now."""
        for process in self.processes.values():
            self._kill(process)

    def _kill(self, process: WorkerProcess) -> None:
        process.cut_short = process.leaving and bool(self.slots.slots[process.slot].started())
        process.kill_at = None
        if process.silent:
            self._keep_stacks(process)
        kill_group(process.pid)

    def _kill_overdue(self, now: float) -> None:
        for process in self.processes.values():
            if process.kill_at is not None and now >= process.kill_at:
                number = self._number(process)
                why = "its loop is silent" if process.silent else "it has not stopped within its grace time"
                log.warning("worker %d (process %d) is killed: %s", number, process.pid, why)
                self._kill(process)

    def _number(self, process: WorkerProcess) -> int:
        return self.slots.slots[process.slot].words[Word.NUMBER]

    # -- watching -----------------------------------------------------------------------------------------------------

    def _watch(self, now: float) -> None:
        weigh = self.options.max_rss_mb is not None and now - self._weighed_at >= 1.0
        if weigh:
            self._weighed_at = now
        looking_since = self._attention.since(now)
        for process in list(self.processes.values()):
            words = self.slots.slots[process.slot].words
            if words[Word.STATE] == State.RUNNING:
                self._worked = True
            if self._watchdog_s is not None and not process.silent and words[Word.TICK_NS]:
                silent_s = now - max(words[Word.TICK_NS] / 1e9, looking_since)
                if silent_s > self._watchdog_s:
                    self._ask_for_stacks(process, silent_s)
            if not process.leaving and (why := self._reason_to_replace(process, weigh=weigh)):
                log.info("worker %d (process %d) is replaced: %s", words[Word.NUMBER], process.pid, why)
                for seat in self.seats:
                    if seat.worker is process:
                        seat.worker = None
                self.dismiss(process)

    def _reason_to_replace(self, process: WorkerProcess, *, weigh: bool) -> str:
        words = self.slots.slots[process.slot].words
        if words[Word.TIMED_OUT]:
            return "a job of it cannot be stopped"
        options = self.options
        ended = words[Word.DONE] + words[Word.RETRIED] + words[Word.DIED]
        if options.max_jobs is not None and ended >= options.max_jobs * (1 - RECYCLE_JITTER * process.spread):
            return f"it has run {ended:,} jobs"
        if weigh and options.max_rss_mb is not None:
            resident_mb = resident_bytes(process.pid) / 2**20
            if resident_mb > options.max_rss_mb * (1 - RECYCLE_JITTER * process.spread):
                return f"it has {resident_mb:,.0f} MiB of resident memory"
        return ""

    def _ask_for_stacks(self, process: WorkerProcess, silent_s: float) -> None:
        log.error("worker %d (process %d): its loop has been silent for %.1f s", self._number(process), process.pid, silent_s)
        process.silent = True
        self.slots.slots[process.slot].words[Word.SILENT_MS] = int(silent_s * 1000)
        _send(process.pid, signal.SIGUSR2)
        process.kill_at = clock.monotonic() + STACKS_S

    def stacks(self) -> Iterator[tuple[str, str]]:
        """Whose they are, and the stacks of each worker now, one after the other."""
        for process in list(self.processes.values()):
            _send(process.pid, signal.SIGUSR2)
            title = f"worker {self._number(process)} (process {process.pid})"
            yield title, read_quiet(process.stacks_fd).decode("utf-8", "replace").rstrip() or "  it does not answer"

    def _keep_stacks(self, process: WorkerProcess) -> None:
        """Show a silent worker's stacks, and put them where they get into the history of its jobs."""
        try:
            text = os.read(process.stacks_fd, 65_536).decode("utf-8", "replace")
        except OSError:  # nothing came: it was stopped, or sits in the kernel
            text = ""
        self.slots.slots[process.slot].stack = text
        if text:
            log.error("its stacks:\n%s", text.rstrip())

    # -- the end of one -----------------------------------------------------------------------------------------------

    def ended(self, process: WorkerProcess, status: int, max_rss_kib: int, now: float) -> None:
        """A worker was reaped: its slot tells maintenance how, its seat is free again, with a delay if it died young."""
        del self.processes[process.pid]
        with contextlib.suppress(OSError):
            os.close(process.stacks_fd)
        slot = self.slots.slots[process.slot]
        number, worked = slot.words[Word.NUMBER], slot.state is not State.STARTING
        self.totals.add(slot)
        slot.words[Word.EXIT_STATUS] = status
        slot.words[Word.MAX_RSS_KIB] = max_rss_kib
        slot.state = State.DEAD
        self._bereaved()
        self._worked = self._worked or worked
        self._died_young |= status != 0 and not worked
        if process.leaving:
            overdue = process.busy and process.kill_at is not None and now > process.kill_at - STOP_S
            self.cut_short |= process.cut_short or overdue or status == EXIT_UNFINISHED << 8
            return
        _, how = describe_exit(status, max_rss_kib)
        if status == EXIT_REFUSED << 8 and not self._worked:
            self.refused = True
        delay_s = 0.0
        for seat in self.seats:
            if process in (seat.worker, seat.successor):
                delay_s = self._vacate(seat, process, now)
        then = f"; the next one starts in {duration_text(delay_s)}" if delay_s else ""
        level = logging.INFO if status == 0 else logging.ERROR
        age = duration_text(now - process.born)
        log.log(level, "worker %d (process %d, %s old) %s%s", number, process.pid, age, how, then)

    @staticmethod
    def _vacate(seat: Seat, process: WorkerProcess, now: float) -> float:
        """Free the seat. Seconds until it is taken again: 0.1, 0.2, 0.4, … up to 10 for workers that die young."""
        if seat.worker is process:
            seat.worker, seat.successor = seat.successor, None
        else:
            seat.successor = None
        seat.failures = seat.failures + 1 if now - process.born < YOUNG_S else 0
        delay_s = min(FIRST_DELAY_S * 2.0 ** (seat.failures - 1), LONGEST_DELAY_S) if seat.failures else 0.0
        seat.start_at = now + delay_s
        return delay_s

    def deadlines(self) -> Iterator[float]:
        """Moments at which `tend` has something to do (clock.monotonic)."""
        for process in self.processes.values():
            if process.kill_at is not None:
                yield process.kill_at
        for seat in self.seats:
            if seat.worker is None:
                yield seat.start_at


def _send(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def read_quiet(fd: int) -> bytes:
    """What is written to the pipe *fd* until nothing comes for `QUIET_S`, waiting up to `ANSWER_S` for the first of it."""
    text, timeout_s = b"", ANSWER_S
    while select.select([fd], [], [], timeout_s)[0]:
        data = os.read(fd, 65_536)
        if not data:
            break
        text, timeout_s = text + data, QUIET_S
    return text


def kill_group(pid: int) -> None:
    """SIGKILL the process *pid*, a child not yet reaped, and what else is in its group."""
    for kill in (os.killpg, os.kill):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            kill(pid, signal.SIGKILL)


def resident_bytes(pid: int) -> int:
    """Resident memory of process *pid*; 0 where the system does not tell (macOS), or it has ended."""
    if sys.platform != "linux":
        return 0
    try:
        with open(f"/proc/{pid}/statm", "rb") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0
