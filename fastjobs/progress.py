"""How far a supervisor's fleet has come: counts from the shared mapping, summed over workers alive and gone."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Final

import msgspec

from fastjobs.slots import Head, Slot, Slots, State, Word

WINDOW_S: Final = 5.0
"""What "jobs/s over the last seconds" looks back on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """One look. Counts are since the supervisor's start, its own reloads included."""

    elapsed_s: float
    workers: int  #: worker processes alive
    ready: int | None  #: in the queues that are served; None: not known (yet)
    delayed: int | None  #: the same
    running: int  #: handlers running now
    busy: int = 0  #: workers that run any
    done: int
    retried: int
    dead: int
    released: int
    rate: float  #: jobs/s over the last seconds
    overall_rate: float  #: jobs/s since the start
    store_down: bool = False  #: the store does not answer
    draining: bool = False  #: stopping: no new jobs are started
    final: bool = False  #: the last one: everything has ended
    elsewhere: int | None = None  #: ready and delayed jobs of all other queues in the store; None: not known (yet)


class Totals(msgspec.Struct):
    """Counts of workers that are gone."""

    done: int = 0
    retried: int = 0
    dead: int = 0
    released: int = 0

    def add(self, slot: Slot) -> None:
        """Count what the worker in *slot* has done; once, when it ends."""
        words = slot.words
        self.done += words[Word.DONE]
        self.retried += words[Word.RETRIED]
        self.dead += words[Word.DIED]
        self.released += words[Word.RELEASED]


class Tally:
    """Makes `Progress` from *slots*; `gone` has the counts of workers that have ended. Times are `clock.monotonic`."""

    def __init__(self, slots: Slots, started: float, gone: Totals) -> None:
        self.slots = slots
        self.started = started
        self.gone = gone
        self._samples: deque[tuple[float, int]] = deque()

    def progress(self, now: float, workers: int, *, draining: bool, final: bool) -> Progress:
        """The counts at *now*; the looks before it give the rate."""
        head, totals = self.slots.head, msgspec.structs.replace(self.gone)
        running = busy = 0
        for slot in self.slots:
            if slot.state not in (State.FREE, State.DEAD):
                totals.add(slot)
                running += slot.words[Word.RUNNING]
                busy += slot.runs()
        elapsed_s = max(now - self.started, 1e-6)
        return Progress(
            elapsed_s=elapsed_s,
            workers=workers,
            ready=_known(head[Head.READY]),
            delayed=_known(head[Head.DELAYED_LEFT]),
            elsewhere=_known(head[Head.ELSEWHERE]),
            running=running,
            busy=busy,
            done=totals.done,
            retried=totals.retried + head[Head.RETRIED_TOTAL],
            dead=totals.dead + head[Head.DEAD_TOTAL],
            released=totals.released + head[Head.RELEASED_TOTAL],
            rate=self._rate(now, totals.done),
            overall_rate=totals.done / elapsed_s,
            store_down=bool(head[Head.STORE_DOWN]),
            draining=draining,
            final=final,
        )

    def _rate(self, now: float, done: int) -> float:
        samples = self._samples
        samples.append((now, done))
        while len(samples) > 2 and now - samples[1][0] >= WINDOW_S:
            samples.popleft()
        (then, before), elapsed_s = samples[0], now - samples[0][0]
        return max(done - before, 0) / elapsed_s if now > then else 0.0


def _known(word: int) -> int | None:
    """A count that the head keeps plus 1; 0 is none."""
    return word - 1 if word else None
