"""Splitting a claim: the jobs that still run move to a claim of their own, in one fenced step."""

from __future__ import annotations

from fastjobs.backends.base import Store
from fastjobs.model import Settlement
from tests.contract.kit import Claim, counts, dead, entries, entry, numbered, open_claims, push, retry, worker


async def test_unfinished_jobs_move_to_a_new_claim_and_the_rest_are_done(store: Store) -> None:
    await push(store, *entries(numbered(5)))
    hand = await worker(store)
    claim = await hand.claim()
    into = hand.number()
    assert await hand.settle(claim.ended(unfinished=[1, 4], into=into)) == [True]
    assert await open_claims(store, hand.id) == [into]
    assert (await store.stats()).running == 2


async def test_jobs_of_a_split_claim_are_named_by_their_new_indexes(store: Store) -> None:
    await push(store, *entries(numbered(5)))
    hand, heir = await worker(store), await worker(store, "there.1")
    claim = await hand.claim()
    first, second = hand.number(), hand.number()
    await hand.settle(claim.ended(unfinished=[1, 3, 4], into=first))
    await hand.settle(Claim(first, []).ended(unfinished=[0, 2], into=second))
    adopted, _ = await heir.adopt(hand.id)
    assert adopted.jobs == ["job-1", "job-4"]


async def test_a_split_may_store_outcomes_too(store: Store) -> None:
    await push(store, *entries(numbered(4)))
    hand = await worker(store)
    claim = await hand.claim()
    into = hand.number()
    await hand.settle(claim.ended(retry(0, entry("job-0")), dead(3, entry("job-3")), unfinished=[2], into=into))
    found = await counts(store)
    assert (found.ready, found.dead, (await store.stats()).running) == (1, 1, 1)
    assert await hand.settle(Claim(into, []).done()) == [True]
    assert await hand.drain() == ["job-0"]


async def test_all_jobs_of_a_claim_may_be_unfinished(store: Store) -> None:
    await push(store, *entries(numbered(3)))
    hand, heir = await worker(store), await worker(store, "there.1")
    claim = await hand.claim()
    into = hand.number()
    await hand.settle(claim.ended(unfinished=[0, 1, 2], into=into))
    assert await open_claims(store, hand.id) == [into]
    assert (await heir.adopt(hand.id))[0].jobs == numbered(3)


async def test_the_old_claim_of_a_split_cannot_be_settled_again(store: Store) -> None:
    await push(store, *entries(numbered(2)))
    hand = await worker(store)
    claim = await hand.claim()
    into = hand.number()
    await hand.settle(claim.ended(unfinished=[1], into=into))
    assert await hand.settle(claim.done()) == [False]
    assert await open_claims(store, hand.id) == [into]


async def test_a_split_of_a_claim_that_is_not_ours_makes_no_claim(store: Store) -> None:
    await push(store, *entries(numbered(2)))
    hand, other = await worker(store, "here.1"), await worker(store, "here.2")
    claim = await hand.claim()
    other.n = 10
    assert await other.settle(Settlement(claim.id, [], [0], other.number())) == [False]
    assert await open_claims(store, other.id) == []
    assert await open_claims(store, hand.id) == [claim.id]


async def test_one_exchange_may_split_several_claims_and_make_another(store: Store) -> None:
    await push(store, *entries(numbered(7)))
    hand = await worker(store)
    first, second = await hand.claim(limit=3), await hand.claim(limit=3)
    a, b = hand.number(), hand.number()
    answer = await hand.exchange(first.ended(unfinished=[0], into=a), second.ended(unfinished=[1, 2], into=b), limit=5)
    assert (answer.kept, answer.jobs) == ([True, True], [b"job-6"])
    assert await open_claims(store, hand.id) == [a, b, hand.n]
    assert (await store.stats()).running == 4


async def test_a_repeated_split_moves_its_jobs_once(store: Store) -> None:
    await push(store, *entries(numbered(3)))
    hand = await worker(store)
    claim = await hand.claim()
    settlement = claim.ended(unfinished=[1], into=2)
    for _ in range(3):
        assert (await store.exchange(hand.id, 3, [settlement], ["q"], 0)).kept == [True]
    assert await open_claims(store, hand.id) == [2]
    assert (await store.stats()).running == 1


async def test_a_large_claim_can_be_split(store: Store) -> None:
    await push(store, *entries(numbered(3000)))
    hand, heir = await worker(store), await worker(store, "there.1")
    claim = await hand.claim(limit=3000)
    into = hand.number()
    await hand.settle(claim.ended(unfinished=range(0, 3000, 2), into=into))
    adopted, _ = await heir.adopt(hand.id, limit=3000)
    assert adopted.jobs == numbered(3000)[::2]
