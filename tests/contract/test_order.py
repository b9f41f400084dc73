"""The order of a claim, as far as the store can tell: one producer, one claimer."""

from __future__ import annotations

import pytest

from fastjobs.backends.base import Store
from tests.contract.kit import entries, entry, numbered, push, released, retry, worker


@pytest.mark.one_store("order holds within a partition")
async def test_jobs_of_a_queue_come_out_as_they_went_in(store: Store) -> None:
    names = numbered(30)
    for name in names:
        await push(store, entry(name))
    hand = await worker(store)
    ran: list[str] = []
    while claim := (await hand.claim(limit=7)).jobs:
        ran += claim
    assert ran == names


async def test_higher_priorities_come_first(store: Store) -> None:
    order = [3, 9, 0, 5, 7, 1, 8, 2, 6, 4]
    await push(store, *(entry(str(priority), priority=priority) for priority in order))
    assert await (await worker(store)).drain() == list("9876543210")


@pytest.mark.one_store("order holds within a partition")
async def test_a_higher_priority_comes_first_whatever_its_queue(store: Store) -> None:
    for queue, priority in (("x", 4), ("y", 6), ("x", 8), ("y", 2)):
        await push(store, entry(f"{queue}{priority}", queue=queue, priority=priority))
    assert (await (await worker(store)).claim(queues=["x", "y"])).jobs == ["x8", "y6", "x4", "y2"]


async def test_no_queue_of_equal_priority_waits_for_the_other_to_be_empty(store: Store) -> None:
    for number in range(20):
        await push(store, entry(f"x{number}", queue="x"), entry(f"y{number}", queue="y"))
    hand = await worker(store)
    claims = [(await hand.claim(limit=2, queues=["x", "y"])).jobs for _ in range(6)]
    assert {job[0] for claim in claims for job in claim} == {"x", "y"}


@pytest.mark.one_store("order holds within a partition")
async def test_a_later_job_of_higher_priority_overtakes(store: Store) -> None:
    await push(store, *entries(["a", "b"]))
    hand = await worker(store)
    assert (await hand.claim(limit=1)).jobs == ["a"]
    await push(store, entry("urgent", priority=6))
    assert (await hand.claim()).jobs == ["urgent", "b"]


async def test_released_jobs_come_before_the_others_of_their_priority(store: Store) -> None:
    await push(store, *entries(numbered(6)))
    hand = await worker(store)
    claim = await hand.claim(limit=3)
    await hand.settle(claim.ended(*(released(index, entry(name)) for index, name in enumerate(claim.jobs))))
    ran = await hand.drain()
    assert sorted(ran[:3]) == ["job-0", "job-1", "job-2"]
    assert ran[3:] == ["job-3", "job-4", "job-5"]


@pytest.mark.one_store("order holds within a partition")
async def test_released_jobs_do_not_overtake_a_higher_priority(store: Store) -> None:
    await push(store, entry("low", priority=2), entry("lower", priority=1))
    hand = await worker(store)
    claim = await hand.claim(limit=1)
    await hand.settle(claim.ended(released(0, entry("low", priority=2))))
    await push(store, entry("high", priority=3))
    assert await hand.drain() == ["high", "low", "lower"]


async def test_a_retry_without_delay_goes_behind_what_is_ready(store: Store) -> None:
    await push(store, *entries(["a", "b", "c"]))
    hand = await worker(store)
    claim = await hand.claim(limit=1)
    await hand.settle(claim.ended(retry(0, entry("a"))))
    assert await hand.drain() == ["b", "c", "a"]


async def test_peek_shows_the_order_of_the_next_claim(store: Store) -> None:
    await push(store, entry("a"), entry("b", priority=7), entry("c"), entry("d", priority=1), entry("e"))
    hand = await worker(store)
    claim = await hand.claim(limit=2)
    assert claim.jobs == ["b", "a"]
    await hand.settle(claim.ended(released(1, entry("a"))))
    assert await store.peek("q", 10) == [b"a", b"c", b"e", b"d"]
    assert await hand.drain() == ["a", "c", "e", "d"]
