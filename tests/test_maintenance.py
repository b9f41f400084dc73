"""Maintenance on a memory store, its workers played by hand: they claim, publish and die as a test says."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from types import SimpleNamespace

import pytest

from fastjobs import clock
from fastjobs.backends.memory import MemoryBackend
from fastjobs.backends.memory_core import MemoryStore
from fastjobs.envelope import decode_job, encode_job
from fastjobs.errors import BackendError
from fastjobs.execution import entry_of
from fastjobs.ids import id_word, new_id
from fastjobs.maintenance import EmbeddedMaintenance, Maintenance
from fastjobs.model import ENVELOPE_VERSION, Entry, Exchanged, Job, Settlement, Stats
from fastjobs.options import WorkerOptions
from fastjobs.registry import Registry
from fastjobs.slots import Head, Slot, Slots, State, Word, lease_name, worker_id
from fastjobs.terms import Terms
from tests.faults import FaultyBackend
from tests.working import happens, soon, until

QUEUE = ["default"]
TERMS = Terms(Registry(), {})
LIMIT = 100


class Stage:
    """A store, a lease and slots; workers that do as they are told."""

    def __init__(self) -> None:
        self.core = MemoryStore()
        self.store = FaultyBackend(MemoryBackend(self.core))
        self.lease = lease_name(15.0)
        self.slots = Slots.create(4, 4)
        self._n = 100
        self._pushes = 0

    async def push(self, *jobs: Job) -> None:
        self._pushes += 1
        await self.store.push("p", self._pushes, 0, [entry_of(job) for job in jobs])

    async def worker(self, index: int = 0, number: int = 1) -> Slot:
        """A registered worker in a slot."""
        slot = self.slots.slots[index]
        slot.words[Word.NUMBER] = number
        slot.state = State.RUNNING
        await self.store.register(slot.worker_id(self.lease))
        return slot

    async def claim(self, slot: Slot, limit: int = LIMIT, *, publish: bool = True) -> Exchanged:
        self._n += 1
        claimed = await self.store.exchange(slot.worker_id(self.lease), self._n, [], QUEUE, limit)
        if publish:
            slot.publish_claims([*(slot.open_claims() or ()), self._n])
        return claimed

    def die(self, slot: Slot, *started: Job, status: int = 9) -> None:
        for index, job in enumerate(started):
            slot.words[Word.FIRST_RUNNER + 2 * index] = id_word(job.id)
        slot.words[Word.EXIT_STATUS] = status
        slot.state = State.DEAD

    def maintenance(self, **options: object) -> Maintenance:
        return Maintenance(
            self.store,
            lease=self.lease,
            slots=self.slots,
            options=WorkerOptions(),
            terms=TERMS,
            queues=QUEUE,
            observe=bool(options.get("observe")),
            burst=bool(options.get("burst")),
        )

    @contextlib.asynccontextmanager
    async def maintained(self, **options: object) -> AsyncIterator[Maintenance]:
        maintenance, stop = self.maintenance(**options), asyncio.Event()
        task = asyncio.create_task(maintenance.run(stop))
        try:
            yield maintenance
        finally:
            stop.set()
            await soon(task)

    async def ready(self) -> list[Job]:
        return [decode_job(envelope) for envelope in await self.store.peek("default", 1000)]

    async def freed(self, slot: Slot) -> None:
        await until(lambda: slot.state is State.FREE)


@pytest.fixture
def stage() -> Stage:
    return Stage()


def jobs(count: int) -> list[Job]:
    return [Job(ENVELOPE_VERSION, 5, new_id(), f"job{index}", "default", b"{}", 0.0) for index in range(count)]


def names(found: list[Job]) -> list[str]:
    return [job.name for job in found]


# -- a dead slot ------------------------------------------------------------------------------------------------------


async def test_a_dead_workers_jobs_are_back_at_the_head_in_their_old_order(stage: Stage) -> None:
    all_jobs = jobs(6)
    await stage.push(*all_jobs)
    slot = await stage.worker()
    await stage.claim(slot, 2)
    await stage.claim(slot, 2)
    async with stage.maintained() as maintenance:
        await stage.store.until(lambda: bool(stage.store.named("leases")))
        began = clock.monotonic()
        stage.die(slot, all_jobs[1])
        maintenance.wake()
        await stage.freed(slot)
        assert clock.monotonic() - began < 0.1
    back = await stage.ready()
    assert names(back) == [f"job{index}" for index in range(6)]
    assert [job.losses for job in back] == [0, 1, 0, 0, 0, 0]
    assert await stage.store.leases() == {}
    assert stage.slots.head[Head.RELEASED_TOTAL] == 4


async def test_a_thousand_claims_keep_their_order_too(stage: Stage) -> None:
    all_jobs = jobs(2500)
    await stage.push(*all_jobs)
    slot = await stage.worker()
    for _ in range(5):
        await stage.claim(slot, 500)
    stage.die(slot)
    async with stage.maintained():
        await stage.freed(slot)
    assert [decode_job(envelope).name for envelope in await stage.store.peek("default", 3000)] == names(all_jobs)


async def test_a_dead_slot_is_found_without_being_woken(stage: Stage) -> None:
    async with stage.maintained():
        await stage.store.until(lambda: bool(stage.store.named("leases")))
        slot = await stage.worker()
        stage.die(slot)
        await stage.freed(slot)


async def test_a_job_dead_of_its_third_loss_is_counted_and_kept(stage: Stage) -> None:
    [poison] = jobs(1)
    poison.losses = 2
    await stage.push(poison)
    slot = await stage.worker()
    await stage.claim(slot)
    stage.die(slot, poison)
    async with stage.maintained():
        await stage.freed(slot)
    [letter] = await stage.store.dead_list(None, None, 10)
    assert letter.id == poison.id
    assert stage.slots.head[Head.DEAD_TOTAL] == 1


async def test_a_slot_stays_dead_until_the_store_is_back(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    await stage.push(*jobs(3))
    slot = await stage.worker()
    await stage.claim(slot)
    with caplog.at_level(logging.INFO, "fastjobs.maintenance"):
        async with stage.maintained() as maintenance:
            await stage.store.until(lambda: bool(stage.store.named("leases")))
            stage.store.down()
            stage.die(slot)
            maintenance.wake()
            tried = len(stage.store.named("adopt"))
            await stage.store.until(lambda: len(stage.store.named("adopt")) >= tried + 3)
            assert slot.state is State.DEAD
            assert stage.slots.head[Head.STORE_DOWN] == 1
            stage.store.up()
            await stage.freed(slot)
            await until(lambda: stage.slots.head[Head.STORE_DOWN] == 0)
    told = [record.getMessage() for record in caplog.records if "store" in record.getMessage()]
    assert ["does not answer" in told[0], "answers maintenance again" in told[1]] == [True, True]
    assert len(told) == 2
    assert len(await stage.ready()) == 3


@pytest.mark.parametrize("call", ["adopt", "exchange", "register"])
async def test_a_lost_reply_doubles_nothing(stage: Stage, call: str) -> None:
    all_jobs = jobs(4)
    await stage.push(*all_jobs)
    slot = await stage.worker()
    await stage.claim(slot, 2)
    await stage.claim(slot, 2)
    stage.store.fail(call, times=2, lose_reply=True)
    stage.die(slot, all_jobs[0])
    async with stage.maintained():
        await stage.freed(slot)
    assert [(job.name, job.losses) for job in await stage.ready()] == [("job0", 1), ("job1", 0), ("job2", 0), ("job3", 0)]
    assert (await stage.store.stats()).running == 0


async def test_a_store_that_forgot_maintenance_is_joined_again(stage: Stage) -> None:
    await stage.push(*jobs(2))
    slot = await stage.worker()
    await stage.claim(slot)
    async with stage.maintained() as maintenance:
        await stage.store.until(lambda: bool(stage.store.named("leases")))
        own = next(worker for worker in await stage.store.workers(stage.lease) if ".0-" in worker)
        assert await stage.store.retire(own)
        stage.die(slot)
        maintenance.wake()
        await stage.freed(slot)
    assert len(await stage.ready()) == 2
    assert await stage.store.leases() == {}


async def test_what_the_store_refuses_goes_back_unchanged(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    [job] = jobs(1)
    await stage.push(job)
    slot = await stage.worker()
    await stage.claim(slot)
    stage.store.fail("exchange", error=BackendError("a NUL in it"))
    stage.die(slot, job)
    async with stage.maintained():
        await stage.freed(slot)
    assert [found.losses for found in await stage.ready()] == [0]
    assert "a NUL in it" in caplog.text


async def test_a_successor_finishes_what_a_dead_maintenance_had_begun(stage: Stage) -> None:
    all_jobs = jobs(3)
    await stage.push(*all_jobs)
    slot = await stage.worker()
    await stage.claim(slot, 2)
    await stage.claim(slot, 1)
    predecessor = worker_id(stage.lease, 0, 12345)
    await stage.store.register(predecessor)
    await stage.store.adopt(predecessor, 1, slot.worker_id(stage.lease), None, 2)
    stage.die(slot, all_jobs[1])
    async with stage.maintained():
        await stage.freed(slot)
    assert sorted((job.name, job.losses) for job in await stage.ready()) == [("job0", 0), ("job1", 1), ("job2", 0)]
    assert await stage.store.leases() == {}


async def test_stopping_takes_a_bounded_time_with_the_store_away(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastjobs.maintenance.FINAL_S", 0.2)
    slot = await stage.worker()
    async with stage.maintained():
        await stage.store.until(lambda: bool(stage.store.named("leases")))
        stage.store.down()
        stage.die(slot)
    assert slot.state is State.DEAD


# -- claims that nobody knows of --------------------------------------------------------------------------------------


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything is looked at fifty times a second."""
    monkeypatch.setattr("fastjobs.rescue.CLAIMS_S", 0.02)
    monkeypatch.setattr("fastjobs.leases.LOOK_S", 0.02)


@pytest.mark.usefixtures("often")
async def test_a_claim_that_its_living_worker_does_not_know_is_given_back(stage: Stage) -> None:
    await stage.push(*jobs(4))
    slot = await stage.worker()
    await stage.claim(slot, 1)
    await stage.claim(slot, 1, publish=False)
    await stage.claim(slot, 2, publish=False)
    slot.words[Word.CALL] = stage._n  # under way: its answer is not in yet
    async with stage.maintained():
        await stage.store.until(lambda: _is_ready(stage, ["job1"]))
        looks = len(stage.store.named("workers"))
        await stage.store.until(lambda: len(stage.store.named("workers")) > looks + 5)
        assert await stage.store.workers(stage.lease) == {
            slot.worker_id(stage.lease): [101, 103],
            **{worker: [] for worker in await stage.store.workers(stage.lease) if ".0-" in worker},
        }
        assert (await stage.store.exchange(slot.worker_id(stage.lease), 200, [], QUEUE, 0)).kept == []


@pytest.mark.usefixtures("often")
async def test_a_claim_that_is_published_between_two_looks_is_left_alone(stage: Stage) -> None:
    await stage.push(*jobs(1))
    slot = await stage.worker()
    await stage.claim(slot, publish=False)
    second = stage.store.hang("workers", skip=2)  # after that of the start and the first look
    async with stage.maintained():
        await happens(second.reached)
        slot.publish_claims([stage._n])
        assert second.gate is not None
        second.gate.set()
        looks = len(stage.store.named("workers"))
        await stage.store.until(lambda: len(stage.store.named("workers")) > looks + 5)
        assert await stage.ready() == []


@pytest.mark.usefixtures("often")
async def test_a_worker_in_no_slot_is_given_up_and_its_jobs_go_back(stage: Stage) -> None:
    await stage.push(*jobs(1))
    slot = await stage.worker(number=7)
    await stage.claim(slot)
    slot.clear()
    async with stage.maintained():
        await stage.store.until(lambda: _is_ready(stage, ["job0"]))
    assert await stage.store.leases() == {}


@pytest.mark.usefixtures("often")
async def test_more_open_claims_than_a_slot_can_say_are_left_alone(stage: Stage) -> None:
    await stage.push(*jobs(1))
    slot = await stage.worker()
    await stage.claim(slot, publish=False)
    slot.publish_claims(list(range(1000, 1200)))
    async with stage.maintained():
        await stage.store.until(lambda: len(stage.store.named("workers")) > 6)
    assert await stage.ready() == []


async def _is_ready(stage: Stage, wanted: list[str]) -> bool:
    return names([decode_job(envelope) for envelope in stage.core.peek("default", 100)]) == wanted


# -- leases -----------------------------------------------------------------------------------------------------------


async def test_the_lease_is_renewed(stage: Stage) -> None:
    await stage.worker()
    async with stage.maintained():
        await until(lambda: stage.slots.head[Head.BEAT_NS] > 0)
        counter = (await stage.store.leases())[stage.lease]
        assert counter > 1


async def test_a_renewal_that_gets_no_answer_is_tried_again(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastjobs.maintenance.RENEW_S", 0.01)
    await stage.worker()
    fault = stage.store.fail("renew", times=3)
    async with stage.maintained():
        await happens(fault.reached)
        await until(lambda: stage.slots.head[Head.BEAT_NS] > 0)


@pytest.mark.usefixtures("often")
async def test_a_lost_machines_jobs_are_taken_over_and_a_living_ones_left(stage: Stage) -> None:
    lost, living = worker_id(lease_name(0.2), 1, 0), worker_id(alive := lease_name(0.2), 1, 0)
    await stage.push(*jobs(4))
    for worker in (lost, living):
        await stage.store.register(worker)
        await stage.store.exchange(worker, 1, [], QUEUE, 2)

    async def renew() -> None:
        while True:
            await stage.store.renew(alive)
            await asyncio.sleep(0.01)

    renewing = asyncio.create_task(renew())
    async with stage.maintained():
        await stage.store.until(lambda: _is_ready(stage, ["job0", "job1"]))
        assert [job.losses for job in await stage.ready()] == [1, 1]
        looks = len(stage.store.named("leases"))
        await stage.store.until(lambda: len(stage.store.named("leases")) > looks + 20)
        assert list(await stage.store.workers(alive)) == [living]
        renewing.cancel()


@pytest.mark.usefixtures("often")
async def test_a_connection_that_keeps_breaking_takes_over_nothing(stage: Stage) -> None:
    silent = worker_id(lease_name(0.3), 1, 0)
    await stage.push(*jobs(1))
    await stage.store.register(silent)
    await stage.store.exchange(silent, 1, [], QUEUE, 1)
    breaks = [stage.store.fail("leases", skip=3) for _ in range(8)]
    async with stage.maintained():
        await happens(breaks[-1].reached)
        assert await stage.ready() == []
        await stage.store.until(lambda: _is_ready(stage, ["job0"]))


@pytest.mark.usefixtures("often")
async def test_two_observers_of_one_end_bring_each_job_back_once(stage: Stage) -> None:
    lost = worker_id(lease_name(0.1), 1, 0)
    await stage.push(*jobs(50))
    await stage.store.register(lost)
    for n in range(1, 6):
        await stage.store.exchange(lost, n, [], QUEUE, 10)
    other = Stage()
    other.core, other.store = stage.core, FaultyBackend(MemoryBackend(stage.core))
    async with stage.maintained(), other.maintained():
        await stage.store.until(lambda: stage.core.stats().queues[0].ready == 50)
    back = await stage.ready()
    assert len(back) == len({job.id for job in back}) == 50
    assert stage.slots.head[Head.RELEASED_TOTAL] + other.slots.head[Head.RELEASED_TOTAL] == 50
    assert {job.losses for job in back} == {1}


# -- counting ---------------------------------------------------------------------------------------------------------


async def test_counts_of_our_queues_are_in_the_head(stage: Stage) -> None:
    await stage.push(*jobs(3))
    [elsewhere] = jobs(1)
    elsewhere.queue = "other"
    await stage.push(elsewhere)
    await stage.store.push("p", 90, 0, [Entry(new_id(), "default", 5, encode_job(jobs(1)[0]), None, 3600.0)])
    async with stage.maintained(observe=True):
        await until(lambda: stage.slots.head[Head.READY] == 3 + 1)
        assert stage.slots.head[Head.DELAYED_LEFT] == 1 + 1
        assert stage.slots.head[Head.BURST_DONE] == 0


async def test_counts_that_take_long_are_taken_less_often(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    from fastjobs import maintenance as module

    now, took = [100.0], [0.0]
    stats = stage.store.stats

    async def slow() -> Stats:
        now[0] += took[0]
        return await stats()

    def looks() -> int:
        return len(stage.store.named("stats"))

    async def count_for(seconds: float) -> int:
        before = looks()
        for _ in range(round(seconds / 0.5)):
            await maintenance._count(stage.store)
            now[0] += 0.5
        return looks() - before

    monkeypatch.setattr(stage.store, "stats", slow)
    monkeypatch.setattr(module, "clock", SimpleNamespace(monotonic=lambda: now[0]))
    maintenance = stage.maintenance(burst=True)
    await stage.push(*jobs(1))
    await stage.claim(await stage.worker())  # not idle: a burst that is looks at once
    assert await count_for(10) == 10
    took[0] = 0.5
    assert await count_for(42) in {4, 5}
    took[0] = 60.0
    await count_for(20)
    took[0] = 0.0
    assert await count_for(40) > 5  # an outage is not taken for work


async def test_a_burst_is_over_when_nothing_is_ready_or_in_flight(stage: Stage) -> None:
    await stage.push(*jobs(2))
    slot = await stage.worker()
    async with stage.maintained(burst=True):
        await stage.store.until(lambda: len(stage.store.named("stats")) >= 2)
        assert stage.slots.head[Head.BURST_DONE] == 0
        await stage.claim(slot)
        looks = len(stage.store.named("stats"))
        await stage.store.until(lambda: len(stage.store.named("stats")) >= looks + 2)
        assert stage.slots.head[Head.BURST_DONE] == 0
        held = stage._n
        worker = slot.worker_id(stage.lease)
        slot.publish_claims([])
        await stage.store.exchange(worker, 900, [Settlement(held, [])], QUEUE, 0)
        await until(lambda: stage.slots.head[Head.BURST_DONE] == 1)


async def test_an_empty_store_ends_a_burst_at_once(stage: Stage) -> None:
    async with stage.maintained(burst=True):
        await until(lambda: stage.slots.head[Head.BURST_DONE] == 1)


async def test_the_stores_chores_are_done(stage: Stage) -> None:
    async with stage.maintained():
        await stage.store.until(lambda: bool(stage.store.named("housekeep")))


# -- embedded ---------------------------------------------------------------------------------------------------------


def embedded(stage: Stage, **options: float) -> EmbeddedMaintenance:
    return EmbeddedMaintenance(
        MemoryBackend(stage.core),
        lease=stage.lease,
        slots=stage.slots,
        options=WorkerOptions(**options),  # type: ignore[arg-type]
        terms=TERMS,
    )


async def test_embedded_it_renews_while_the_loop_is_blocked(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastjobs.maintenance.RENEW_S", 0.01)
    await stage.worker()
    async with embedded(stage):
        before = stage.core.leases()[stage.lease]
        deadline = clock.monotonic() + 10
        while stage.core.leases()[stage.lease] < before + 5:  # this blocks the loop, as a handler might
            assert clock.monotonic() < deadline


async def test_embedded_it_gives_back_what_the_worker_left(stage: Stage) -> None:
    await stage.push(*jobs(2))
    slot = await stage.worker()
    await stage.claim(slot)
    async with embedded(stage):
        pass
    assert [job.losses for job in await stage.ready()] == [0, 0]
    assert await stage.store.leases() == {}


async def test_embedded_it_keeps_the_lease_while_a_job_will_not_stop(stage: Stage) -> None:
    [job] = jobs(1)
    await stage.push(job)
    slot = await stage.worker()
    await stage.claim(slot)
    slot.words[Word.FIRST_RUNNER] = id_word(job.id)
    async with embedded(stage):
        pass
    assert stage.lease in await stage.store.leases()
    assert await stage.ready() == []
    slot.words[Word.FIRST_RUNNER] = 0
    await until(lambda: stage.core.leases() == {})
    assert len(await stage.ready()) == 1
