"""The producer's end: single enqueues travel together, and nothing is stored twice."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from fastjobs import EnqueueUncertain
from fastjobs.errors import BackendError, StoreUnavailable
from fastjobs.ids import id_text, new_id
from fastjobs.model import Entry
from fastjobs.producer import BATCH, BATCH_BYTES, IN_FLIGHT, Producer, batches
from tests.faults import FaultyBackend
from tests.working import counts, happens, soon


@pytest.fixture
def producer(store: FaultyBackend) -> Producer:
    return Producer(store, give_up_after_s=30.0)


def entry(size: int = 10) -> Entry:
    return Entry(new_id(), "default", 5, b"x" * size)


def sizes(store: FaultyBackend) -> list[int]:
    """How many jobs each push had."""
    return [len(call.args[3]) for call in store.named("push")]


async def test_an_enqueue_is_stored_when_it_returns(store: FaultyBackend, producer: Producer) -> None:
    await producer.enqueue(entry())
    assert (await counts(store)).ready == 1


async def test_an_enqueue_on_an_idle_loop_is_sent_in_the_same_turn(store: FaultyBackend, producer: Producer) -> None:
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    counting = asyncio.create_task(count())
    await producer.enqueue(entry())
    counting.cancel()
    assert turns <= 5


async def test_a_thousand_concurrent_enqueues_are_one_push(store: FaultyBackend, producer: Producer) -> None:
    await asyncio.gather(*[producer.enqueue(entry()) for _ in range(1_000)])
    assert sizes(store) == [1_000]


async def test_enqueues_that_come_while_pushes_are_under_way_wait_and_travel_together(
    store: FaultyBackend, producer: Producer
) -> None:
    slow = [store.hang("push") for _ in range(IN_FLIGHT)]
    waiting = []
    for fault in slow:
        waiting.append(asyncio.create_task(producer.enqueue(entry())))
        await happens(fault.reached)
    waiting += [asyncio.create_task(producer.enqueue(entry())) for _ in range(500)]
    for _ in range(20):
        await asyncio.sleep(0)
    assert sizes(store) == [1] * IN_FLIGHT
    for fault in slow:
        assert fault.gate is not None
        fault.gate.set()
    await soon(asyncio.gather(*waiting))
    assert sizes(store) == [1] * IN_FLIGHT + [500]


async def test_a_push_is_bounded_in_jobs_and_bytes(store: FaultyBackend, producer: Producer) -> None:
    await asyncio.gather(*[producer.enqueue(entry()) for _ in range(2 * BATCH + 7)])
    assert sorted(sizes(store)) == [7, BATCH, BATCH]
    store.calls.clear()
    await asyncio.gather(*[producer.enqueue(entry(BATCH_BYTES // 4)) for _ in range(10)])
    assert max(sizes(store)) <= 5
    store.calls.clear()
    await producer.enqueue(entry(2 * BATCH_BYTES))
    assert sizes(store) == [1]


def test_batches_keep_every_entry_in_order_within_the_bounds() -> None:
    entries = [entry(size) for size in [1] * 1_500 + [BATCH_BYTES] + [BATCH_BYTES // 2] * 5 + [3 * BATCH_BYTES, 1]]
    found = batches(entries)
    assert [one for batch in found for one in batch] == entries
    for batch in found:
        assert 1 <= len(batch) <= BATCH
        assert len(batch) == 1 or sum(len(one.envelope) for one in batch) <= BATCH_BYTES
    assert batches([]) == []


async def test_a_lost_reply_stores_the_jobs_once(store: FaultyBackend, producer: Producer) -> None:
    store.fail("push", times=3, lose_reply=True)
    await asyncio.gather(*[producer.enqueue(entry()) for _ in range(10)])
    assert (await counts(store)).ready == 10
    assert len({(call.args[0], call.args[1]) for call in store.named("push")}) == 1


async def test_a_push_is_named_so_that_no_other_is_taken_for_it(store: FaultyBackend) -> None:
    for _ in range(3):
        producer = Producer(store, give_up_after_s=1)
        for _ in range(3):
            await producer.enqueue(entry())
    assert len({(call.args[0], call.args[1]) for call in store.named("push")}) == 9
    assert (await counts(store)).ready == 9


async def test_acked_is_never_above_a_push_without_an_answer(store: FaultyBackend, producer: Producer) -> None:
    """Or the store would take a late repeat of it for an old one, and store nothing."""
    first = store.hang("push")
    waiting = asyncio.create_task(producer.push([entry()]))
    await happens(first.reached)
    for _ in range(5):
        await producer.push([entry()])
    assert max(call.args[2] for call in store.named("push")) == 1
    assert first.gate is not None
    first.gate.set()
    await waiting
    await producer.push([entry()])
    assert store.named("push")[-1].args[2] == 7
    assert (await counts(store)).ready == 7


async def test_a_store_that_stays_away_makes_an_enqueue_uncertain_and_names_the_job(store: FaultyBackend) -> None:
    producer = Producer(store, give_up_after_s=0.05)
    store.down()
    mine, other = entry(), entry()
    results = await asyncio.gather(producer.enqueue(mine), producer.enqueue(other), return_exceptions=True)
    for one, error in zip((mine, other), results, strict=True):
        assert isinstance(error, EnqueueUncertain)
        assert error.job_ids == (id_text(one.id),)
        assert "may or may not be stored" in str(error)
    assert results[0] is not results[1]


async def test_an_uncertain_push_names_all_its_jobs(store: FaultyBackend) -> None:
    store.down()
    entries = [entry() for _ in range(3)]
    with pytest.raises(EnqueueUncertain) as caught:
        await Producer(store, give_up_after_s=0).push(entries)
    assert caught.value.job_ids == tuple(id_text(one.id) for one in entries)
    assert isinstance(caught.value.__cause__, StoreUnavailable)


async def test_a_short_outage_is_not_noticed_by_the_caller(store: FaultyBackend, producer: Producer) -> None:
    store.fail("push", times=4)
    await soon(producer.enqueue(entry()))
    assert (await counts(store)).ready == 1


async def test_a_refusal_is_raised_at_once_to_each_caller(store: FaultyBackend, producer: Producer) -> None:
    store.fail("push", error=BackendError("out of memory"), times=1)
    results = await asyncio.gather(producer.enqueue(entry()), producer.enqueue(entry()), return_exceptions=True)
    assert [type(error) for error in results] == [BackendError, BackendError]
    assert results[0] is not results[1]
    assert len(store.named("push")) == 1


async def test_a_cancelled_enqueue_harms_no_other(store: FaultyBackend, producer: Producer) -> None:
    slow = store.hang("push")
    callers = [asyncio.create_task(producer.enqueue(entry())) for _ in range(5)]
    await happens(slow.reached)
    callers[2].cancel()
    await asyncio.wait([callers[2]])
    assert slow.gate is not None
    slow.gate.set()
    results = await asyncio.gather(*callers, return_exceptions=True)
    assert [isinstance(error, asyncio.CancelledError) for error in results] == [False, False, True, False, False]
    assert (await counts(store)).ready >= 4


async def test_a_caller_with_a_timeout_of_its_own_harms_no_other(store: FaultyBackend, producer: Producer) -> None:
    slow = store.hang("push")

    async def impatient() -> None:
        async with asyncio.timeout(0.01):
            await producer.enqueue(entry())

    hasty, patient = asyncio.create_task(impatient()), asyncio.create_task(producer.enqueue(entry()))
    with pytest.raises(TimeoutError):
        await hasty
    assert slow.gate is not None
    slow.gate.set()
    await soon(patient)


async def test_an_error_that_is_no_backends_reaches_every_caller(
    store: FaultyBackend, producer: Producer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: object) -> None:
        raise TypeError("a bug")

    monkeypatch.setattr(store, "push", broken)
    errors: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: errors.append(context))
    results = await asyncio.gather(producer.enqueue(entry()), producer.enqueue(entry()), return_exceptions=True)
    assert [type(error) for error in results] == [TypeError, TypeError]


async def test_closing_sends_what_waits_first(store: FaultyBackend, producer: Producer) -> None:
    callers = [asyncio.create_task(producer.enqueue(entry())) for _ in range(3_000)]
    await asyncio.sleep(0)
    await producer.close()
    await soon(asyncio.gather(*callers))
    assert (await counts(store)).ready == 3_000


async def test_a_producer_may_be_used_again_after_it_was_closed(store: FaultyBackend, producer: Producer) -> None:
    await producer.enqueue(entry())
    await producer.close()
    await producer.enqueue(entry())
    assert (await counts(store)).ready == 2


async def test_order_is_kept_among_enqueues_of_one_turn(store: FaultyBackend, producer: Producer) -> None:
    entries = [Entry(new_id(), "default", 5, b"%d" % number) for number in range(200)]
    await asyncio.gather(*[producer.enqueue(one) for one in entries])
    assert list(await store.peek("default", 200)) == [one.envelope for one in entries]


def pushed(store: FaultyBackend) -> list[Sequence[Entry]]:
    return [call.args[3] for call in store.named("push")]


async def test_no_task_is_left_when_nothing_is_under_way(store: FaultyBackend, producer: Producer) -> None:
    before = asyncio.all_tasks()
    await asyncio.gather(*[producer.enqueue(entry()) for _ in range(50)])
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == before
    assert len(pushed(store)) == 1
