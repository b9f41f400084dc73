"""Clocks that are wrong, differ or step by an hour: jobs run by the store's clock, leases by none."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta

import pytest

from fastjobs import JobContext, JobQueue, Retry, WorkerOptions, clock
from fastjobs.backends.base import Store
from fastjobs.slots import Word
from tests.faults import FaultyBackend
from tests.stores import Place
from tests.working import at_work, counts, soon, until

HOUR = 3600.0

servers = pytest.mark.parametrize("store_kind", ["redis", "valkey", "postgres"])
"""Whose clocks are not this process's."""

either_way = pytest.mark.parametrize("off_s", [HOUR, -HOUR])


class MachineClock:
    """The wall clock of this process, which may be wrong."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.off_s = 0.0
        monkeypatch.setattr(clock, "wall", lambda: time.time() + self.off_s)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> MachineClock:
    return MachineClock(monkeypatch)


@servers
@either_way
async def test_a_machine_whose_clock_is_wrong_enqueues_and_runs_every_job_in_time(
    any_store: Store, machine: MachineClock, off_s: float
) -> None:
    machine.off_s = off_s
    jobs = JobQueue(any_store.clone())
    ran: dict[str, list[float]] = {}

    @jobs.job
    async def work(ctx: JobContext, what: str) -> None:
        ran.setdefault(what, []).append(clock.monotonic())
        if what == "retried" and ctx.attempt == 1:
            raise Retry(after=0.3)

    async with jobs:
        began = clock.monotonic()
        due = datetime.now(UTC) + timedelta(seconds=0.3)
        await jobs.enqueue_many(
            [
                work.prepare("now"),
                work.prepare("retried"),
                work.options(delay=0.3).prepare("delayed"),
                work.options(run_at=due).prepare("at a time"),
                work.options(delay=HOUR / 2).prepare("much later"),
            ]
        )
        async with at_work(jobs, any_store) as crew:
            await until(lambda: crew.count(Word.DONE) == 4)
    assert sorted(ran) == ["at a time", "delayed", "now", "retried"]
    assert ran["delayed"][0] - began >= 0.3
    assert ran["at a time"][0] - began >= 0.29  # the two clocks were not read at one moment
    assert ran["retried"][1] - ran["retried"][0] >= 0.3
    assert (await counts(any_store)).delayed == 1


@pytest.mark.parametrize("store_kind", ["socket", "redis", "postgres"])
async def test_the_stores_clock_may_step_and_no_job_is_early_or_stuck(any_store: Store, place: Place) -> None:
    """As at a failover to a server whose clock differs."""
    jobs = JobQueue(any_store)
    ran: list[str] = []

    @jobs.job
    async def work(what: str) -> None:
        ran.append(what)

    at_worker = place.backend()
    async with jobs, at_work(jobs, at_worker) as crew:

        def step(to_s: float) -> None:
            any_store.time_shift_s = at_worker.time_shift_s = to_s

        async def runs(what: str) -> None:
            await until(lambda: what in ran)

        await work.options(delay=HOUR).enqueue("in an hour")
        await work.enqueue("at once")
        await runs("at once")
        step(HOUR)
        await runs("in an hour")
        await work.options(delay=HOUR / 2).enqueue("half an hour after that")
        step(0)  # back: for that job it is an hour more
        await work.enqueue("at once again")
        await runs("at once again")
        step(1.5 * HOUR - 60)
        await work.options(delay=0.2).enqueue("soon")
        await runs("soon")
        assert ran == ["at once", "in an hour", "at once again", "soon"]
        step(1.5 * HOUR)
        await runs("half an hour after that")
        await until(lambda: crew.count(Word.DONE) == 5)
    await at_worker.close()


async def test_no_lease_ends_by_a_step_of_the_clock(store: FaultyBackend, machine: MachineClock) -> None:
    """Two machines with one clock that steps, which is the store's as well; each holds a job and looks at the other."""
    runs: list[str] = []
    go = asyncio.Event()

    def embedded() -> asyncio.Task[None]:
        jobs = JobQueue(store, worker=WorkerOptions(lease_ttl=1, concurrency=1, batch=1))

        @jobs.job
        async def work(what: str) -> None:
            runs.append(what)
            await go.wait()

        return asyncio.create_task(jobs.start_worker())

    producer = JobQueue(store)
    await producer.enqueue_many(producer.prepare("work", {"what": what}) for what in ("one", "other"))
    tasks = [embedded(), embedded()]
    await until(lambda: len(runs) == 2)
    for off_s in (HOUR, -HOUR):
        machine.off_s = off_s
        looks = len(store.named("leases"))
        await until(lambda: len(store.named("leases")) >= looks + 4)  # noqa: B023
    assert store.named("adopt") == []
    go.set()
    for task in tasks:
        task.cancel()
    await soon(asyncio.wait(tasks))
    assert sorted(runs) == ["one", "other"]
    assert await store.leases() == {}


@servers
@either_way
async def test_a_job_without_a_handler_is_not_buried_by_a_machine_whose_clock_is_wrong(
    any_store: Store, machine: MachineClock, off_s: float
) -> None:
    jobs = JobQueue(any_store.clone())
    seen: list[str] = []

    async with jobs:
        await jobs.enqueue("new", {})
        for machine.off_s in (0.0, off_s):
            async with at_work(JobQueue(any_store), any_store, queues=["default"]) as crew:
                await until(lambda: crew.count(Word.RETRIED) == 1)
            any_store.time_shift_s += 10  # its delay is over

        @jobs.job
        async def new() -> None:
            seen.append("new")

        async with at_work(jobs, any_store) as crew:
            await until(lambda: crew.count(Word.DONE) == 1)
    assert seen == ["new"]
    assert (await counts(any_store)).dead == 0
