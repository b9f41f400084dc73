"""The claims a worker holds: which of their jobs have ended, when to tell the store, and how much to claim."""

from __future__ import annotations

from operator import attrgetter
from typing import Final

from fastjobs.model import Outcome, Settlement

SETTLE_AFTER_S: Final = 1.0
"""A job that is done waits at most so long for the rest of its claim; then the rest moves to a claim of its own."""

SETTLE_OUTCOMES_AFTER_S: Final = 0.1
"""The same for a retry or a dead job: its delay counts from the moment the store hears of it."""


class OpenClaim:
    """One batch of jobs leased to this worker."""

    __slots__ = ("ended", "ended_since", "id", "left", "lost", "outcomes")

    def __init__(self, id: int, size: int) -> None:
        self.id = id
        self.left = size  #: jobs not ended
        self.ended = bytearray(size)  #: 1 per ended job
        self.outcomes: list[Outcome] = []  #: of ended jobs that are not simply done
        self.ended_since = 0.0  #: clock.monotonic, when its first job ended; 0: none has
        self.lost = False  #: others have it: what becomes of its jobs here no longer counts

    def end(self, index: int, outcome: Outcome | None) -> None:
        """The job at *index* has ended."""
        self.ended[index] = 1
        self.left -= 1
        if outcome is not None:
            self.outcomes.append(outcome)

    def unfinished(self) -> list[int]:
        """Indexes of the jobs that have not ended, ascending."""
        return [index for index, ended in enumerate(self.ended) if not ended]

    def settlement(self, into: int = 0) -> Settlement:
        """What to tell the store now; unfinished jobs move to the claim *into*."""
        self.outcomes.sort(key=attrgetter("index"))  # released jobs keep their order
        return Settlement(self.id, self.outcomes, self.unfinished() if self.left else [], into)

    def due_in_s(self, now: float) -> float | None:
        """Seconds until its ended jobs have waited long enough for the rest; None while none has ended."""
        if not self.ended_since:
            return None
        return self.ended_since + (SETTLE_OUTCOMES_AFTER_S if self.outcomes else SETTLE_AFTER_S) - now


class Pace:
    """How many jobs a worker can start soon, so that it claims those and leaves the rest to others.

    Two bounds, whichever is lower. What the loop can start: jobs started per second while some were waiting, as a moving
    average, high for jobs that end or suspend at once, low for those that hold the loop. What there is room for: idle runners,
    and those that jobs ending as often as lately will free. `HORIZON_S` of either is held ready.
    """

    HORIZON_S: Final = 0.02
    #: "lately"; the longer, the slower a worker warms up: each claim may be 1 + HORIZON/MEMORY times the last
    MEMORY_S: Final = 0.05
    FIRST: Final = 16  #: jobs of the first claim, nothing being known yet

    def __init__(self, most: int) -> None:
        self.most = most
        self.start_rate: float | None = None  #: jobs/s
        self.end_rate = 0.0  #: jobs/s

    def sample_starts(self, started: int, seconds: float) -> None:
        """*started* jobs, at least one, were started in *seconds* during which some were waiting to start."""
        rate = started / max(seconds, 1e-6)
        self.start_rate = rate if self.start_rate is None else 0.5 * self.start_rate + 0.5 * rate

    def sample_ends(self, ended: int, seconds: float) -> None:
        """*ended* jobs ended in the *seconds* since the last sample."""
        self.end_rate = (self.end_rate * self.MEMORY_S + ended) / (self.MEMORY_S + seconds)

    def target(self, free: int) -> int:
        """Jobs to hold ready while *free* runners are idle; at least 1 if any is."""
        if self.start_rate is None:
            return min(free, self.FIRST)
        soon = min(self.start_rate * self.HORIZON_S, free + self.end_rate * self.HORIZON_S)
        return min(self.most, max(int(soon), 1 if free else 0))


def within(claims: list[OpenClaim], most_bytes: int) -> tuple[list[OpenClaim], list[OpenClaim]]:
    """*claims* cut in two: the first ones, at least one, whose outcomes' envelopes stay within *most_bytes*, and the others."""
    size = 0
    for count, claim in enumerate(claims):
        size += sum(len(outcome.entry.envelope) for outcome in claim.outcomes)
        if size > most_bytes and count:
            return claims[:count], claims[count:]
    return claims, []
