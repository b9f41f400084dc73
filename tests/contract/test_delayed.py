"""Delayed jobs: not before their time, by the store's clock, and then without anybody's help but the next exchange."""

from __future__ import annotations

import pytest

from fastjobs import clock
from fastjobs.backends.base import Store
from tests.contract.kit import HOUR, counts, entries, entry, numbered, push, retry, worker


async def test_a_delayed_job_is_not_ready_before_its_time(store: Store) -> None:
    await push(store, entry("a", delay_s=HOUR))
    found = await counts(store)
    assert (found.ready, found.delayed) == (0, 1)
    store.time_shift_s += HOUR - 60
    assert (await (await worker(store)).claim()).jobs == []


async def test_a_delayed_job_is_claimed_when_its_time_has_come(store: Store) -> None:
    await push(store, entry("a", delay_s=HOUR))
    store.time_shift_s += HOUR
    assert (await (await worker(store)).claim()).jobs == ["a"]
    assert (await counts(store)).delayed == 0


async def test_a_job_runs_at_the_time_it_names(store: Store) -> None:
    await push(store, entry("a", run_at=clock.wall() + HOUR))
    hand = await worker(store)
    store.time_shift_s += HOUR - 60
    assert (await hand.claim()).jobs == []
    store.time_shift_s += 120
    assert (await hand.claim()).jobs == ["a"]


async def test_a_time_in_the_past_means_now(store: Store) -> None:
    await push(store, entry("a", run_at=clock.wall() - HOUR), entry("b", run_at=0.0))
    assert sorted((await (await worker(store)).claim()).jobs) == ["a", "b"]


async def test_a_named_time_wins_over_a_delay(store: Store) -> None:
    await push(store, entry("a", run_at=clock.wall() - 60, delay_s=HOUR))
    await push(store, entry("b", run_at=clock.wall() + HOUR, delay_s=1.0))
    store.time_shift_s += 60
    assert (await (await worker(store)).claim()).jobs == ["a"]


async def test_due_jobs_wait_for_nobody_but_an_exchange_of_their_own_queue(store: Store) -> None:
    await push(store, entry("a", queue="x", delay_s=HOUR), entry("b", queue="y", delay_s=HOUR))
    store.time_shift_s += HOUR
    hand = await worker(store)
    assert (await hand.claim(queues=["x"])).jobs == ["a"]
    assert (await hand.claim(queues=["y"])).jobs == ["b"]


async def test_a_due_job_takes_the_place_of_its_priority(store: Store) -> None:
    await push(store, entry("now", priority=5), entry("low", priority=4, delay_s=HOUR), entry("high", priority=6, delay_s=HOUR))
    store.time_shift_s += HOUR
    assert (await (await worker(store)).claim()).jobs == ["high", "now", "low"]


async def test_the_delay_of_a_retry_counts_from_its_settlement(store: Store) -> None:
    await push(store, entry("a"))
    hand = await worker(store)
    claim = await hand.claim()
    store.time_shift_s += 5 * HOUR
    await hand.settle(claim.ended(retry(0, entry("a", delay_s=HOUR))))
    store.time_shift_s += HOUR - 60
    assert (await hand.claim()).jobs == []
    store.time_shift_s += 60
    assert (await hand.claim()).jobs == ["a"]


async def test_a_retry_at_a_time_waits_for_it(store: Store) -> None:
    await push(store, entry("a"))
    hand = await worker(store)
    claim = await hand.claim()
    await hand.settle(claim.ended(retry(0, entry("a", run_at=clock.wall() + HOUR))))
    assert (await hand.claim()).jobs == []
    store.time_shift_s += HOUR + 1
    assert (await hand.claim()).jobs == ["a"]


async def test_an_exchange_tells_when_the_next_job_is_due(store: Store) -> None:
    await push(store, entry("a", delay_s=2 * HOUR), entry("b", delay_s=HOUR), entry("c", queue="other", delay_s=60))
    hand = await worker(store)
    answer = await hand.exchange(limit=10)
    assert answer.next_due_s == pytest.approx(HOUR, abs=30)
    store.time_shift_s += HOUR
    answer = await hand.exchange(limit=10)
    assert answer.jobs == [b"b"]
    assert answer.next_due_s == pytest.approx(HOUR, abs=30)


async def test_when_nothing_is_delayed_no_time_is_told(store: Store) -> None:
    await push(store, entry("a"), entry("c", queue="other", delay_s=60))
    assert (await (await worker(store)).exchange(limit=10)).next_due_s is None


async def test_thousands_that_fall_due_at_once_are_all_claimed(store: Store) -> None:
    names = numbered(3500)
    await push(store, *entries(names, delay_s=HOUR))
    store.time_shift_s += HOUR
    hand = await worker(store)
    ran: list[str] = []
    while True:
        answer = await hand.exchange(limit=100)
        if not answer.jobs:
            break
        assert answer.more == (len(ran) + 100 < 3500)
        ran += [job.decode() for job in answer.jobs]
    assert sorted(ran) == sorted(names)


@pytest.mark.one_store("order holds within a partition")
async def test_jobs_due_at_different_times_come_in_the_order_of_their_times(store: Store) -> None:
    for number in (3, 1, 4, 2, 5):
        await push(store, entry(f"job-{number}", delay_s=number * 60))
    store.time_shift_s += HOUR
    assert await (await worker(store)).drain() == [f"job-{number}" for number in (1, 2, 3, 4, 5)]


async def test_the_same_envelope_may_be_delayed_twice(store: Store) -> None:
    await push(store, entry("a", envelope=b"same", delay_s=HOUR), entry("b", envelope=b"same", delay_s=HOUR))
    assert (await counts(store)).delayed == 2
    store.time_shift_s += HOUR
    assert await (await worker(store)).drain() == ["same", "same"]
