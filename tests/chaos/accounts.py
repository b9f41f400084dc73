"""The exact accounts: what was accepted has ended, nothing ran without need, and what ran again did so for a reason.

While the run goes on `Accounts.read` counts by job number, a few bytes a job. At the end `balance` compares; the jobs that
need explaining, and only those, are looked up in the ledger a second time.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

from tests.chaos.kinds import FATES, Kind
from tests.chaos.ledger import Event, Line, Tail, tails
from tests.chaos.reasons import Excuses, Run, Story, Strike, runs_of, shown

MOST_CULPRITS: Final = 1_000

SLICE: Final = 100_000
"""Jobs that are looked into at once: their records are in memory."""

NOT_OFFERED, OFFERED, ACCEPTED, REFUSED = range(4)


Recoveries = dict[tuple[str, int], tuple[float, int]]
"""By process and time of its kill: seconds until one of its jobs started again, and which."""


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
    slowest: Culprit | None = None  #: the job of the slowest of them
    culprits: list[Culprit] = field(default_factory=list)  #: the first of them
    wrong: int = 0  #: jobs that do not balance
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
        excuses = Excuses(self._files, story, self.deaths, self.disowned)
        balance.disowned = sum(map(len, self.disowned.values()))
        balance.culprits += [Culprit(-1, what, []) for what in excuses.unfounded()]
        names = list(self._files)
        recoveries: Recoveries = {}
        for some in batched(sorted(curious | wrong.keys()), SLICE):
            for job, lines in self._lines(set(some)).items():
                if job in curious and (what := self._judge(balance, excuses, job, runs_of(lines, names), recoveries)):
                    wrong.setdefault(job, what)
                if job in wrong and len(balance.culprits) < MOST_CULPRITS:
                    balance.culprits.append(Culprit(job, wrong[job], shown(lines, names)))
        balance.wrong = len(wrong)
        found = sorted(recoveries.values())
        balance.recoveries_s = [took_s for took_s, _ in found]
        if found:
            job = found[-1][1]
            balance.slowest = Culprit(job, Kind(self._kinds[job]).name.lower(), shown(self._lines({job})[job], names))

    def _judge(
        self,
        balance: Balance,
        excuses: Excuses,
        job: int,
        runs: list[Run],
        recoveries: Recoveries,
    ) -> str:
        """What is wrong with the *runs* of one job; "" if nothing is. Adds to *recoveries*."""
        for run in runs:
            again = next((later for later in runs if later.begin_ns > run.begin_ns and later.file != run.file), None)
            if again is not None and (strike := excuses.killed(run)):
                key, took_s = (run.file, strike.ns), (again.begin_ns - strike.ns) / 1e9
                recoveries[key] = min(recoveries.get(key, (took_s, job)), (took_s, job))
        failures = FATES[Kind(self._kinds[job])].failures
        balance.repeats += max(len(runs) - 1 - failures, 0)
        whys = [excuses.of(run) for run in runs[:-1]]
        if whys.count("") > failures and excuses.was_cut_off(runs[-1]):  # others may have run it before that machine learnt so
            whys = [*whys, excuses.of(runs[-1])]
            failures += 1
        balance.because.update(why for why in whys if why)
        without = whys.count("")
        return f"ran {without + 1} times without a fault that explains it" if without > failures else ""

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


def batched(jobs: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    """*jobs* in slices of *size*."""
    for at in range(0, len(jobs), size):
        yield jobs[at : at + size]


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
