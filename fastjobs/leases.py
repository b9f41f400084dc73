"""Which leases have ended: what one observer may conclude from counters alone, with no clock of another machine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from fastjobs.slots import lease_ttl_s

LOOK_S: Final = 1.0
"""How often other fleets' leases are looked at: a lost machine's jobs are back at most so long after its lease has ended."""

LEASE_S: Final = 0.005
"""With more than 200 leases: so many seconds between looks per lease, to a quarter of the time to live. Everybody looks at
everybody, which would cost the store the square of their number. Among so many the next one to look is never far off."""


class LeaseWatch:
    """The leases of other fleets, as this observer itself has seen them. Pure: the counters and the time are handed in.

    A lease has ended when its counter stood still for its time to live while this observer looked on without a pause: a
    failed call, or a gap as a suspended machine leaves one, begins all counts anew.
    """

    def __init__(self, own: str, ttl_s: float) -> None:
        self._own = own
        self._ttl_s = ttl_s
        self._seen: dict[str, tuple[int, float]] = {}  # lease: its counter, and since when it is that
        self._looked = float("-inf")

    def interrupted(self) -> None:
        """The connection broke: what was seen before proves nothing."""
        self._seen.clear()

    def pause_s(self) -> float:
        """Until the next look, in seconds."""
        return max(LOOK_S, min(LEASE_S * len(self._seen), self._ttl_s / 4))

    def ended(self, counters: Mapping[str, int], now: float) -> list[str]:
        """The leases that have ended, given all *counters* at *now* (`clock.boot`)."""
        if now - self._looked > max(self._ttl_s / 3, 3 * LOOK_S):  # more than any pause between looks
            self._seen.clear()
        self._looked = now
        before, self._seen = self._seen, {}
        over = []
        for lease, counter in counters.items():
            if lease == self._own:
                continue
            known = before.get(lease)
            since = known[1] if known is not None and known[0] == counter else now
            if now - since >= self.ttl_s(lease):
                over.append(lease)  # and forgotten: if it is still there next time, its count begins anew
            else:
                self._seen[lease] = counter, since
        return over

    def ttl_s(self, lease: str) -> float:
        """How long *lease* may go without renewal, in seconds: as its name says, else as ours."""
        return lease_ttl_s(lease, self._ttl_s)
