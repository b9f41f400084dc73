"""The crate's property 22 on every store: retries come back exactly when they should, and stop when they should.

The crate could not test most of this: its clock could not be moved.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

import msgspec
from hypothesis import example, given
from hypothesis import strategies as st

from fastjobs import JobContext, JobQueue
from fastjobs.envelope import decode_job, encode_job
from fastjobs.model import Entry
from tests.properties.conftest import EARLY_S, Clock, few, fresh
from tests.working import counts, dead_jobs, left


@dataclass
class Failing:
    """A handler that always fails, and when it did."""

    jobs: JobQueue
    hand: Clock
    queue: str = field(default_factory=lambda: next(fresh))
    attempts: list[int] = field(default_factory=list)
    failed_at: float = 0.0  #: on the store's clock, just before the store is told
    told_by: float = 0.0  #: on the store's clock, when it has been told

    def __post_init__(self) -> None:
        @self.jobs.job(name=self.queue, queue=self.queue)
        async def handler(ctx: JobContext) -> None:
            self.attempts.append(ctx.attempt)
            self.failed_at = self.hand.now
            raise ValueError(f"attempt {ctx.attempt}")

        self.handler = handler

    async def run(self) -> bool:
        """Whether there was one to run."""
        ran = await self.jobs.process_one([self.queue])
        self.told_by = self.hand.now
        return ran

    async def comes_back_exactly_after(self, delay_s: float) -> None:
        """It is not there `EARLY_S` before *delay_s* seconds are over, and runs when they are."""
        due, known_due = self.failed_at + delay_s, self.told_by + delay_s
        self.hand.move_to(due - EARLY_S)
        before = len(self.attempts)
        early = await self.run()
        # On a machine so slow that the look itself took 10 ms it may have become due meanwhile.
        assert not early or self.hand.now >= due
        if not early:
            self.hand.move_to(known_due)
            assert await self.run()
        assert len(self.attempts) == before + 1


@few
@given(st.integers(0, 24))
@example(0)
@example(15)
@example(16)
async def test_after_n_attempts_a_job_comes_back_after_two_to_the_n_seconds_and_a_day_at_most(
    jobs: JobQueue, hand: Clock, attempts: int
) -> None:
    failing = Failing(jobs, hand)
    entry = failing.handler.options(max_attempts=1_000).prepare().entry()
    job = msgspec.structs.replace(decode_job(entry.envelope), attempts=attempts)
    await jobs._producer().push([Entry(entry.id, entry.queue, entry.priority, encode_job(job))])
    assert await failing.run()
    await failing.comes_back_exactly_after(min(2 ** (attempts + 1), 86_400))
    assert failing.attempts == [attempts + 1, attempts + 2]
    await jobs.purge(failing.queue)


@few
@given(st.integers(1, 7))
async def test_a_job_is_retried_until_its_attempts_are_used_up_and_then_dead_with_its_whole_history(
    jobs: JobQueue, hand: Clock, max_attempts: int
) -> None:
    failing = Failing(jobs, hand)
    handle = await failing.handler.options(max_attempts=max_attempts).enqueue()
    assert await failing.run()
    for attempt in range(1, max_attempts):
        await failing.comes_back_exactly_after(2**attempt)
    hand.move_to(hand.now + 2 * 86_400)
    assert not await failing.run()
    assert failing.attempts == list(range(1, max_attempts + 1))
    (dead,) = [job for job in await dead_jobs(jobs._producer().store) if job.queue == failing.queue]
    assert dead.attempts == max_attempts
    assert dead.history is not None
    assert [(failure.attempt, failure.message) for failure in dead.history] == [
        (attempt, f"attempt {attempt}") for attempt in range(1, max_attempts + 1)
    ]
    assert await jobs.dead.delete(handle.id)


async def test_delays_grow_from_attempt_to_attempt_until_the_cap(jobs: JobQueue, hand: Clock) -> None:
    failing = Failing(jobs, hand)
    await failing.handler.options(max_attempts=20).enqueue()
    assert await failing.run()
    delays = [2**attempt for attempt in range(1, 17)] + [86_400] * 3
    for delay_s in delays:
        await failing.comes_back_exactly_after(delay_s)
    assert failing.attempts == list(range(1, 21))
    assert (await counts(jobs._producer().store, failing.queue)).dead == 1


@few
@given(st.lists(st.integers(0, 4), min_size=1, max_size=8))
async def test_a_delayed_job_runs_not_before_its_time_and_holds_up_nobody(
    jobs: JobQueue, hand: Clock, hours: list[int]
) -> None:
    """One that is due later but was enqueued first does not stand before the others."""
    queue, ran = next(fresh), []

    @jobs.job(name=queue, queue=queue)
    async def handler(number: int) -> None:
        ran.append(number)

    before = hand.now
    for number, delay in enumerate(hours):
        await handler.options(delay=f"{delay}h", priority=number % 10).enqueue(number)
    after = hand.now
    for hour in range(5):
        hand.move_to(before + hour * 3600 - 1)
        while await jobs.process_one([queue]):
            pass
        assert sorted(ran) == [number for number, delay in enumerate(hours) if delay < hour or delay == hour == 0]
        hand.move_to(after + hour * 3600)
        while await jobs.process_one([queue]):
            pass
        assert sorted(ran) == [number for number, delay in enumerate(hours) if delay <= hour]
    assert await left(jobs._producer().store) == 0


@few
@given(st.lists(st.integers(1, 5), min_size=2, max_size=4))
async def test_each_job_has_as_many_runs_as_its_own_max_attempts(jobs: JobQueue, hand: Clock, allowed: list[int]) -> None:
    queue, runs = next(fresh), dict.fromkeys(range(len(allowed)), 0)

    @jobs.job(name=queue, queue=queue)
    async def handler(number: int) -> None:
        runs[number] += 1
        raise ValueError

    for number, max_attempts in enumerate(allowed):
        await handler.options(max_attempts=max_attempts).enqueue(number)
    for attempt in itertools.count(1):
        while await jobs.process_one([queue]):
            pass
        if (await counts(jobs._producer().store, queue)).delayed == 0:
            break
        hand.move_to(hand.now + 2**attempt)
    assert runs == dict(enumerate(allowed))
    assert (await counts(jobs._producer().store, queue)).dead == len(allowed)
