"""The only module that reads a clock.

Three clocks, each for one purpose: `wall` for times that people and other machines read, `boot` to measure how long
something took or stayed silent (it counts suspended time where the system has such a clock, and never steps), and the
store's own clock, which only backends read, to decide what is due.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime

wall = time.time
"""Seconds since the epoch, UTC. May step."""

if hasattr(time, "CLOCK_BOOTTIME"):

    def boot() -> float:
        """Seconds since an arbitrary start, suspended time included. Never steps."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)

else:  # macOS: monotonic_raw goes on during sleep

    def boot() -> float:
        """Seconds since an arbitrary start. Never steps."""
        return time.monotonic()


monotonic = time.monotonic
"""Seconds since an arbitrary start, the clock of asyncio's timers. Never steps."""


def as_datetime(epoch_s: float) -> datetime:
    """*epoch_s* as an aware datetime in UTC."""
    return datetime.fromtimestamp(epoch_s, UTC)
