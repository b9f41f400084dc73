"""Waiting and claiming in one call: only while nothing runs."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from fastjobs import JobQueue
from fastjobs.backends.memory import MemoryBackend
from fastjobs.backends.memory_core import MemoryStore
from fastjobs.errors import StoreUnavailable
from fastjobs.model import Exchanged
from fastjobs.rescue import _is_held
from fastjobs.slots import Word
from tests.faults import FaultyBackend
from tests.working import at_work, beneath, happens, left, until


class ClaimingBackend(FaultyBackend):
    """A store that waits and claims on its own side."""

    async def claim_when_ready(self, worker: str, n: int, queues: Sequence[str], limit: int, timeout_s: float) -> Exchanged:
        return await self._call("claim_when_ready", worker, n, queues, limit, timeout_s)


@pytest.fixture
def store() -> ClaimingBackend:
    return ClaimingBackend(MemoryBackend(MemoryStore()))


async def test_an_idle_worker_gets_its_next_job_with_the_wake_up(store: ClaimingBackend, jobs: JobQueue) -> None:
    ran: list[int] = []

    @jobs.job
    async def work(number: int) -> None:
        ran.append(number)

    async with at_work(jobs, store) as crew:
        for number in range(20):
            await until(lambda: store.pending > 0)
            exchanges = len(store.named("exchange"))
            await work.enqueue(number)
            await until(lambda number=number: ran == list(range(number + 1)))
            await store.until(lambda number=number: crew.count(Word.DONE) == number + 1)
            assert len(store.named("exchange")) > exchanges, "it was settled"
    assert crew.slot.words[Word.CLAIMED] == 20
    assert not store.named("wait")
    assert await left(store) == 0


async def test_a_worker_that_runs_jobs_waits_without_claiming(store: ClaimingBackend, jobs: JobQueue) -> None:
    go = asyncio.Event()

    @jobs.job
    async def work() -> None:
        await go.wait()

    await work.enqueue()
    async with at_work(jobs, store) as crew:
        await store.until(lambda: bool(store.named("wait")))
        assert len(crew.slot.started()) == 1
        go.set()
        await store.until(lambda: crew.count(Word.DONE) == 1)


async def test_what_a_wait_has_claimed_when_the_worker_is_to_stop_goes_back(store: ClaimingBackend, jobs: JobQueue) -> None:
    @jobs.job
    async def work() -> None:
        raise AssertionError("it was told to stop before")

    arrived = store.hang("claim_when_ready", done=True)
    async with at_work(jobs, store) as crew:
        await store.until(lambda: bool(store.named("claim_when_ready")))
        await work.enqueue()
        await arrived.reached.wait()
        assert arrived.gate is not None
        arrived.gate.set()  # the answer comes in the turn in which the worker is told to stop
        crew.worker.drain()
        await asyncio.wait([crew.task])
    stats = await store.stats()
    assert (stats.queues[0].ready, stats.running) in ((1, 0), (0, 1))  # if it was not heard of, maintenance has it


async def test_a_wait_whose_reply_is_lost_is_only_a_wait(store: ClaimingBackend, jobs: JobQueue) -> None:
    ran: list[int] = []

    @jobs.job
    async def work(number: int) -> None:
        ran.append(number)

    store.fail("claim_when_ready", error=StoreUnavailable("gone"), times=2)
    async with at_work(jobs, store):
        await store.until(lambda: len(store.named("claim_when_ready")) > 2)
        await work.enqueue(1)
        await until(lambda: ran == [1])
    assert await left(store) == 0


async def test_a_claim_whose_reply_is_lost_is_asked_for_again(store: ClaimingBackend, jobs: JobQueue) -> None:
    ran: list[int] = []

    @jobs.job
    async def work(number: int) -> None:
        ran.append(number)

    lost = store.fail("claim_when_ready", lose_reply=True)
    async with at_work(jobs, store) as crew:
        await store.until(lambda: bool(store.named("claim_when_ready")))
        await work.enqueue(1)
        await lost.reached.wait()
        await store.until(lambda: crew.count(Word.DONE) == 1)  # nobody else looks after claims here
        repeat = next(call for call in store.named("exchange") if call.args[1] == store.named("claim_when_ready")[0].args[1])
        assert not repeat.args[2], "nothing is settled by it"
    assert ran == [1]
    assert await left(store) == 0


async def test_an_idle_worker_asks_by_its_waits_alone(
    store: ClaimingBackend, jobs: JobQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastjobs.wakeup.IDLE_WAIT_S", 0.01)

    @jobs.job
    async def work() -> None: ...

    async with at_work(jobs, store):
        await store.until(lambda: len(store.named("claim_when_ready")) > 3)
        exchanges = len(store.named("exchange"))
        await store.until(lambda: len(store.named("claim_when_ready")) > 10)
        assert len(store.named("exchange")) == exchanges


async def test_what_a_wait_has_claimed_is_held_while_a_later_call_gets_no_answer(
    store: ClaimingBackend, jobs: JobQueue
) -> None:
    """Maintenance must not take it for a claim that nobody knows of: its jobs would run twice."""
    ran: list[int] = []

    @jobs.job
    async def work() -> None:
        ran.append(1)

    await work.options(delay=0.1).enqueue()
    waiting, later = store.hang("claim_when_ready"), store.hang("exchange", skip=1)  # made when the job is due
    assert waiting.gate is not None
    assert later.gate is not None
    async with at_work(jobs, store) as crew:
        await happens(later.reached)
        waiting.gate.set()
        worker, n = store.named("claim_when_ready")[0].args[:2]

        async def claimed() -> bool:
            return n in (await beneath(store).workers(worker.rpartition(".")[0]))[worker]

        await store.until(claimed)
        assert _is_held(crew.slot, n)
        later.gate.set()
        await until(lambda: bool(ran))
        await store.until(lambda: crew.count(Word.DONE) == 1)
    assert ran == [1]
    assert await left(store) == 0
