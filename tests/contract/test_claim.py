"""exchange as a claim: ready jobs become this worker's, and nobody else's."""

from __future__ import annotations

import pytest

from fastjobs.backends.base import Store
from fastjobs.errors import StaleCall, WorkerGone
from tests.contract.kit import counts, entries, entry, numbered, open_claims, push, worker


async def test_a_claim_takes_no_more_than_its_limit_and_says_that_there_is_more(store: Store) -> None:
    await push(store, *entries(numbered(5)))
    answer = await (await worker(store)).exchange(limit=3)
    assert len(answer.jobs) == 3
    assert answer.more
    assert (await counts(store)).ready == 2


async def test_a_claim_that_takes_all_says_that_there_is_no_more(store: Store) -> None:
    await push(store, *entries(numbered(3)))
    answer = await (await worker(store)).exchange(limit=3)
    assert len(answer.jobs) == 3
    assert not answer.more


async def test_a_claim_of_an_empty_store_is_empty_and_leaves_no_claim_open(store: Store) -> None:
    hand = await worker(store)
    answer = await hand.exchange(limit=10)
    assert (answer.kept, answer.jobs, answer.more, answer.next_due_s) == ([], [], False, None)
    assert await open_claims(store, hand.id) == []


async def test_claimed_jobs_are_running_and_no_longer_ready(store: Store) -> None:
    await push(store, *entries(numbered(3)))
    await (await worker(store)).claim(limit=2)
    assert (await store.stats()).running == 2
    assert (await counts(store)).ready == 1


async def test_a_claimed_job_is_claimed_by_nobody_else(store: Store) -> None:
    await push(store, entry("a"))
    first, second = await worker(store, "here.1"), await worker(store, "there.1")
    assert (await first.claim()).jobs == ["a"]
    assert (await second.claim()).jobs == []
    assert (await first.claim()).jobs == []


async def test_only_the_named_queues_are_claimed_from(store: Store) -> None:
    await push(store, entry("a", queue="x"), entry("b", queue="y"), entry("c", queue="z"))
    hand = await worker(store)
    assert sorted((await hand.claim(queues=["x", "z"])).jobs) == ["a", "c"]
    assert (await hand.claim(queues=["y"])).jobs == ["b"]


async def test_more_speaks_of_the_named_queues_only(store: Store) -> None:
    await push(store, entry("a", queue="x"), entry("b", queue="y"))
    assert not (await (await worker(store)).exchange(queues=["x"], limit=10)).more


async def test_without_queues_nothing_is_claimed(store: Store) -> None:
    await push(store, entry("a"))
    assert (await (await worker(store)).claim(queues=[])).jobs == []


async def test_with_limit_0_nothing_is_claimed(store: Store) -> None:
    await push(store, entry("a"))
    hand = await worker(store)
    assert (await hand.exchange(limit=0)).jobs == []
    assert await open_claims(store, hand.id) == []
    assert (await counts(store)).ready == 1


async def test_a_claim_has_the_number_of_the_call_that_made_it(store: Store) -> None:
    await push(store, *entries(numbered(3)))
    hand = await worker(store)
    for n in (4, 5, 100):  # gaps are allowed
        hand.n = n - 1
        await hand.claim(limit=1)
    assert await open_claims(store, hand.id) == [4, 5, 100]


async def test_a_large_claim_is_one_claim(store: Store) -> None:
    names = numbered(3000)
    await push(store, *entries(names))
    hand = await worker(store)
    claim = await hand.claim(limit=3000)
    assert claim.jobs == names
    assert await hand.settle(claim.done()) == [True]
    assert (await store.stats()).running == 0


async def test_a_repeated_claim_returns_the_same_jobs_in_the_same_order_and_takes_no_more(store: Store) -> None:
    await push(store, *entries(numbered(6)))
    hand = await worker(store)
    first = await store.exchange(hand.id, 1, [], ["q"], 3)
    again = await store.exchange(hand.id, 1, [], ["q"], 3)
    assert again.jobs == first.jobs
    assert (await counts(store)).ready == 3


async def test_a_repeated_claim_that_had_found_nothing_finds_nothing(store: Store) -> None:
    hand = await worker(store)
    await store.exchange(hand.id, 1, [], ["q"], 3)
    await push(store, entry("a"))
    assert (await store.exchange(hand.id, 1, [], ["q"], 3)).jobs == []


async def test_a_call_with_a_lower_number_is_stale_and_does_nothing(store: Store) -> None:
    await push(store, *entries(numbered(3)))
    hand = await worker(store)
    hand.n = 6
    claim = await hand.claim(limit=1)
    for n in (1, 6):
        with pytest.raises(StaleCall):
            await store.exchange(hand.id, n, [claim.done()], ["q"], 3)
    assert await open_claims(store, hand.id) == [7]
    assert (await counts(store)).ready == 2


async def test_numbers_of_different_workers_do_not_mix(store: Store) -> None:
    await push(store, *entries(numbered(2)))
    first, second = await worker(store, "here.1"), await worker(store, "here.2")
    first.n = 50
    await first.claim(limit=1)
    assert len((await second.claim(limit=1)).jobs) == 1


async def test_a_worker_that_was_never_registered_is_gone(store: Store) -> None:
    await push(store, entry("a"))
    with pytest.raises(WorkerGone):
        await store.exchange("here.1", 1, [], ["q"], 1)
    assert (await counts(store)).ready == 1


@pytest.mark.one_store("order holds within a partition")
async def test_claims_of_large_jobs_bring_all_of_them_in_the_end(store: Store) -> None:
    names = numbered(40)
    for first in range(0, 40, 8):  # a producer keeps its batches below some MB
        await push(store, *(entry(name, envelope=name.encode().ljust(1 << 20)) for name in names[first : first + 8]))
    hand = await worker(store)
    ran = []
    while claim := (await hand.claim()).jobs:
        ran += [job.rstrip() for job in claim]
    assert ran == names
