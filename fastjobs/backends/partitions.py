"""One queue over several stores: every call goes to the partitions it concerns, each with its own atomic steps and fences.

A push goes to one partition, chosen by its name, so that its repeat goes there too. A claim comes from one partition, an
adopted one from several; which is remembered until it is settled. A worker stays with a partition while that fills its claims,
a few times, then moves on, so that all are drained evenly. Priorities and order hold within a partition.

A partition that cannot be reached holds up the calls that need it, as an unreachable store does. Nothing is given up for it.
"""

from __future__ import annotations

import asyncio
import random
import zlib
from collections.abc import Coroutine, Iterable, Iterator, Sequence
from typing import Any, Final, TypeVar

from fastjobs.backends.base import Store, WaitsThenClaims
from fastjobs.errors import StaleCall, WorkerGone
from fastjobs.model import Adopted, DeadLetter, Entry, Exchanged, Outcome, QueueStats, Settlement, Stats

T = TypeVar("T")

Home = tuple[tuple[int, int], ...]
"""Where the jobs of a claim are: in turn, the index of a partition and how many of them it holds."""

NOWHERE: Final[Home] = ((0, 0),)
"""Of a claim that nobody knows: any partition will say that it is not ours."""

STAY: Final = 8
"""Full claims in a row from one partition. Each move costs a call: ended claims are settled where they came from."""


class Course:
    """The way of one exchange, kept until the worker's next: its repeat must go the same way to find what was done."""

    __slots__ = ("asked", "n", "settled")

    def __init__(self, n: int) -> None:
        self.n = n
        self.asked: list[int] = []  #: partitions asked for jobs, in order
        self.settled: dict[int, Home] = {}  #: claim: where it was settled


class PartitionedBackend(WaitsThenClaims):
    """*parts* as one store. *url* is what messages call it.

    *homes* is for `clone`: which partition each open claim came from, known to all clones of one process.
    """

    def __init__(self, parts: Sequence[Store], url: str, homes: dict[str, dict[int, Home]] | None = None) -> None:
        self.url = url
        self._parts = tuple(parts)
        self._homes = {} if homes is None else homes  # by worker and open claim
        self._at = random.randrange(len(self._parts))  # nosec B311  # noqa: S311 - workers begin apart from each other
        self._stayed = 0
        self._rang: set[int] = set()
        self._courses: dict[str, Course] = {}  # by worker
        self._time_shift_s = 0.0

    @property
    def time_shift_s(self) -> float:
        """Seconds added to the stores' clocks; for tests."""
        return self._time_shift_s

    @time_shift_s.setter
    def time_shift_s(self, seconds: float) -> None:
        self._time_shift_s = seconds
        for part in self._parts:
            part.time_shift_s = seconds

    async def open(self) -> list[str]:
        found = await self._all(part.open() for part in self._parts)
        return list(dict.fromkeys(warning for warnings in found for warning in warnings))  # each once

    async def close(self) -> None:
        await self._all(part.close() for part in self._parts)

    def clone(self) -> PartitionedBackend:
        twin = PartitionedBackend([part.clone() for part in self._parts], self.url, self._homes)
        twin.time_shift_s = self.time_shift_s
        return twin

    # -- producers ------------------------------------------------------------------------------------------------------

    async def push(self, producer: str, seq: int, acked: int, entries: Sequence[Entry]) -> None:
        # Not by seq alone: a process that sends one job sends its first.
        await self._parts[(zlib.crc32(producer.encode()) + seq) % len(self._parts)].push(producer, seq, acked, entries)

    # -- workers --------------------------------------------------------------------------------------------------------

    async def register(self, worker: str) -> None:
        await self._all(part.register(worker) for part in self._parts)

    async def exchange(
        self, worker: str, n: int, settlements: Sequence[Settlement], queues: Sequence[str], limit: int
    ) -> Exchanged:
        homes, course = self._homes.setdefault(worker, {}), self._courses.get(worker)
        if course is not None and n < course.n:  # the partitions that it would go to may not have heard of the later one
            raise StaleCall(f"call {n} of worker {worker} was passed by a later one")
        if course is None or course.n != n:
            course = self._courses[worker] = Course(n)
        owed: dict[int, list[tuple[int, Settlement]]] = {}  # by partition: positions in *settlements*, and its part of each
        for position, settlement in enumerate(settlements):
            home = course.settled.setdefault(settlement.claim, homes.get(settlement.claim, NOWHERE))
            for at, part in _parted(settlement, home):
                owed.setdefault(at, []).append((position, part))
        kept = [True] * len(settlements)

        async def ask(at: int, wanted: int) -> Exchanged:
            mine = owed.pop(at, ())
            answer = await self._parts[at].exchange(worker, n, [part for _, part in mine], queues, wanted)
            for (position, _), was_ours in zip(mine, answer.kept, strict=True):
                kept[position] &= was_ours
            return answer

        answers = []
        for at in self._turns(course) if limit > 0 else ():
            answers.append(await ask(at, limit))
            if answers[-1].jobs:
                homes[n] = ((at, len(answers[-1].jobs)),)
                self._move_on(at, more=answers[-1].more)
                break
        answers += await self._all([ask(at, 0) for at in list(owed)])
        for settlement, was_ours in zip(settlements, kept, strict=True):
            homes.pop(settlement.claim, None)
            if settlement.unfinished and was_ours:
                homes[settlement.into] = _moved(settlement, course.settled[settlement.claim])
        dues = [answer.next_due_s for answer in answers if answer.next_due_s is not None]
        jobs = next((answer.jobs for answer in answers if answer.jobs), [])
        return Exchanged(kept, jobs, any(answer.more for answer in answers), min(dues, default=None))

    async def wait(self, queues: Sequence[str], timeout_s: float) -> bool:
        waiting = {asyncio.create_task(part.wait(queues, timeout_s)): at for at, part in enumerate(self._parts)}
        try:
            undone = set(waiting)
            while undone:
                done, undone = await asyncio.wait(undone, return_when=asyncio.FIRST_COMPLETED)
                rang = {waiting[one] for one in done if one.exception() is None and one.result()}
                self._rang |= rang
                if rang:
                    return True
            return any(one.result() for one in waiting)  # raises what one of them raised
        finally:
            for one in waiting:
                one.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)

    async def renew(self, lease: str) -> bool:
        return all(await self._all(part.renew(lease) for part in self._parts))

    async def leases(self) -> dict[str, int]:
        """A lease's counters in all partitions as one: it stands still when all do, so whoever reaches one of them lives."""
        counters: dict[str, int] = {}
        for found in await self._all(part.leases() for part in self._parts):
            for lease, counter in found.items():
                counters[lease] = counters.get(lease, 0) + counter
        return counters

    async def workers(self, lease: str) -> dict[str, list[int]]:
        claims: dict[str, list[int]] = {}
        for found in await self._all(part.workers(lease) for part in self._parts):
            for worker, open_claims in found.items():
                claims.setdefault(worker, []).extend(open_claims)
        return {worker: sorted(found) for worker, found in claims.items()}

    async def adopt(self, into: str, n: int, worker: str, claims: Sequence[int] | None, limit: int) -> Adopted:
        share = max(limit // len(self._parts), 1)
        found = await self._all(part.adopt(into, n, worker, claims, share) for part in self._parts)
        jobs = [job for adopted in found for job in adopted.jobs]
        if jobs:
            home = tuple((at, len(adopted.jobs)) for at, adopted in enumerate(found) if adopted.jobs)
            self._homes.setdefault(into, {})[n] = home
        return Adopted(jobs, any(adopted.more for adopted in found))

    async def retire(self, worker: str) -> bool:
        if (await self.workers(worker.rpartition(".")[0])).get(worker):
            return False  # before one of them has forgotten it
        self._forget(worker)
        return all(await self._all(part.retire(worker) for part in self._parts))

    async def housekeep(self) -> None:
        await self._all(part.housekeep() for part in self._parts)

    # -- admin ----------------------------------------------------------------------------------------------------------

    async def stats(self) -> Stats:
        """The sum of one look at each partition.

        If all seem empty they are looked at once more: a job that ended in one may just have put its successor into another.
        """
        total = _sum(await self._all(part.stats() for part in self._parts))
        if total.running or any(queue.ready for queue in total.queues):
            return total
        return _sum(await self._all(part.stats() for part in self._parts))

    async def peek(self, queue: str, limit: int) -> list[bytes]:
        found = await self._all(part.peek(queue, limit) for part in self._parts)
        return [envelope for envelopes in found for envelope in envelopes][:limit]

    async def dead_list(self, queue: str | None, before: tuple[float, bytes] | None, limit: int) -> list[DeadLetter]:
        found = await self._all(part.dead_list(queue, before, limit) for part in self._parts)
        letters = [letter for letters in found for letter in letters]
        return sorted(letters, key=lambda letter: (letter.died_at, letter.id), reverse=True)[:limit]

    async def dead_get(self, id: bytes) -> DeadLetter | None:
        found = await self._all(part.dead_get(id) for part in self._parts)
        return next((letter for letter in found if letter is not None), None)

    async def dead_requeue(self, entries: Sequence[Entry]) -> list[bool]:
        found = await self._all(part.dead_requeue(entries) for part in self._parts)
        return [any(moved) for moved in zip(*found, strict=True)]

    async def dead_delete(self, ids: Sequence[bytes]) -> list[bool]:
        found = await self._all(part.dead_delete(ids) for part in self._parts)
        return [any(deleted) for deleted in zip(*found, strict=True)]

    async def purge(self, queue: str) -> int:
        return sum(await self._all(part.purge(queue) for part in self._parts))

    async def migrate(self) -> list[str]:
        return [step for steps in await self._all(part.migrate() for part in self._parts) for step in steps]

    # -- inside ---------------------------------------------------------------------------------------------------------

    def _turns(self, course: Course) -> Iterator[int]:
        """The partitions to claim from, in turn until one has jobs: first those that were asked before this repeat."""
        yield from list(course.asked)
        first = self._rang.pop() if self._rang else self._at
        for step in range(len(self._parts)):
            at = (first + step) % len(self._parts)
            if at not in course.asked:
                course.asked.append(at)
                yield at

    def _move_on(self, at: int, *, more: bool) -> None:
        """Where to claim next, after some jobs from the partition *at*, which has *more* or not."""
        self._stayed = self._stayed + 1 if at == self._at else 1
        self._at = at
        if not more or self._stayed >= STAY:
            self._at, self._stayed = (at + 1) % len(self._parts), 0

    def _forget(self, worker: str) -> None:
        self._courses.pop(worker, None)
        self._homes.pop(worker, None)

    async def _all(self, calls: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
        """The answers to *calls*, made side by side. When some fail, the gravest error, after all have ended."""
        answers = await asyncio.gather(*calls, return_exceptions=True)
        errors = [answer for answer in answers if isinstance(answer, BaseException)]
        if errors:
            raise min(errors, key=_gravity)
        return [answer for answer in answers if not isinstance(answer, BaseException)]


def _gravity(error: BaseException) -> int:
    """Lowest first. A worker that one partition has given up must hear of it, even while others do not answer."""
    return 0 if isinstance(error, WorkerGone) else 1 if isinstance(error, StaleCall) else 2


def _parted(settlement: Settlement, home: Home) -> Iterator[tuple[int, Settlement]]:
    """What each partition of *home* must hear of *settlement*, whose indexes run over all of them."""
    if len(home) == 1:
        yield home[0][0], settlement
        return
    start = 0
    for at, count in home:
        theirs = range(start, start + count)
        outcomes = [Outcome(one.index - start, one.kind, one.entry) for one in settlement.outcomes if one.index in theirs]
        unfinished = [index - start for index in settlement.unfinished if index in theirs]
        yield at, Settlement(settlement.claim, outcomes, unfinished, settlement.into)
        start += count


def _moved(settlement: Settlement, home: Home) -> Home:
    """Where the unfinished jobs are, as the claim `into`."""
    left = ((at, len(part.unfinished)) for at, part in _parted(settlement, home))
    return tuple((at, count) for at, count in left if count)


def _sum(found: Sequence[Stats]) -> Stats:
    queues: dict[str, QueueStats] = {}
    for stats in found:
        for one in stats.queues:
            other = queues.get(one.queue, QueueStats(one.queue, 0, 0, 0))
            queues[one.queue] = QueueStats(
                one.queue, one.ready + other.ready, one.delayed + other.delayed, one.dead + other.dead
            )
    return Stats([queues[name] for name in sorted(queues)], sum(stats.running for stats in found))
