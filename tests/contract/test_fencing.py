"""Fencing: who lost a claim learns of it, and cannot finish its jobs a second time."""

from __future__ import annotations

import pytest

from fastjobs.backends.base import Store
from fastjobs.errors import WorkerGone
from fastjobs.model import Settlement
from tests.contract.kit import Claim, counts, dead, entries, entry, numbered, open_claims, push, released, retry, worker


async def test_a_worker_whose_claim_was_adopted_cannot_settle_it_but_goes_on_with_the_others(store: Store) -> None:
    await push(store, *entries(numbered(3)))
    hand, adopter = await worker(store, "here.1"), await worker(store, "there.1")
    lost, kept = await hand.claim(limit=1), await hand.claim(limit=1)
    await adopter.adopt(hand.id, claims=[lost.id])
    answer = await hand.exchange(lost.ended(retry(0, entry("job-0"))), kept.done(), limit=1)
    assert (answer.kept, answer.jobs) == ([False, True], [b"job-2"])
    assert (await counts(store)).ready == 0


async def test_a_lost_claim_cannot_be_split(store: Store) -> None:
    await push(store, *entries(numbered(2)))
    hand, adopter = await worker(store, "here.1"), await worker(store, "there.1")
    claim = await hand.claim()
    adopted, _ = await adopter.adopt(hand.id, claims=[claim.id])
    assert await hand.settle(claim.ended(unfinished=[0], into=hand.number())) == [False]
    assert await open_claims(store, hand.id) == []
    assert (await store.stats()).running == 2
    assert await adopter.settle(adopted.done()) == [True]


async def test_no_outcome_of_a_lost_claim_is_stored(store: Store) -> None:
    await push(store, *entries(numbered(3)))
    hand, adopter = await worker(store, "here.1"), await worker(store, "there.1")
    claim = await hand.claim()
    await adopter.adopt(hand.id, claims=[claim.id])
    outcomes = retry(0, entry("job-0", delay_s=60)), dead(1, entry("job-1")), released(2, entry("job-2"))
    assert await hand.settle(claim.ended(*outcomes)) == [False]
    found = await counts(store)
    assert (found.ready, found.delayed, found.dead) == (0, 0, 0)


async def test_a_worker_that_was_given_up_claims_nothing_more(store: Store) -> None:
    await push(store, *entries(numbered(2)))
    hand, adopter = await worker(store, "here.1"), await worker(store, "there.1")
    claim = await hand.claim(limit=1)
    await adopter.adopt(hand.id)
    with pytest.raises(WorkerGone):
        await hand.exchange(claim.done(), limit=1)
    assert (await counts(store)).ready == 1


async def test_a_worker_that_was_given_up_adopts_nothing(store: Store) -> None:
    await push(store, *entries(numbered(2)))
    first, second, third = [await worker(store, f"{name}.1") for name in ("a", "b", "c")]
    await first.claim(limit=1)
    await third.adopt(second.id)
    with pytest.raises(WorkerGone):
        await second.adopt(first.id)
    assert await open_claims(store, first.id) == [1]


async def test_an_adopter_that_dies_loses_what_it_adopted_to_the_next(store: Store) -> None:
    await push(store, *entries(numbered(2)))
    hand, first, second = [await worker(store, f"{name}.1") for name in ("a", "b", "c")]
    await hand.claim()
    claim, _ = await first.adopt(hand.id)
    taken, _ = await second.adopt(first.id)
    with pytest.raises(WorkerGone):
        await first.settle(claim.done())
    assert taken.jobs == numbered(2)
    assert await second.settle(taken.done()) == [True]


async def test_a_claim_number_of_one_worker_means_nothing_for_another(store: Store) -> None:
    await push(store, *entries(numbered(2)))
    first, second = await worker(store, "here.1"), await worker(store, "here.2")
    a, b = await first.claim(limit=1), await second.claim(limit=1)
    assert a.id == b.id
    assert await first.settle(a.done()) == [True]
    assert await open_claims(store, second.id) == [b.id]
    assert (await store.stats()).running == 1


async def test_the_parts_of_a_split_claim_are_fenced_apart(store: Store) -> None:
    await push(store, *entries(numbered(3)))
    hand, adopter = await worker(store, "here.1"), await worker(store, "there.1")
    claim = await hand.claim()
    into = hand.number()
    await hand.settle(claim.ended(retry(0, entry("job-0")), unfinished=[1, 2], into=into))
    adopted, _ = await adopter.adopt(hand.id, claims=[into])
    assert adopted.jobs == ["job-1", "job-2"]
    assert await hand.settle(Claim(into, []).done()) == [False]


async def test_a_settlement_that_names_one_claim_twice_is_kept_once(store: Store) -> None:
    await push(store, entry("a"))
    hand = await worker(store)
    claim = await hand.claim()
    assert await hand.settle(claim.ended(retry(0, entry("a"))), Settlement(claim.id)) == [True, False]
    assert await hand.drain() == ["a"]
