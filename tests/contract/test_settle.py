"""exchange as a settlement: each job of a claim goes where its outcome says, and the claim ends."""

from __future__ import annotations

import pytest

from fastjobs.backends.base import Store
from fastjobs.model import Settlement
from tests.contract.kit import HOUR, counts, dead, entries, entry, numbered, open_claims, push, released, retry, worker


async def test_done_jobs_are_forgotten(store: Store) -> None:
    await push(store, *entries(numbered(3)))
    hand = await worker(store)
    claim = await hand.claim()
    assert await hand.settle(claim.done()) == [True]
    found = await store.stats()
    assert found.running == 0
    assert all(queue.ready == queue.delayed == queue.dead == 0 for queue in found.queues)
    assert await open_claims(store, hand.id) == []


async def test_a_retry_without_delay_is_ready_again_at_once(store: Store) -> None:
    await push(store, entry("a"))
    hand = await worker(store)
    claim = await hand.claim()
    assert await hand.settle(claim.ended(retry(0, entry("a")))) == [True]
    assert (await hand.claim()).jobs == ["a"]


async def test_a_retry_stores_the_envelope_that_came_with_it(store: Store) -> None:
    await push(store, entry("a", envelope=b"attempts 0"))
    hand = await worker(store)
    claim = await hand.claim()
    await hand.settle(claim.ended(retry(0, entry("a", envelope=b"attempts 1"))))
    assert (await hand.claim()).jobs == ["attempts 1"]


@pytest.mark.one_store("order holds within a partition")
async def test_a_retry_goes_to_the_queue_and_priority_that_it_names(store: Store) -> None:
    await push(store, entry("a", priority=1))
    hand = await worker(store)
    claim = await hand.claim()
    await hand.settle(claim.ended(retry(0, entry("a", queue="other", priority=9))))
    await push(store, entry("b", queue="other", priority=8))
    assert (await hand.claim(queues=["q"])).jobs == []
    assert (await hand.claim(queues=["other"])).jobs == ["a", "b"]


async def test_a_delayed_retry_is_not_ready(store: Store) -> None:
    await push(store, entry("a"))
    hand = await worker(store)
    claim = await hand.claim()
    await hand.settle(claim.ended(retry(0, entry("a", delay_s=HOUR))))
    found = await counts(store)
    assert (found.ready, found.delayed) == (0, 1)
    assert (await hand.claim()).jobs == []


async def test_a_dead_job_stands_among_the_dead_letters_only(store: Store) -> None:
    await push(store, entry("a"))
    hand = await worker(store)
    claim = await hand.claim()
    assert await hand.settle(claim.ended(dead(0, entry("a", envelope=b"with history")))) == [True]
    found = await counts(store)
    assert (found.ready, found.delayed, found.dead) == (0, 0, 1)
    assert [letter.envelope for letter in await store.dead_list("q", None, 10)] == [b"with history"]


async def test_a_released_job_is_ready_again(store: Store) -> None:
    await push(store, entry("a"))
    hand = await worker(store)
    claim = await hand.claim()
    assert await hand.settle(claim.ended(released(0, entry("a")))) == [True]
    assert (await counts(store)).ready == 1
    assert (await hand.claim()).jobs == ["a"]


async def test_one_settlement_may_send_each_job_elsewhere(store: Store) -> None:
    await push(store, *entries(numbered(5)))
    hand = await worker(store)
    claim = await hand.claim()
    settlement = claim.ended(
        retry(1, entry("job-1")), dead(2, entry("job-2")), released(3, entry("job-3")), retry(4, entry("job-4", delay_s=HOUR))
    )
    assert await hand.settle(settlement) == [True]
    found = await counts(store)
    assert (found.ready, found.delayed, found.dead) == (2, 1, 1)
    assert await hand.drain() == ["job-3", "job-1"]


async def test_one_exchange_settles_one_claim_and_makes_the_next(store: Store) -> None:
    await push(store, *entries(numbered(4)))
    hand = await worker(store)
    claim = await hand.claim(limit=2)
    answer = await hand.exchange(claim.done(), limit=2)
    assert (answer.kept, answer.jobs) == ([True], [b"job-2", b"job-3"])
    assert await open_claims(store, hand.id) == [2]


async def test_one_exchange_may_settle_several_claims(store: Store) -> None:
    await push(store, *entries(numbered(4)))
    hand = await worker(store)
    first, second, third = [await hand.claim(limit=1) for _ in range(3)]
    settlements = [third.done(), first.ended(retry(0, entry("job-0"))), second.ended(dead(0, entry("job-1")))]
    answer = await hand.exchange(*settlements, limit=1)
    assert answer.kept == [True, True, True]
    assert await open_claims(store, hand.id) == [hand.n]
    assert (await counts(store)).dead == 1


async def test_a_job_released_by_an_exchange_is_not_lost_to_its_own_claim(store: Store) -> None:
    await push(store, entry("a"))
    hand = await worker(store)
    claim = await hand.claim()
    answer = await hand.exchange(claim.ended(released(0, entry("a"))), limit=10)
    ran = [job.decode() for job in answer.jobs]
    assert ran + (await hand.claim()).jobs == ["a"]


async def test_a_settlement_of_a_claim_that_never_was_is_not_kept_and_stores_nothing(store: Store) -> None:
    hand = await worker(store)
    assert await hand.settle(Settlement(77, [retry(0, entry("ghost"))])) == [False]
    assert (await counts(store)).ready == 0


async def test_a_second_settlement_of_the_same_claim_is_not_kept_and_stores_nothing(store: Store) -> None:
    await push(store, entry("a"))
    hand = await worker(store)
    claim = await hand.claim()
    assert await hand.settle(claim.done()) == [True]
    assert await hand.settle(claim.ended(retry(0, entry("a")))) == [False]
    assert (await counts(store)).ready == 0


async def test_a_settlement_of_another_workers_claim_is_not_kept_and_leaves_it_alone(store: Store) -> None:
    await push(store, entry("a"))
    owner, other = await worker(store, "here.1"), await worker(store, "here.2")
    claim = await owner.claim()
    assert await other.settle(claim.ended(retry(0, entry("a")))) == [False]
    assert (await counts(store)).ready == 0
    assert await owner.settle(claim.done()) == [True]


async def test_a_settlement_that_is_not_kept_does_not_stop_the_others_or_the_claim(store: Store) -> None:
    await push(store, *entries(numbered(3)))
    hand = await worker(store)
    first, second = await hand.claim(limit=1), await hand.claim(limit=1)
    answer = await hand.exchange(first.done(), Settlement(77), second.done(), limit=1)
    assert (answer.kept, answer.jobs) == ([True, False, True], [b"job-2"])
    assert await open_claims(store, hand.id) == [hand.n]


async def test_a_repeated_settlement_stores_its_outcomes_once(store: Store) -> None:
    await push(store, entry("a"))
    hand = await worker(store)
    claim = await hand.claim()
    settlement = claim.ended(retry(0, entry("a")))
    for _ in range(3):
        assert (await store.exchange(hand.id, 2, [settlement], ["q"], 0)).kept == [True]
    assert (await counts(store)).ready == 1


async def test_many_outcomes_are_stored_in_one_settlement(store: Store) -> None:
    names = numbered(2500)
    await push(store, *entries(names))
    hand = await worker(store)
    claim = await hand.claim(limit=2500)
    outcomes = [(retry, dead, released)[index % 3](index, entry(name)) for index, name in enumerate(claim.jobs)]
    assert await hand.settle(claim.ended(*outcomes)) == [True]
    found = await counts(store)
    assert (found.ready, found.dead) == (1667, 833)
    assert sorted(await hand.drain()) == sorted(name for index, name in enumerate(names) if index % 3 != 1)
