"""The exact accounts: what was accepted has ended, nothing ran without need, and what ran again did so for a reason.

While the run goes on `Accounts.read` counts by job number, a few bytes a job. At the end `balance` compares; the jobs that
need explaining, and only those, are looked up in the ledger a second time.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

from tests.chaos.kinds import FATES, Kind
from tests.chaos.ledger import Event, Line, Tail, tails

LINGER_S: Final = 5.0
"""What has ended is settled so long after it at the latest, while the store can be reached."""

AFTERMATH_S: Final = 30.0
"""So long after a fault that cuts a machine off its workers may learn that others have their jobs."""

DYING_S: Final = 2.0
"""A process that is being killed may go on for so long, on a machine under load; nearly always for less than a millisecond."""

BEFORE_CRASH_S: Final = 3.0
"""A Postgres that crashes may forget moves of so long before: they are committed asynchronously."""

NOT_OFFERED, OFFERED, ACCEPTED, REFUSED = range(4)


class Strike(NamedTuple):
    """A process was hit by a fault that may have it lose the jobs it holds."""

    pid: int
    ns: int
    why: str
    killed: bool = False  #: it alone, at once: its jobs should be back soon


class Span(NamedTuple):
    """A time in which something was so. *machine* "": everywhere."""

    machine: str
    begin_ns: int
    end_ns: int


@dataclass
class Story:
    """What the driver knows that is not in the ledger."""

    strikes: list[Strike] = field(default_factory=list)
    cut_off: list[Span] = field(default_factory=list)  #: a machine may have lost its lease
    drained: list[Span] = field(default_factory=list)  #: a machine's workers were told to stop
    crashes: list[Span] = field(default_factory=list)  #: the store may have forgotten moves
    outages: list[Span] = field(default_factory=list)  #: nobody could settle


class Culprit(NamedTuple):
    """A job that does not balance."""

    job: int
    what: str
    lines: list[str]


@dataclass
class Balance:
    """The outcome."""

    jobs: int = 0  #: accepted, or unsure and there
    unsure: int = 0  #: that the producer could not know of
    dead: int = 0
    repeats: int = 0  #: runs beyond those that the job's kind has by design
    because: Counter[str] = field(default_factory=Counter)  #: of the repeats
    recoveries_s: list[float] = field(default_factory=list)  #: killed worker: to the first start of one of its jobs elsewhere
    culprits: list[Culprit] = field(default_factory=list)
    disowned: int = 0  #: times that a worker learnt that others have its jobs
    faults: Counter[str] = field(default_factory=Counter)  #: of handlers


class Accounts:
    """Counters of one run. Job numbers begin at 0 and have no gaps."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.offered = 0  #: jobs, that is the next number
        self.accepted = 0
        self.finished = 0  #: different jobs
        self._fates = bytearray()
        self._kinds = bytearray()
        self._starts = bytearray()
        self._ends = bytearray()
        self._files: dict[str, Tail] = {}
        self.deaths: list[Strike] = []  #: that handlers have caused themselves
        self.disowned: dict[str, list[int]] = defaultdict(list)  #: file: when, in ns
        self._faults: Counter[int] = Counter()

    def read(self) -> None:
        """Count what is new."""
        files = sorted(tails(self.directory, self._files).values(), key=lambda tail: tail.is_worker)
        for tail in files:  # producers first, so that arrays are long enough
            if tail.is_worker:
                self._read_worker(tail)
            else:
                self._read_producer(tail)

    def _read_producer(self, tail: Tail) -> None:
        for _, job, count, event, kind in tail.new():
            if event == Event.OFFERED:
                self._grow(job + count)
                self._fates[job : job + count] = bytes([OFFERED]) * count
            elif event == Event.KIND:
                self._kinds[job] = kind
            elif event == Event.ACCEPTED:
                self._fates[job : job + count] = bytes([ACCEPTED]) * count
                self.accepted += count
            elif event == Event.REFUSED:
                self._fates[job : job + count] = bytes([REFUSED]) * count

    def _grow(self, size: int) -> None:
        self.offered = max(self.offered, size)
        for counts in (self._fates, self._kinds, self._starts, self._ends):
            if len(counts) < size:
                counts.extend(bytes(max(size - len(counts), 1 << 16)))

    def _read_worker(self, tail: Tail) -> None:
        starts, ends = self._starts, self._ends
        for ns, job, who, event, kind in tail.new():
            if event == Event.STARTED:
                if job >= len(starts):
                    self._grow(job + 1)
                if starts[job] < 255:
                    starts[job] += 1
                if kind > Kind.THREAD:
                    self._faults[kind] += 1
            elif event == Event.FINISHED:
                if not ends[job]:
                    self.finished += 1
                if ends[job] < 255:
                    ends[job] += 1
            elif event == Event.DYING:
                self.deaths.append(Strike(who, ns, FATES[Kind(kind)].words, killed=kind != Kind.POISON))
            elif event == Event.DISOWNED:
                self.disowned[tail.path.name].append(ns)
            elif event == Event.UP:
                tail.up_ns = ns

    # -- the end ------------------------------------------------------------------------------------------------------

    def balance(self, story: Story, dead: Mapping[int, str], left: Iterable[str]) -> Balance:
        """Compare. *dead*: job number to recorded reason, "" for none. *left*: what the store still holds."""
        balance = Balance(unsure=self._fates.count(OFFERED), dead=len(dead))
        wrong: dict[int, str] = {}
        curious: set[int] = set()
        fates = [FATES[kind] for kind in Kind]
        for job in range(self.offered):
            fate, starts, ends = self._fates[job], self._starts[job], self._ends[job]
            wanted = fates[self._kinds[job]]
            balance.jobs += fate == ACCEPTED or bool(fate == OFFERED and (starts or job in dead))
            if starts > wanted.failures + 1:
                curious.add(job)
            what = _wrong(fate, starts, ends, wanted.dead, dead.get(job))
            if what:
                wrong[job] = what
        for job in dead.keys() - set(range(self.offered)):
            wrong[job] = "dead, and nobody offered it"
        balance.faults = Counter({FATES[Kind(kind)].words: count for kind, count in self._faults.items()})
        self._explain(balance, story, curious, wrong)
        balance.culprits += [Culprit(-1, f"left in the store: {what}", []) for what in left]
        return balance

    def _explain(self, balance: Balance, story: Story, curious: set[int], wrong: dict[int, str]) -> None:
        lines = self._lines(curious | wrong.keys())
        names = list(self._files)
        excuses = Excuses(self._files, story, self.deaths, self.disowned)
        balance.disowned = sum(map(len, self.disowned.values()))
        balance.culprits += [Culprit(-1, what, []) for what in excuses.unfounded()]
        recoveries: dict[tuple[str, int], float] = {}
        for job in sorted(curious):
            runs = runs_of(lines[job], names)
            without = 0
            for run in runs:
                # Of the last run nothing came in vain, unless its machine had been cut off and others ran the job before it.
                why = excuses.of(run) if run is not runs[-1] or excuses.was_cut_off(run) else ""
                without += not why
                if why:
                    balance.because[why] += 1
                strike = excuses.killed(run)
                later = (other.begin_ns for other in runs if other.begin_ns > run.begin_ns and other.file != run.file)
                again = next(later, None)
                if strike and again:
                    key, took_s = (run.file, strike.ns), (again - strike.ns) / 1e9
                    recoveries[key] = min(recoveries.get(key, took_s), took_s)
            allowed = FATES[Kind(self._kinds[job])].failures + 1
            balance.repeats += max(len(runs) - allowed, 0)
            if without > allowed:
                wrong.setdefault(job, f"ran {without} times without a fault that explains it")
        balance.recoveries_s = sorted(recoveries.values())
        balance.culprits += [Culprit(job, wrong[job], shown(lines[job], names)) for job in sorted(wrong)]

    def _lines(self, jobs: set[int]) -> dict[int, list[tuple[int, Line]]]:
        """All records about *jobs*, by time, each with the index of its file."""
        found: dict[int, list[tuple[int, Line]]] = {job: [] for job in jobs}
        for at, tail in enumerate(self._files.values()):
            for record in Tail(tail.path).new():
                if record[1] in jobs and record[3] in (Event.STARTED, Event.FINISHED, Event.FAILED, Event.DYING):
                    found[record[1]].append((at, Line(*record)))
        for lines in found.values():
            lines.sort(key=lambda line: line[1].ns)
        return found


def _wrong(fate: int, starts: int, ends: int, to_die: bool, reason: str | None) -> str:
    """What is wrong with a job; "" if nothing is."""
    if fate in (NOT_OFFERED, REFUSED):
        return "ran, and was refused" if starts or reason is not None else ""
    if reason == "":
        return "dead without a reason"
    if reason is not None and (ends or not to_die):
        return "finished, and is dead" if ends else f"dead, though of a kind that ends well: {reason}"
    if fate == OFFERED and not starts:
        return ""
    if not ends and reason is None:
        return "lost: accepted, started, never ended" if starts else "lost: accepted, never started"
    return ""


class Run(NamedTuple):
    """One start of one job, and what came of it."""

    file: str
    begin_ns: int
    end_ns: int  #: 0: it never ended
    failed: bool


def runs_of(lines: list[tuple[int, Line]], names: list[str]) -> list[Run]:
    """The runs of one job."""
    runs = []
    for at, (file, line) in enumerate(lines):
        if line.event != Event.STARTED:
            continue
        end_ns, failed = 0, False
        for other, later in lines[at + 1 :]:
            if other == file and later.event in (Event.STARTED, Event.FINISHED, Event.FAILED):
                if later.event != Event.STARTED:
                    end_ns, failed = later.ns, later.event == Event.FAILED
                break
        runs.append(Run(names[file], line.ns, end_ns, failed))
    return runs


def shown(lines: list[tuple[int, Line]], names: list[str]) -> list[str]:
    """The ledger's lines as people read them."""
    return [
        f"{line.ns / 1e9:.6f} {Event(line.event).name.lower()} by process {line.who} ({names[file]})" for file, line in lines
    ]


class Excuses:
    """Why a run may have been in vain."""

    def __init__(
        self, files: Mapping[str, Tail], story: Story, deaths: Iterable[Strike], disowned: Mapping[str, list[int]]
    ) -> None:
        self._files = files
        self._story = story
        self._disowned = disowned
        by_pid: dict[int, list[Tail]] = defaultdict(list)
        for tail in files.values():
            if tail.is_worker:
                by_pid[tail.pid].append(tail)
        self._strikes: dict[str, list[Strike]] = defaultdict(list)
        for strike in (*story.strikes, *deaths):
            ours = [tail for tail in by_pid[strike.pid] if tail.up_ns <= strike.ns]  # numbers are used again
            if ours:
                self._strikes[max(ours, key=lambda tail: tail.up_ns).path.name].append(strike)

    def of(self, run: Run) -> str:
        """The fault that explains why *run* was not the last; "" if there is none."""
        for strike in self._strikes[run.file]:
            if self._held(run, strike.ns):
                return strike.why
        if any(self._held(run, ns, AFTERMATH_S) for ns in self._disowned.get(run.file, ())):
            return "lease taken"
        for crash in self._story.crashes:
            if (run.end_ns or crash.end_ns) >= crash.begin_ns - BEFORE_CRASH_S * 1e9 and run.begin_ns <= crash.end_ns:
                return "store crashed"
        machine = self._files[run.file].machine
        if run.failed and any(span.machine == machine and _within(span, run.end_ns) for span in self._story.drained):
            return "drain"
        return ""

    def was_cut_off(self, run: Run) -> bool:
        """Whether its machine may have lost its lease not long before *run* began."""
        machine = self._files[run.file].machine
        return any(span.machine in ("", machine) and _within(span, run.begin_ns, AFTERMATH_S) for span in self._story.cut_off)

    def killed(self, run: Run) -> Strike | None:
        """The kill of its worker that *run* was under way at."""
        for strike in self._strikes[run.file]:
            if strike.killed and run.begin_ns <= strike.ns + DYING_S * 1e9 and not run.end_ns:
                return strike
        return None

    def unfounded(self) -> list[str]:
        """Leases that were taken although nothing cut their machines off."""
        found = []
        for file, times in self._disowned.items():
            machine = self._files[file].machine
            spans = [span for span in self._story.cut_off if span.machine in ("", machine)]
            found += [
                f"{ns / 1e9:.6f} a worker lost its lease, and nothing had cut it off: {file}"
                for ns in times
                if not any(_within(span, ns, AFTERMATH_S) for span in spans)
            ]
        return found

    def _held(self, run: Run, ns: int, linger_s: float = LINGER_S) -> bool:
        """Whether the worker may have held the job of *run* at *ns*: under way, or ended and not settled."""
        if ns + DYING_S * 1e9 < run.begin_ns:
            return False
        linger_s += sum((span.end_ns - span.begin_ns) / 1e9 for span in self._story.outages if _overlap(span, run.end_ns, ns))
        return not run.end_ns or ns <= run.end_ns + linger_s * 1e9


def _within(span: Span, ns: int, after_s: float = 0.0) -> bool:
    return span.begin_ns <= ns <= span.end_ns + after_s * 1e9


def _overlap(span: Span, begin_ns: int, end_ns: int) -> bool:
    return span.begin_ns <= end_ns and span.end_ns >= begin_ns
