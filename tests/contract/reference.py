"""What a store must do, in the protocol's words: sets and dicts, no locks, no clock, no efficiency.

Where the words leave a store some choice (which of the ready jobs, in what order among equals) the reference takes the store's
answer, checks that it is one of those allowed, and follows it. An `AssertionError` is a broken promise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from fastjobs.errors import BackendError, StaleCall, WorkerGone
from fastjobs.model import Adopted, Entry, Exchanged, Kind, Settlement


@dataclass
class Known:
    """A registered worker."""

    claims: dict[int, list[bytes]] = field(default_factory=dict)
    last: int = 0
    kept: list[bool] = field(default_factory=list)
    given_up: bool = False


@dataclass
class Waiting:
    """A job that nobody holds."""

    queue: str
    priority: int
    due_s: float


class Reference:
    """Envelopes are unlike each other, so they name the jobs. Times are seconds on the store's clock since the start."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.waiting: dict[bytes, Waiting] = {}
        self.dead: dict[bytes, tuple[str, bytes]] = {}
        self.workers: dict[str, Known] = {}
        self.pushed: set[tuple[str, int]] = set()
        self.acked: dict[str, int] = {}

    def put(self, entry: Entry) -> None:
        self.waiting[entry.envelope] = Waiting(entry.queue, entry.priority, self.now_s + entry.delay_s)

    def push(self, producer: str, seq: int, acked: int, entries: Sequence[Entry]) -> None:
        self.acked[producer] = max(acked, self.acked.get(producer, 0))
        if seq >= self.acked[producer] and (producer, seq) not in self.pushed:
            for entry in entries:
                self.put(entry)
        self.pushed.add((producer, seq))

    def refusal(self, worker: str, n: int) -> type[BackendError] | None:
        """What a call of *worker* must raise."""
        if worker not in self.workers or self.workers[worker].given_up:
            return WorkerGone
        return StaleCall if n < self.workers[worker].last else None

    def ready(self, queues: Sequence[str]) -> set[bytes]:
        """Jobs that may be claimed now."""
        return {job for job, at in self.waiting.items() if at.queue in queues and at.due_s <= self.now_s}

    def settle(self, known: Known, settlement: Settlement) -> bool:
        jobs = known.claims.pop(settlement.claim, None)
        if jobs is None:
            return False
        for outcome in settlement.outcomes:
            if outcome.kind == Kind.DEAD:
                self.dead[outcome.entry.id] = outcome.entry.queue, outcome.entry.envelope
            else:
                self.put(outcome.entry)
        if settlement.unfinished:
            known.claims[settlement.into] = [jobs[index] for index in settlement.unfinished]
        return True

    def exchange(
        self, worker: str, n: int, settlements: Sequence[Settlement], queues: Sequence[str], limit: int, answer: Exchanged
    ) -> None:
        known = self.workers[worker]
        if n == known.last:
            assert (answer.kept, answer.jobs) == (known.kept, known.claims.get(n, []))
            return
        before = self.ready(queues)
        known.last, known.kept = n, [self.settle(known, settlement) for settlement in settlements]
        assert answer.kept == known.kept
        taken = set(answer.jobs)
        priorities = [self.waiting[job].priority for job in answer.jobs]
        assert len(taken) == len(answer.jobs) <= limit
        assert taken <= self.ready(queues)
        assert priorities == sorted(priorities, reverse=True)
        left = before - taken
        if limit:
            assert not left or len(taken) == limit, "ready jobs were overlooked"
            assert all(self.waiting[job].priority <= priorities[-1] for job in left)
            assert answer.more or not left
        for job in answer.jobs:
            del self.waiting[job]
        if answer.jobs:
            known.claims[n] = list(answer.jobs)

    def adopt(self, into: str, n: int, worker: str, claims: Sequence[int] | None, limit: int, answer: Adopted) -> None:
        known = self.workers[into]
        if n == known.last:
            assert answer.jobs == known.claims.get(n, [])
            return
        known.last, known.kept = n, []
        dead = self.workers.get(worker, Known())
        jobs: list[bytes] = []
        wanted = sorted(claim for claim in dead.claims if claims is None or claim in claims)
        while wanted and (not jobs or len(jobs) + len(dead.claims[wanted[0]]) <= limit):
            jobs += dead.claims.pop(wanted.pop(0))
        assert (answer.jobs, answer.more) == (jobs, bool(wanted))
        if claims is None:
            dead.given_up = True
        if dead.given_up and not dead.claims:
            self.workers.pop(worker, None)
        if jobs:
            known.claims[n] = jobs

    def retire(self, worker: str) -> bool:
        if worker in self.workers and self.workers[worker].claims:
            return False
        self.workers.pop(worker, None)
        return True

    def of_lease(self, lease: str) -> dict[str, Known]:
        return {worker: known for worker, known in self.workers.items() if worker.rpartition(".")[0] == lease}
