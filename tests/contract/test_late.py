"""Late calls: a request that was under way for long arrives after its sender has repeated it, moved on, or died."""

from __future__ import annotations

import pytest

from fastjobs.backends.base import Store
from fastjobs.errors import StaleCall, WorkerGone
from fastjobs.model import Settlement
from tests.contract.kit import counts, dead, entries, entry, numbered, open_claims, push, released, retry, worker


async def test_a_claim_that_arrives_after_a_newer_call_takes_nothing(store: Store) -> None:
    await push(store, *entries(numbered(3)))
    hand = await worker(store)
    await store.exchange(hand.id, 2, [], ["q"], 1)
    with pytest.raises(StaleCall):
        await store.exchange(hand.id, 1, [], ["q"], 1)
    assert await open_claims(store, hand.id) == [2]
    assert (await counts(store)).ready == 2


async def test_a_settlement_that_arrives_after_its_retry_and_a_newer_call_stores_nothing(store: Store) -> None:
    await push(store, entry("a"))
    hand = await worker(store)
    claim = await hand.claim()
    settlement = claim.ended(retry(0, entry("a")))
    late = (hand.id, 2, [settlement], ["q"], 0)
    assert (await store.exchange(*late)).kept == [True]
    assert (await store.exchange(hand.id, 3, [], ["q"], 1)).jobs == [b"a"]
    with pytest.raises(StaleCall):
        await store.exchange(*late)
    assert (await counts(store)).ready == 0


async def test_a_claim_that_was_adopted_is_not_returned_by_its_own_repeat(store: Store) -> None:
    await push(store, entry("a"))
    hand, adopter = await worker(store, "here.1"), await worker(store, "there.1")
    await store.exchange(hand.id, 1, [], ["q"], 1)
    claim, _ = await adopter.adopt(hand.id, claims=[1])
    assert claim.jobs == ["a"]
    assert (await store.exchange(hand.id, 1, [], ["q"], 1)).jobs == []


async def test_a_claim_that_arrives_after_its_worker_was_given_up_takes_nothing(store: Store) -> None:
    await push(store, *entries(numbered(2)))
    hand, adopter = await worker(store, "here.1"), await worker(store, "there.1")
    await hand.claim(limit=1)
    await adopter.adopt(hand.id)
    with pytest.raises(WorkerGone):
        await store.exchange(hand.id, 2, [], ["q"], 1)
    assert (await counts(store)).ready == 1
    assert await open_claims(store, hand.id) is None


async def test_a_settlement_that_arrives_after_its_worker_was_given_up_stores_nothing(store: Store) -> None:
    await push(store, *entries(numbered(3)))
    hand, adopter = await worker(store, "here.1"), await worker(store, "there.1")
    claim = await hand.claim()
    adopted, _ = await adopter.adopt(hand.id)
    outcomes = retry(0, entry("job-0")), dead(1, entry("job-1")), released(2, entry("job-2"))
    with pytest.raises(WorkerGone):
        await hand.settle(claim.ended(*outcomes))
    found = await counts(store)
    assert (found.ready, found.dead) == (0, 0)
    assert await adopter.settle(adopted.done()) == [True]


async def test_a_repeat_of_the_last_call_of_a_worker_given_up_is_refused_as_well(store: Store) -> None:
    await push(store, entry("a"))
    hand, adopter = await worker(store, "here.1"), await worker(store, "there.1")
    await store.exchange(hand.id, 1, [], ["q"], 1)
    await adopter.adopt(hand.id)
    with pytest.raises(WorkerGone):
        await store.exchange(hand.id, 1, [], ["q"], 1)


async def test_an_adoption_that_arrives_after_a_newer_call_of_the_adopter_takes_nothing(store: Store) -> None:
    await push(store, *entries(numbered(2)))
    hand, adopter = await worker(store, "here.1"), await worker(store, "there.1")
    await hand.claim(limit=1)
    await hand.claim(limit=1)
    late = (adopter.id, 1, hand.id, None, 1)
    await store.adopt(*late)
    await store.exchange(adopter.id, 2, [Settlement(1)], ["q"], 0)
    with pytest.raises(StaleCall):
        await store.adopt(*late)
    assert await open_claims(store, hand.id) == [2]


async def test_an_exchange_that_ran_after_its_own_retry_leaves_a_claim_that_others_may_adopt(store: Store) -> None:
    await push(store, entry("a"))
    hand, adopter = await worker(store, "here.1"), await worker(store, "there.1")
    await store.exchange(hand.id, 1, [], ["q"], 1)  # its reply reaches nobody; the worker never learns of claim 1
    await store.exchange(hand.id, 2, [], ["q"], 1)
    assert await open_claims(store, hand.id) == [1]
    claim, _ = await adopter.adopt(hand.id, claims=[1])
    assert claim.jobs == ["a"]


async def test_a_late_retirement_takes_no_claim_with_it(store: Store) -> None:
    await push(store, entry("a"))
    hand = await worker(store)
    claim = await hand.claim()
    assert await store.retire(hand.id) is False
    assert await hand.settle(claim.done()) == [True]


async def test_a_late_requeue_of_a_letter_that_died_again_is_a_new_requeue(store: Store) -> None:
    await push(store, entry("a"))
    hand = await worker(store)
    claim = await hand.claim()
    await hand.settle(claim.ended(dead(0, entry("a"))))
    assert await store.dead_requeue([entry("a")]) == [True]
    assert await store.dead_requeue([entry("a")]) == [False]
    assert await hand.drain() == ["a"]
