"""The memory store's core: every call of the protocol as a plain method, atomic under one lock, the time handed in.

`memory.py` is its asyncio face inside the same process; `broker.py` serves it to other processes.

A claim holds envelopes only: what a settlement puts back comes with it as an `Entry`, so ready jobs need no id.
"""

from __future__ import annotations

import os
import threading
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from heapq import heappop, heappush

from fastjobs.backends.bundles import Bundle
from fastjobs.errors import BackendError, StaleCall, WorkerGone
from fastjobs.model import MAX_PRIORITY, Adopted, DeadLetter, Entry, Exchanged, Kind, QueueStats, Settlement, Stats

CLAIM_BYTES = 16 << 20
"""Most bytes of envelopes in one claim (one larger job still makes a claim): a claim and its outcomes fit into one frame."""

MOVE_LIMIT = 1000
"""Due jobs moved per queue and exchange, or the claim's limit if that is more: a million falling due at once stall nobody."""

PRODUCER_KEPT_S = 7200.0
"""Push records of a producer that is silent for so long are dropped; producers stop repeating after 300 s. The rest is for a
clock that steps, by an hour at most, between a push and its repeat: another server's after a failover."""


class Waiter:
    """Somebody who wants to know of ready jobs. `wake` is called at most once per `watch`, in the waker's thread."""

    __slots__ = ("queues", "wake", "woken")

    def __init__(self, queues: Iterable[str], wake: Callable[[], object]) -> None:
        self.queues = tuple(queues)
        self.wake = wake
        self.woken = False


class _Queue:
    """The jobs of one queue that nobody holds."""

    __slots__ = ("dead", "delayed", "levels")

    def __init__(self) -> None:
        self.levels: dict[int, deque[bytes]] = {}  #: ready envelopes by priority; on demand: an empty deque takes 600 bytes
        self.delayed: list[tuple[float, int, int, bytes]] = []  #: heap of (due, serial, priority, envelope)
        self.dead: list[tuple[float, bytes]] = []  #: (died_at, id) ascending

    def level(self, priority: int) -> deque[bytes]:
        found = self.levels.get(priority)
        if found is None:
            found = self.levels[priority] = deque()
        return found

    def ready(self) -> int:
        return sum(map(len, self.levels.values()))


class _Worker:
    """One worker: its open claims, and its last call with the result that a repeat returns."""

    __slots__ = ("claims", "given_up", "kept", "last", "lease", "more", "name", "next_due_s")

    def __init__(self, name: str, lease: _Lease) -> None:
        self.name = name
        self.lease = lease
        self.claims: dict[int, list[bytes]] = {}
        self.given_up = False
        self.last = -1
        self.kept: list[bool] = []
        self.more = False
        self.next_due_s: float | None = None

    def repeats(self, n: int) -> bool:
        """True if *n* is the last call again, False if it is a new one. StaleCall if it was passed, BackendError if in use."""
        if n == self.last:
            return True
        if n < self.last:
            raise StaleCall(f"call {n} of worker {self.name} came after its call {self.last}; nothing was done")
        if n in self.claims:
            raise BackendError(f"call {n} of worker {self.name} has the number of an open claim")
        return False


class _Lease:
    __slots__ = ("counter", "name", "workers")

    def __init__(self, name: str, counter: int) -> None:
        self.name = name
        self.counter = counter
        self.workers: dict[str, _Worker] = {}


class _Producer:
    """What is known of a producer's pushes: all below `acked` were answered, and those in `seqs`, not below it, are stored."""

    __slots__ = ("acked", "seen_at", "seqs")

    def __init__(self) -> None:
        self.acked = 0
        self.seqs: set[int] = set()
        self.seen_at = 0.0

    def is_new(self, seq: int, acked: int, now: float) -> bool:
        """Note the push *seq*. False if it was noted before, or was answered long ago."""
        self.seen_at = now
        if acked > self.acked:
            self.acked = acked
            self.seqs = {kept for kept in self.seqs if kept >= acked}
        if seq < self.acked or seq in self.seqs:
            return False
        self.seqs.add(seq)
        return True


class MemoryStore:
    """The core: every call of `Backend` and `BackendAdmin` as a plain, atomic, thread-safe method; *now* in epoch seconds.

    Errors and results as in base.py, where each call is described. Nothing here waits, and nothing reads a clock.
    """

    def __init__(self) -> None:
        self.pid = os.getpid()  #: of the process whose memory this is
        self._lock = threading.Lock()
        self._queues: dict[str, _Queue] = {}
        self._serial = 0  # of delayed jobs (equal due times keep their order), and the turn of queues
        self._dead: dict[bytes, tuple[str, DeadLetter]] = {}
        self._workers: dict[str, _Worker] = {}
        self._leases: dict[str, _Lease] = {}
        self._counter = 0  # of all leases together: one that is made anew never shows a value it had before
        self._producers: dict[str, _Producer] = {}
        self._watched: dict[str, dict[Waiter, None]] = {}

    # -- producers

    def push(self, producer: str, seq: int, acked: int, bundles: Sequence[Bundle], later: Sequence[Entry], now: float) -> None:
        for place in bundles:
            _check_priority(place.priority)
        for entry in later:
            _check_priority(entry.priority)
        with self._lock:
            record = self._producers.get(producer)
            if record is None:
                record = self._producers[producer] = _Producer()
            if not record.is_new(seq, acked, now):
                return
            touched = set()
            for place in bundles:
                self._queue(place.queue).level(place.priority).extend(place.envelopes)
                touched.add(place.queue)
            for entry in later:
                if self._put(entry, now):
                    touched.add(entry.queue)
            self._wake_for(touched)

    # -- workers

    def register(self, worker: str) -> None:
        lease_name, dot, _ = worker.rpartition(".")
        if not dot:
            raise BackendError(f"a worker's id is <lease>.<number>, got {worker!r}")
        with self._lock:
            known = self._workers.get(worker)
            if known is not None:
                if known.given_up:
                    raise WorkerGone(f"worker {worker} was given up; a new process needs a new id")
                return
            lease = self._leases.get(lease_name)
            if lease is None:
                self._counter += 1
                lease = self._leases[lease_name] = _Lease(lease_name, self._counter)
            self._workers[worker] = lease.workers[worker] = _Worker(worker, lease)

    def exchange(
        self, worker: str, n: int, settlements: Sequence[Settlement], queues: Sequence[str], limit: int, now: float
    ) -> Exchanged:
        with self._lock:
            owner = self._living(worker)
            if owner.repeats(n):
                return Exchanged(owner.kept, list(owner.claims.get(n, ())), owner.more, owner.next_due_s)
            _check_settlements(owner, n, settlements)
            owner.last = n
            touched: set[str] = set()
            owner.kept = self._settle(owner, settlements, now, touched)
            named = [self._queues[name] for name in queues if name in self._queues]
            owner.next_due_s = _move_due(named, now, max(limit, MOVE_LIMIT))
            jobs = self._take(named, limit) if limit > 0 else []
            if jobs:
                owner.claims[n] = jobs
            owner.more = any(queue.ready() for queue in named) or (owner.next_due_s is not None and owner.next_due_s <= 0)
            if owner.more:
                touched.update(queues)
            if touched:
                self._wake_for(touched)
            return Exchanged(owner.kept, jobs.copy(), owner.more, owner.next_due_s)

    def adopt(self, into: str, n: int, worker: str, claims: Collection[int] | None, limit: int) -> Adopted:
        with self._lock:
            adopter = self._living(into)
            if adopter.repeats(n):
                return Adopted(list(adopter.claims.get(n, ())), adopter.more)
            dead = self._workers.get(worker)
            if dead is adopter and claims is None:
                raise BackendError(f"worker {into} cannot give itself up")
            adopter.last, adopter.kept, adopter.more, adopter.next_due_s = n, [], False, None
            if dead is None:
                return Adopted([], False)
            wanted = sorted(dead.claims if claims is None else dead.claims.keys() & set(claims))
            jobs = _move_claims(dead, wanted, limit)
            adopter.more = any(claim in dead.claims for claim in wanted)
            if claims is None:
                dead.given_up = True
            if dead.given_up and not dead.claims:
                self._forget(dead)
            if jobs:
                adopter.claims[n] = jobs
            return Adopted(jobs.copy(), adopter.more)

    def retire(self, worker: str) -> bool:
        with self._lock:
            known = self._workers.get(worker)
            if known is not None:
                if known.claims:
                    return False
                self._forget(known)
            return True

    def renew(self, lease: str) -> bool:
        with self._lock:
            known = self._leases.get(lease)
            if known is None or all(worker.given_up for worker in known.workers.values()):
                return False
            self._counter += 1
            known.counter = self._counter
            return True

    def leases(self) -> dict[str, int]:
        with self._lock:
            return {lease.name: lease.counter for lease in self._leases.values()}

    def workers(self, lease: str) -> dict[str, list[int]]:
        with self._lock:
            known = self._leases.get(lease)
            return {} if known is None else {worker.name: sorted(worker.claims) for worker in known.workers.values()}

    def housekeep(self, now: float) -> None:
        with self._lock:
            silent = [name for name, record in self._producers.items() if now - record.seen_at > PRODUCER_KEPT_S]
            for name in silent:
                del self._producers[name]

    # -- waiting

    def watch(self, waiter: Waiter, now: float) -> float | None:
        """Seconds until a job of the waiter's queues is due, None if none is delayed, 0.0 if one is ready.

        Unless it is 0.0 the waiter is woken once when that may have changed, until `unwatch`.
        """
        with self._lock:
            named = [self._queues[name] for name in waiter.queues if name in self._queues]
            if any(queue.ready() for queue in named):
                return 0.0
            due = min((queue.delayed[0][0] for queue in named if queue.delayed), default=None)
            if due is not None and due <= now:
                return 0.0
            waiter.woken = False
            for name in waiter.queues:
                self._watched.setdefault(name, {})[waiter] = None
            return None if due is None else due - now

    def unwatch(self, waiter: Waiter) -> None:
        """Forget a waiter that will not look for jobs now. If it had been woken, another is woken in its place."""
        with self._lock:
            if waiter.woken:
                self._wake_for(waiter.queues)
            else:
                self._drop(waiter)

    # -- admin

    def stats(self) -> Stats:
        with self._lock:
            queues = [
                QueueStats(name, queue.ready(), len(queue.delayed), len(queue.dead))
                for name, queue in sorted(self._queues.items())
            ]
            return Stats(queues, self._running())

    def pending(self) -> int:
        """Jobs that are neither done nor dead: ready, delayed and running."""
        with self._lock:
            return self._running() + sum(queue.ready() + len(queue.delayed) for queue in self._queues.values())

    def peek(self, queue: str, limit: int) -> list[bytes]:
        envelopes: list[bytes] = []
        with self._lock:
            levels = self._queue(queue).levels if queue in self._queues else {}
            for priority in sorted(levels, reverse=True):
                for envelope in levels[priority]:
                    if len(envelopes) >= limit:
                        return envelopes
                    envelopes.append(envelope)
        return envelopes

    def dead_list(self, queue: str | None, before: tuple[float, bytes] | None, limit: int) -> list[DeadLetter]:
        with self._lock:
            named = list(self._queues.values()) if queue is None else [self._queues[queue]] if queue in self._queues else []
            newest = []
            for known in named:
                end = len(known.dead) if before is None else bisect_left(known.dead, before)
                newest += known.dead[max(0, end - limit) : end]
            newest.sort(reverse=True)
            return [self._dead[id][1] for _, id in newest[:limit]]

    def dead_get(self, id: bytes) -> DeadLetter | None:
        with self._lock:
            _, letter = self._dead.get(id, (None, None))
            return letter

    def dead_requeue(self, entries: Sequence[Entry], now: float) -> list[bool]:
        for entry in entries:
            _check_priority(entry.priority)
        with self._lock:
            moved, touched = [], set()
            for entry in entries:
                was_dead = self._dig_up(entry.id)
                if was_dead and self._put(entry, now):
                    touched.add(entry.queue)
                moved.append(was_dead)
            self._wake_for(touched)
            return moved

    def dead_delete(self, ids: Sequence[bytes]) -> list[bool]:
        with self._lock:
            return [self._dig_up(id) for id in ids]

    def purge(self, queue: str) -> int:
        with self._lock:
            known = self._queues.get(queue)
            if known is None:
                return 0
            count = known.ready() + len(known.delayed)
            known.levels.clear()
            known.delayed.clear()
            return count

    # -- steps of the calls above, under the lock

    def _queue(self, name: str) -> _Queue:
        found = self._queues.get(name)
        if found is None:
            found = self._queues[name] = _Queue()
        return found

    def _living(self, worker: str) -> _Worker:
        known = self._workers.get(worker)
        if known is None or known.given_up:
            raise WorkerGone(f"worker {worker} {'is unknown' if known is None else 'was given up'}; nothing was done")
        return known

    def _forget(self, worker: _Worker) -> None:
        del self._workers[worker.name]
        del worker.lease.workers[worker.name]
        if not worker.lease.workers:
            del self._leases[worker.lease.name]

    def _running(self) -> int:
        return sum(len(jobs) for worker in self._workers.values() for jobs in worker.claims.values())

    def _put(self, entry: Entry, now: float) -> bool:
        """Store one job where its time says. True if waiters must look: it is ready, or the first of its queue to fall due."""
        queue = self._queue(entry.queue)
        due = now + entry.delay_s if entry.run_at is None else entry.run_at
        if not due > now:
            queue.level(entry.priority).append(entry.envelope)
            return True
        self._serial += 1
        heappush(queue.delayed, (due, self._serial, entry.priority, entry.envelope))
        return queue.delayed[0][1] == self._serial

    def _settle(self, owner: _Worker, settlements: Sequence[Settlement], now: float, touched: set[str]) -> list[bool]:
        """Settle claims that `_check_settlements` has passed; adds the queues that received jobs to *touched*."""
        kept = []
        released: list[Entry] = []
        for settlement in settlements:
            jobs = owner.claims.pop(settlement.claim, None)
            kept.append(jobs is not None)
            if jobs is None:
                continue
            if settlement.unfinished:
                owner.claims[settlement.into] = [jobs[index] for index in settlement.unfinished]
            for outcome in settlement.outcomes:
                if outcome.kind == Kind.RELEASED:
                    released.append(outcome.entry)
                elif outcome.kind == Kind.DEAD:
                    self._bury(outcome.entry, now)
                elif self._put(outcome.entry, now):
                    touched.add(outcome.entry.queue)
        for entry in reversed(released):  # so that the first released stands first
            self._queue(entry.queue).level(entry.priority).appendleft(entry.envelope)
            touched.add(entry.queue)
        return kept

    def _take(self, queues: list[_Queue], limit: int) -> list[bytes]:
        """Up to *limit* envelopes off *queues*, by priority; queues take turns to come first among equals."""
        if len(queues) > 1:
            self._serial += 1
            turn = self._serial % len(queues)
            queues = queues[turn:] + queues[:turn]
        jobs: list[bytes] = []
        size = 0
        for priority in range(MAX_PRIORITY, -1, -1):
            for queue in queues:
                level = queue.levels.get(priority)
                if not level:
                    continue
                taken = [level.popleft() for _ in range(min(limit - len(jobs), len(level)))]
                size += sum(map(len, taken))
                while size > CLAIM_BYTES and len(jobs) + len(taken) > 1:
                    envelope = taken.pop()
                    level.appendleft(envelope)
                    size -= len(envelope)
                jobs += taken
                if level:  # the limit is reached, of jobs or of bytes
                    return jobs
        return jobs

    def _bury(self, entry: Entry, now: float) -> None:
        self._dig_up(entry.id)
        self._dead[entry.id] = entry.queue, DeadLetter(entry.id, now, entry.envelope)
        insort(self._queue(entry.queue).dead, (now, entry.id))

    def _dig_up(self, id: bytes) -> bool:
        """Drop a dead letter; False if there is none."""
        queue, letter = self._dead.pop(id, (None, None))
        if queue is None or letter is None:
            return False
        dead = self._queues[queue].dead
        # O(n), but a memmove: 40 µs among 100,000
        del dead[bisect_left(dead, (letter.died_at, id))]
        return True

    def _wake_for(self, queues: Iterable[str]) -> None:
        """Wake one waiter of each of *queues*. Whoever has nothing to find waits on by itself."""
        for name in queues:
            watching = self._watched.get(name)
            while watching:
                waiter = next(iter(watching))
                self._drop(waiter)
                waiter.woken = True
                try:
                    waiter.wake()
                except RuntimeError:  # its event loop was closed under it: the turn is the next one's
                    continue
                break

    def _drop(self, waiter: Waiter) -> None:
        for name in waiter.queues:
            watching = self._watched.get(name)
            if watching is not None:
                watching.pop(waiter, None)
                if not watching:
                    del self._watched[name]


def _check_priority(priority: int) -> None:
    if not 0 <= priority <= MAX_PRIORITY:
        raise BackendError(f"a priority is 0 to {MAX_PRIORITY}, got {priority}")


def _check_settlements(owner: _Worker, n: int, settlements: Sequence[Settlement]) -> None:
    """BackendError, before anything is done, for a settlement that would lose or double a job."""
    taken = {n}
    for settlement in settlements:
        jobs = owner.claims.get(settlement.claim)
        if jobs is None or not (settlement.outcomes or settlement.unfinished):
            continue
        indexes = [outcome.index for outcome in settlement.outcomes] + settlement.unfinished
        if len(set(indexes)) != len(indexes) or not 0 <= min(indexes) <= max(indexes) < len(jobs):
            raise BackendError(
                f"claim {settlement.claim} of {len(jobs)} jobs cannot be settled: its indexes are {indexes!r:.200}"
            )
        for outcome in settlement.outcomes:
            if not Kind.RETRY <= outcome.kind <= Kind.RELEASED:
                raise BackendError(f"claim {settlement.claim}: no such kind of outcome: {outcome.kind}")
            _check_priority(outcome.entry.priority)
        if settlement.unfinished:
            if settlement.into in taken or settlement.into in owner.claims:
                raise BackendError(f"claim {settlement.claim} cannot be split into {settlement.into}: that number is in use")
            taken.add(settlement.into)


def _move_due(queues: list[_Queue], now: float, limit: int) -> float | None:
    """Make up to *limit* due jobs of each queue ready. Seconds until the next one of all is due; None if none is left."""
    next_due: float | None = None
    for queue in queues:
        delayed = queue.delayed
        if not delayed:
            continue
        for _ in range(limit):
            if not delayed or delayed[0][0] > now:
                break
            _, _, priority, envelope = heappop(delayed)
            queue.level(priority).append(envelope)
        if delayed and (next_due is None or delayed[0][0] < next_due):
            next_due = delayed[0][0]
    return None if next_due is None else max(0.0, next_due - now)


def _move_claims(dead: _Worker, wanted: list[int], limit: int) -> list[bytes]:
    """Take whole claims off *dead*, in order, while they stay within *limit* jobs and a claim's bytes; at least one."""
    jobs: list[bytes] = []
    size = 0
    for claim in wanted:
        batch = dead.claims[claim]
        size += sum(map(len, batch))
        if jobs and (len(jobs) + len(batch) > limit or size > CLAIM_BYTES):
            break
        jobs += dead.claims.pop(claim)
    return jobs
