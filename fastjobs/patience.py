"""How a service bears a store that does not answer: pauses that grow, one line when it goes and one when it is back."""

from __future__ import annotations

import logging
import random
from typing import Final

from fastjobs import clock
from fastjobs.slots import Head

log = logging.getLogger("fastjobs.maintenance")

FIRST_RETRY_S: Final = 0.05
LAST_RETRY_S: Final = 2.0


class Outage:
    """Says once that the store is away and once that it is back, whichever connections notice; and marks it in the head."""

    def __init__(self, head: memoryview) -> None:
        self._head = head
        self._failing: set[str] = set()
        self._since = 0.0

    def failed(self, who: str, error: BaseException) -> None:
        """A call of *who* did not get through."""
        if not self._failing:
            self._since = clock.monotonic()
            self._head[Head.STORE_DOWN] = 1
            log.warning("the store does not answer maintenance, trying again until it does: %s", error)
        self._failing.add(who)

    def answered(self, who: str) -> None:
        """A call of *who* got through."""
        if who in self._failing:
            self._failing.discard(who)
            if not self._failing:
                self._head[Head.STORE_DOWN] = 0
                log.warning("the store answers maintenance again after %.1f s", clock.monotonic() - self._since)


class Backoff:
    """Growing pauses between failures: 0.05, 0.1, … up to 2 s, each half to one and a half times that at random."""

    def __init__(self) -> None:
        self._delay_s = FIRST_RETRY_S

    def next_s(self) -> float:
        """The pause after one more failure, in seconds."""
        delay_s, self._delay_s = self._delay_s, min(2 * self._delay_s, LAST_RETRY_S)
        return delay_s * (0.5 + random.random())  # nosec B311  # noqa: S311 - spreads reconnects

    def reset(self) -> None:
        """It worked."""
        self._delay_s = FIRST_RETRY_S
