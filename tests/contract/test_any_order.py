"""Every call in any order, with replies lost and requests late, compared with the reference after each step.

Hypothesis searches and shrinks; FASTJOBS_TEST_EXAMPLES sets how long. A story is a list of steps; what a step means depends
on what is there (its numbers choose among the open claims, the dead letters, …), so that any shorter story is one too.
"""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastjobs.backends.base import Store
from fastjobs.errors import BackendError, WorkerGone
from fastjobs.model import Entry, Kind, Outcome, Settlement
from tests.contract.kit import HOUR, empty, job_id
from tests.contract.reference import Known, Reference
from tests.stores import Place

QUEUES = ("x", "y")
LEASES = ("a", "b")
SLOTS = 3  #: workers at a time: 0 and 1 of lease a, 2 of lease b

serials = itertools.count()
"""Of workers and producers: no story meets those of another in the same store."""


class Fate(Enum):
    """What becomes of a request and its reply."""

    ANSWERED = "answered"
    LOST = "its reply is lost and it is repeated"
    TWICE = "answered, and a duplicate is still under way"
    LATE = "still under way; its sender never hears of it"


@dataclass(frozen=True)
class Push:
    producer: int
    places: list[tuple[int, int, int]]  #: queue, priority, hours of delay
    fate: Fate


@dataclass(frozen=True)
class Exchange:
    slot: int
    settled: list[tuple[int, list[int]]]  #: which open claim, and an ending for each of its jobs in turn
    stray: bool  #: settle a claim that is not there as well
    queues: Sequence[str]
    limit: int
    fate: Fate


@dataclass(frozen=True)
class Adopt:
    slot: int
    victim: int
    claims: list[int] | None  #: indexes into those that are open
    limit: int
    fate: Fate


@dataclass(frozen=True)
class Step:
    what: str
    which: int


DONE, AGAIN, LATER, DEAD, RELEASED, UNFINISHED = range(6)

few = st.integers(0, 5)
slots = st.sampled_from([0, 0, 0, 1, 2])  # one worker of them busier than the others has more claims open
fates = st.sampled_from(Fate)
queues = st.sampled_from([QUEUES, QUEUES[:1], QUEUES[1:]])
places = st.tuples(st.integers(0, 1), st.sampled_from([5, 2, 9]), st.sampled_from([0, 0, 0, 1, 3]))
endings = st.lists(st.integers(DONE, UNFINISHED), min_size=1, max_size=4)
settled = st.lists(st.tuples(few, endings), max_size=2)
pushes = st.builds(Push, st.integers(0, 1), st.lists(places, min_size=1, max_size=6), fates)
exchanges = st.builds(Exchange, slots, settled, st.booleans(), queues, st.sampled_from([2, 3, 1, 0, 5]), fates)
adoptions = st.builds(Adopt, slots, slots, st.none() | st.lists(few, max_size=3), st.integers(1, 4), fates)
steps = st.builds(Step, st.sampled_from(["pass", "register", "renew", "retire", "requeue", "delete", "purge"]), few)
arrivals = st.builds(Step, st.just("arrive"), few)
stories = st.lists(st.one_of(steps, pushes, exchanges, exchanges, exchanges, adoptions, arrivals), min_size=15, max_size=50)


@dataclass
class Producer:
    id: str
    seq: int = 0
    unanswered: list[int] = field(default_factory=list)


@dataclass
class Slot:
    worker: str
    n: int = 0


class Story:
    """Plays steps to a store and to the reference alike."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.reference = Reference()
        self.jobs: dict[bytes, Entry] = {}  #: by envelope
        self.names = itertools.count()
        self.late: list[Callable[[], Awaitable[None]]] = []  #: requests under way
        self.late_pushes: list[Callable[[], Awaitable[None]]] = []
        self.producers = [Producer(f"p{next(serials)}") for _ in range(2)]
        self.mark = next(serials)
        self.slots = [Slot("") for _ in range(SLOTS)]

    async def play(self, story: Sequence[Push | Exchange | Adopt | Step]) -> None:
        for step in story:
            if isinstance(step, Push):
                await self.push(step)
            elif isinstance(step, Exchange):
                await self.exchange(step)
            elif isinstance(step, Adopt):
                await self.adopt(step)
            else:
                await getattr(self, f"step_{step.what}")(step.which)
            await self.agree()
        await self.finish()

    # -- requests: made once, sent once or twice, now or later

    async def send(self, request: Callable[[], Awaitable[None]], fate: Fate, late: list[Callable[[], Awaitable[None]]]) -> None:
        if fate is not Fate.LATE:
            await request()
        if fate is Fate.LOST:
            await request()
        if fate in (Fate.TWICE, Fate.LATE):
            late.append(request)

    def new_entry(self, id: bytes, queue: str, priority: int, hours: int) -> Entry:
        envelope = b"job-%d" % next(self.names)
        self.jobs[envelope] = Entry(id, queue, priority, envelope, None, hours * HOUR)
        return self.jobs[envelope]

    async def push(self, step: Push) -> None:
        producer = self.producers[step.producer]
        producer.seq += 1
        seq = producer.seq
        acked = min(producer.unanswered, default=seq)
        if step.fate is Fate.LATE:
            producer.unanswered.append(seq)
        entries = [
            self.new_entry(job_id(f"{self.mark}-{next(self.names)}"), QUEUES[queue], priority, hours)
            for queue, priority, hours in step.places
        ]

        async def request() -> None:
            await self.store.push(producer.id, seq, acked, entries)
            self.reference.push(producer.id, seq, acked, entries)

        await self.send(request, step.fate, self.late_pushes)

    async def slot(self, number: int) -> Slot:
        """The slot's worker; a new one if it is gone."""
        slot = self.slots[number]
        known = self.reference.workers.get(slot.worker)
        if known is None or known.given_up:
            slot.worker, slot.n = f"{LEASES[number // 2]}{self.mark}.{next(serials)}", 0
            await self.store.register(slot.worker)
            self.reference.workers[slot.worker] = Known()
        return slot

    async def exchange(self, step: Exchange) -> None:
        slot = await self.slot(step.slot)
        settlements = []
        claims = self.reference.workers[slot.worker].claims
        left = sorted(claims)
        for which, plan in step.settled:
            if left:
                claim = left.pop(which % len(left))
                settlements.append(self.settlement(slot, claim, claims[claim], plan))
        if step.stray:
            settlements.append(Settlement(1_000_000, [Outcome(0, Kind.RETRY, self.new_entry(job_id("stray"), "x", 5, 0))]))
        slot.n += 1
        worker, n = slot.worker, slot.n

        async def request() -> None:
            refusal = self.reference.refusal(worker, n)
            answer = await refused(self.store.exchange(worker, n, settlements, step.queues, step.limit), refusal)
            if refusal is None:
                self.reference.exchange(worker, n, settlements, step.queues, step.limit, answer)

        await self.send(request, step.fate, self.late)

    def settlement(self, slot: Slot, claim: int, jobs: Sequence[bytes], plan: Sequence[int]) -> Settlement:
        outcomes, unfinished = [], []
        for index, (job, ending) in enumerate(zip(jobs, itertools.cycle(plan), strict=False)):
            old = self.jobs[job]
            if ending == UNFINISHED:
                unfinished.append(index)
            elif ending != DONE:
                kind = {AGAIN: Kind.RETRY, LATER: Kind.RETRY, DEAD: Kind.DEAD, RELEASED: Kind.RELEASED}[ending]
                entry = self.new_entry(old.id, old.queue, old.priority, 2 if ending == LATER else 0)
                outcomes.append(Outcome(index, kind, entry))
        if unfinished:
            slot.n += 1
        return Settlement(claim, outcomes, unfinished, slot.n if unfinished else 0)

    async def adopt(self, step: Adopt) -> None:
        slot = await self.slot(step.slot)
        victim = self.slots[step.victim].worker or "nobody.1"
        if victim == slot.worker:
            return
        claims = None
        if step.claims is not None:
            there = sorted(self.reference.workers.get(victim, Known()).claims) or [1]
            claims = [there[index % len(there)] for index in step.claims]
        slot.n += 1
        into, n = slot.worker, slot.n

        async def request() -> None:
            refusal = self.reference.refusal(into, n)
            answer = await refused(self.store.adopt(into, n, victim, claims, step.limit), refusal)
            if refusal is None:
                self.reference.adopt(into, n, victim, claims, step.limit, answer)

        await self.send(request, step.fate, self.late)

    # -- other steps

    async def step_arrive(self, which: int) -> None:
        under_way = self.late if (which % 2 == 0 and self.late) or not self.late_pushes else self.late_pushes
        if under_way:
            await under_way.pop(which // 2 % len(under_way))()

    async def step_pass(self, which: int) -> None:
        """Hours pass. No push is repeated after so long."""
        self.store.time_shift_s += which * HOUR
        self.reference.now_s += which * HOUR
        self.late_pushes.clear()

    async def step_renew(self, which: int) -> None:
        lease = f"{LEASES[which % 2]}{self.mark}"
        alive = any(not known.given_up for known in self.reference.of_lease(lease).values())
        before = (await self.store.leases()).get(lease)
        assert await self.store.renew(lease) is alive
        assert ((await self.store.leases()).get(lease) != before) is alive

    async def step_register(self, which: int) -> None:
        """A duplicate of a worker's registration arrives."""
        worker = self.slots[which % SLOTS].worker
        known = self.reference.workers.get(worker)
        if known is not None:
            await refused(self.store.register(worker), WorkerGone if known.given_up else None)

    async def step_retire(self, which: int) -> None:
        worker = self.slots[which % SLOTS].worker
        if worker:
            assert await self.store.retire(worker) is self.reference.retire(worker)

    async def step_requeue(self, which: int) -> None:
        dead = self.reference.dead
        ids = [list(dead)[which % len(dead)], job_id("never was")] if dead else [job_id("never was")]
        entries = [self.new_entry(id, "x", 5, which % 2) for id in ids]
        assert await self.store.dead_requeue(entries) == [id in dead for id in ids]
        for id, entry in zip(ids, entries, strict=True):
            if dead.pop(id, None):
                self.reference.put(entry)

    async def step_delete(self, which: int) -> None:
        dead = self.reference.dead
        ids = list(dead)[: which % 3]
        assert await self.store.dead_delete(ids) == [True] * len(ids)
        for id in ids:
            del dead[id]

    async def step_purge(self, which: int) -> None:
        waiting = self.reference.waiting
        if which == 0:
            gone = [job for job, at in waiting.items() if at.queue == "x"]
            assert await self.store.purge("x") == len(gone)
            for job in gone:
                del waiting[job]

    # -- comparing

    async def agree(self) -> None:
        """What can be seen of the store is what the reference holds."""
        reference = self.reference
        stats = await self.store.stats()
        assert stats.running == sum(len(jobs) for known in reference.workers.values() for jobs in known.claims.values())
        seen = {found.queue: found for found in stats.queues}
        for queue in QUEUES:
            found = seen.get(queue)
            counts = (found.ready + found.delayed, found.delayed, found.dead) if found else (0, 0, 0)
            here = [at for at in reference.waiting.values() if at.queue == queue]
            assert counts[0] == len(here)
            assert counts[1] >= sum(at.due_s > reference.now_s for at in here)
            assert counts[2] == sum(dead[0] == queue for dead in reference.dead.values())
        leases = {f"{lease}{self.mark}" for lease in LEASES if reference.of_lease(f"{lease}{self.mark}")}
        assert set(await self.store.leases()) == leases
        for lease in leases:
            expected = {worker: sorted(known.claims) for worker, known in reference.of_lease(lease).items()}
            assert await self.store.workers(lease) == expected

    async def finish(self) -> None:
        """Adopt and claim all there is: each job must be where the reference has it, byte for byte."""
        letters = await self.store.dead_list(None, None, 1000)
        assert {letter.id: letter.envelope for letter in letters} == {id: dead[1] for id, dead in self.reference.dead.items()}
        await self.step_pass(100)
        self.slots[0] = Slot("")
        for victim in list(self.reference.workers):
            self.slots[1] = Slot(victim)
            while victim in self.reference.workers:
                await self.adopt(Adopt(0, 1, None, 3, Fate.ANSWERED))
        await self.exchange(Exchange(0, [], False, QUEUES, 10_000, Fate.ANSWERED))
        assert not self.reference.waiting


async def refused(call: Awaitable[Any], error: type[BackendError] | None) -> Any:
    """The answer of *call*, which must raise just *error*, if any."""
    try:
        answer, raised = await call, None
    except BackendError as refusal:
        answer, raised = None, refusal
    assert type(raised) is (error or type(None)), f"{raised or answer!r} instead of {error}"
    return answer


@pytest.mark.one_store("the reference is one store")
@pytest.mark.timeout(120 + settings().max_examples)
@settings(settings(), max_examples=max(1, settings().max_examples // 2), suppress_health_check=list(HealthCheck))
@given(story=stories)
async def test_a_store_does_as_the_reference_whatever_happens(any_store: Store, place: Place, story: list[Any]) -> None:
    try:
        await Story(any_store).play(story)
    finally:  # for the next story
        await empty(any_store)
        any_store.time_shift_s = 0.0
    assert await place.leftovers() == []
