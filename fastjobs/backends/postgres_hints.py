"""Where claiming begins to look: hints that keep a scan off dead rows. Pure: no clock, no connection.

A delete leaves its row in table and index until VACUUM, and VACUUM can remove none that a long transaction elsewhere may
still see. A scan from the start walks them all: with such a transaction open a plain design fell from 50,000 jobs/s to 7,000
within 20 s. So each backend remembers, per queue and priority, up to which number it has claimed; those that start anew
begin with numbers saved in the store.

What a hint hides, because it committed late or was locked by another and left, is found by sweeps: looks below the hints, from
the top down and for some 10 ms at a time: all of it may be millions of dead rows (a look at 1.7 million took 3 s).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

SWEEP_EVERY_S: Final = 2.0
"""Seconds between the sweeps of a worker that always finds jobs. One that finds none sweeps at once."""

_WINDOW: Final = 100_000


class Pace:
    """Keeps a chore below 1/*share* of the time, once one run of it takes longer than *free_s* seconds."""

    def __init__(self, share: int, *, free_s: float = 0.005) -> None:
        self._share = share
        self._free_s = free_s
        self._next = 0.0

    def allows(self, now: float) -> bool:
        """May it run again? *now*: seconds on a clock that never steps."""
        return now >= self._next

    def took(self, seconds: float, now: float) -> None:
        """It ended at *now* after *seconds*."""
        self._next = now + self._share * seconds if seconds > self._free_s else now


class Slice(NamedTuple):
    """What to sweep next, as exchange.sql takes it."""

    until: list[int] | None
    window: int | None  #: None: do not sweep
    first: bool  #: before the hints are tried


class Hints:
    """Hints for one list of queues, as learnt on one connection, and the sweep below them."""

    def __init__(self) -> None:
        self.after: list[int] | None = None  #: per queue ten numbers, for priority 0 to 9; None: not known yet
        self._until: list[int] = []  # per hint, where the sweep stands; empty: none is under way
        self._window = _WINDOW
        self._spent_s = 0.0
        self._pace = Pace(10)
        self._sweep_at = 0.0

    def slice(self, now: float) -> Slice:
        """What the exchange that begins at *now* is to sweep."""
        if self.after is None:
            return Slice(None, _WINDOW, False)  # from the saved hints, if they find nothing
        if not self._pace.allows(now):
            return Slice(None, None, False)
        under_way = bool(self._until)
        return Slice(self._until if under_way else self.after, self._window, under_way or now >= self._sweep_at)

    def moved(self, slots: Sequence[int], seqs: Sequence[int]) -> None:
        """Hints an exchange returned: all of them the first time."""
        if self.after is None:
            self.after = list(seqs)
            return
        for slot, seq in zip(slots, seqs, strict=True):
            self.after[slot - 1] = seq

    def swept(self, until: Sequence[int], window: int, seconds: float, now: float) -> None:
        """A sweep ended at *now* after *seconds* and is to go on at *until*, with *window*."""
        self._pace.took(seconds, now)
        self._spent_s += seconds
        if any(until):
            self._until, self._window = list(until), window
            return
        self._until, self._window = [], _WINDOW
        self._sweep_at = now + max(SWEEP_EVERY_S, 50 * self._spent_s)
        self._spent_s = 0.0

    def doubt(self) -> None:
        """Begin a sweep with the next exchange."""
        self._until = []
        self._sweep_at = 0.0
