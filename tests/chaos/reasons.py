"""Why a job may have run in vain: which faults hit its worker, as far as driver and ledger know."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from tests.chaos.ledger import Event, Line, Tail

LINGER_S: Final = 5.0
"""What has ended is settled so long after it at the latest, while the store can be reached."""

AFTERMATH_S: Final = 30.0
"""So long after a fault that cuts a machine off its workers may learn that others have their jobs."""

DYING_S: Final = 2.0
"""A process that is being killed may go on for so long, on a machine under load; nearly always for less than a millisecond."""

BEFORE_CRASH_S: Final = 3.0
"""A Postgres that crashes may forget moves of so long before: they are committed asynchronously."""


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
        drained = [span for span in self._story.drained if span.machine == machine]
        if run.failed and any(_within(span, run.end_ns) for span in drained):
            return "drain"
        if not run.end_ns and any(span.end_ns >= run.begin_ns for span in drained):  # it went down with its worker, unstopped
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
        """Leases that were taken although nothing cut their machines off, nor had the store forgotten their claims."""
        found = []
        for file, times in self._disowned.items():
            machine = self._files[file].machine
            spans = [span for span in self._story.cut_off if span.machine in ("", machine)] + self._story.crashes
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
