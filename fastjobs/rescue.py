"""Find jobs whose worker is no more, and have them adopted: of dead slots, of ended leases, of claims nobody knows of."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from fastjobs import clock
from fastjobs.adoption import Adopter, Settled, death_in, given_up, lost_machine
from fastjobs.backends.base import Backend
from fastjobs.errors import BackendError, StoreUnavailable
from fastjobs.leases import LeaseWatch
from fastjobs.patience import Backoff, Outage
from fastjobs.slots import Head, Slot, Slots, State, Word
from fastjobs.terms import Terms

log = logging.getLogger("fastjobs.maintenance")

T = TypeVar("T")

CLAIMS_S: Final = 3.0
"""How often the store's claims are held against what the workers say they hold."""


class Rescue:
    """One observer. *ttl_s*: of our own lease. One task at a time calls it."""

    def __init__(self, backend: Backend, lease: str, slots: Slots, ttl_s: float, *, terms: Terms, outage: Outage) -> None:
        self._backend = backend
        self._lease = lease
        self._slots = slots
        self._head = slots.head
        self._outage = outage
        self._adopter = Adopter(backend, lease, terms, self._patiently)
        self._watch = LeaseWatch(lease, ttl_s)
        self._leases_due = 0.0  # clock.monotonic
        self._claims_due = 0.0
        self._suspicious: set[tuple[str, int | None]] = set()

    def due_in_s(self) -> float:
        """Seconds until `look` has something to do."""
        return max(min(self._leases_due, self._claims_due) - clock.monotonic(), 0.01)

    async def start(self) -> None:
        """Open the store, join the lease, and finish what a maintenance process that died has begun. Raises BackendError."""
        for warning in await self._patiently(self._backend.open):
            log.warning("%s", warning)
        await self._adopter.start()
        for worker in await self._patiently(lambda: self._backend.workers(self._lease)):
            if worker.startswith(f"{self._lease}.0-") and worker != self._adopter.id:
                await self._adopt_orphan(worker)

    async def bury_the_dead(self) -> None:
        """Settle the jobs of every dead slot's worker, then free the slot. Raises BackendError when the store refuses."""
        for slot in self._slots:
            if slot.state is State.DEAD:
                death = death_in(slot, self._lease)
                settled = await self._adopter.adopt(death.worker, [death])
                self._note(settled, f"worker {slot.words[Word.NUMBER]} ({death.error})", drained=death.drained)
                slot.clear()

    async def look(self) -> None:
        """Look at the leases every second and at the claims every few. Raises BackendError when the store refuses."""
        now = clock.monotonic()
        if now >= self._leases_due:
            await self._look_at_leases()
            self._leases_due = now + self._watch.pause_s() * (0.8 + 0.4 * random.random())  # nosec B311  # noqa: S311 - never in step
        if now >= self._claims_due:
            self._claims_due = now + CLAIMS_S
            await self._look_at_claims()

    async def retire(self) -> None:
        """Leave the lease."""
        await self._adopter.retire()

    def interrupted(self, error: BackendError) -> None:
        """A round was given up."""
        self._watch.interrupted()
        self._outage.failed("rescue", error)

    async def _patiently(self, call: Callable[[], Awaitable[T]]) -> T:
        """Make *call* until the store answers."""
        backoff = Backoff()
        while True:
            try:
                answer = await call()
            except StoreUnavailable as error:
                self.interrupted(error)
                await asyncio.sleep(backoff.next_s())
                continue
            self._outage.answered("rescue")
            return answer

    def _note(self, settled: Settled, what: str, *, drained: bool = False) -> None:
        """Count, and say, what became of adopted jobs."""
        self._head[Head.RELEASED_TOTAL] += settled.released
        self._head[Head.RETRIED_TOTAL] += settled.retried
        self._head[Head.DEAD_TOTAL] += settled.dead
        if any(settled):
            log.log(
                logging.INFO if drained and not settled.dead else logging.WARNING,
                "%s: %d of its jobs went back to the head of their queues (%d had started), %d failed, %d dead",
                what,
                settled.released,
                settled.lost,
                settled.retried,
                settled.dead,
            )

    async def _adopt_orphan(self, worker: str) -> None:
        """Jobs of a worker in no slot: those that a dead slot's worker had started are judged by its death."""
        deaths = [death_in(slot, self._lease) for slot in self._slots if slot.state is State.DEAD]
        self._note(await self._adopter.adopt(worker, [given_up(worker), *deaths]), f"worker {worker}, which is in no slot")

    async def _look_at_leases(self) -> None:
        counters = await self._patiently(self._backend.leases)
        for lease in self._watch.ended(counters, clock.boot()):
            await self._adopt_lease(lease)

    async def _adopt_lease(self, lease: str) -> None:
        ttl_s = self._watch.ttl_s(lease)
        for worker in await self._patiently(lambda: self._backend.workers(lease)):
            settled = await self._adopter.adopt(worker, [lost_machine(worker, ttl_s)])
            self._note(settled, f"worker {worker}, whose lease has ended")

    async def _look_at_claims(self) -> None:
        """Adopt what no worker knows it holds: the claim of an exchange that ran after its own repeat, or of a late commit.

        The store is read before the slots, and only what looks so twice in a row is taken: a worker can say what it holds
        only after the store's answer.
        """
        listed = await self._patiently(lambda: self._backend.workers(self._lease))
        slots = {slot.worker_id(self._lease): slot for slot in self._slots if slot.state is not State.FREE}
        before, self._suspicious = self._suspicious, set()
        for worker, claims in listed.items():
            slot = slots.get(worker)
            if worker == self._adopter.id or (slot is not None and slot.state is State.DEAD):
                continue
            if slot is None:
                self._suspicious.add((worker, None))
            else:
                self._suspicious.update((worker, claim) for claim in claims if not _is_held(slot, claim))
        for worker, claim in self._suspicious & before:
            slot = slots.get(worker)
            if slot is None:
                await self._adopt_orphan(worker)
            elif claim is not None and slot.worker_id(self._lease) == worker and not _is_held(slot, claim):
                settled = await self._adopter.adopt(worker, [given_up(worker)], [claim])
                self._note(settled, f"claim {claim} of worker {worker}, which it does not know of")


def _is_held(slot: Slot, claim: int) -> bool:
    """Whether the live worker in *slot* knows of *claim*, or may be about to."""
    call = slot.words[Word.CALL]  # read first: a claim is published as open before its call is cleared
    held = slot.open_claims()
    return held is None or claim == call or claim in held
