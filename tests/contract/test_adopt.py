"""adopt: what a dead worker held goes to exactly one other, whole claims at a time."""

from __future__ import annotations

import pytest

from fastjobs.backends.base import Store
from fastjobs.errors import StaleCall, WorkerGone
from tests.contract.kit import Worker, counts, entries, entry, numbered, open_claims, push, released, worker


async def dead_worker(store: Store, *sizes: int, id: str = "dead.1") -> Worker:
    """A worker with one open claim of each size, ids 1, 2, …; its jobs are job-0, job-1, …"""
    await push(store, *entries(numbered(sum(sizes))))
    hand = await worker(store, id)
    for size in sizes:
        await hand.claim(limit=size)
    return hand


async def test_the_jobs_of_a_dead_worker_become_the_adopters(store: Store) -> None:
    gone = await dead_worker(store, 3)
    adopter = await worker(store)
    claim, more = await adopter.adopt(gone.id)
    assert (claim.jobs, more) == (numbered(3), False)
    assert await open_claims(store, adopter.id) == [claim.id]
    assert (await store.stats()).running == 3
    assert await adopter.settle(claim.done()) == [True]
    assert (await store.stats()).running == 0


async def test_nothing_is_left_of_a_worker_after_its_last_claim(store: Store) -> None:
    gone = await dead_worker(store, 2, 2)
    adopter = await worker(store)
    await adopter.adopt(gone.id)
    assert await store.workers("dead") == {}
    assert list(await store.leases()) == ["here"]


async def test_a_worker_without_claims_is_given_up_as_well(store: Store) -> None:
    gone = await dead_worker(store)
    adopter = await worker(store)
    assert await adopter.adopt(gone.id) == ((adopter.n, []), False)
    assert await store.leases() == {"here": (await store.leases())["here"]}
    with pytest.raises(WorkerGone):
        await gone.claim()


async def test_all_claims_are_joined_oldest_first(store: Store) -> None:
    gone = await dead_worker(store, 2, 3, 1)
    claim, more = await (await worker(store)).adopt(gone.id)
    assert (claim.jobs, more) == (numbered(6), False)


@pytest.mark.one_store("each partition gives at least one claim")
async def test_whole_claims_are_taken_while_they_stay_within_the_limit(store: Store) -> None:
    gone = await dead_worker(store, 2, 3, 4)
    adopter = await worker(store)
    first, more = await adopter.adopt(gone.id, limit=6)
    assert (len(first.jobs), more) == (5, True)
    second, more = await adopter.adopt(gone.id, limit=6)
    assert (len(second.jobs), more) == (4, False)
    assert first.jobs + second.jobs == numbered(9)


async def test_one_claim_is_taken_even_if_it_is_over_the_limit(store: Store) -> None:
    gone = await dead_worker(store, 5, 1)
    claim, more = await (await worker(store)).adopt(gone.id, limit=2)
    assert (len(claim.jobs), more) == (5, True)


async def test_oldest_first_goes_by_number_not_by_text(store: Store) -> None:
    gone = await dead_worker(store, *[1] * 12)
    claim, _ = await (await worker(store)).adopt(gone.id)
    assert claim.jobs == numbered(12)


async def test_a_worker_given_up_is_gone_while_claims_are_left(store: Store) -> None:
    gone = await dead_worker(store, 1, 1)
    adopter = await worker(store)
    await adopter.adopt(gone.id, limit=1)
    for call in (gone.claim, gone.claim):
        with pytest.raises(WorkerGone):
            await call()
    assert await open_claims(store, gone.id) == [2]


async def test_a_worker_given_up_cannot_register_again_while_claims_are_left(store: Store) -> None:
    gone = await dead_worker(store, 1, 1)
    adopter = await worker(store)
    await adopter.adopt(gone.id, limit=1)
    with pytest.raises(WorkerGone):
        await store.register(gone.id)


async def test_nothing_is_left_of_a_worker_given_up_when_its_last_claim_is_adopted_by_number(store: Store) -> None:
    gone = await dead_worker(store, 1, 1)
    adopter = await worker(store)
    await adopter.adopt(gone.id, limit=1)
    claim, more = await adopter.adopt(gone.id, claims=[2])
    assert (claim.jobs, more) == (["job-1"], False)
    assert await store.workers("dead") == {}
    assert list(await store.leases()) == ["here"]


async def test_another_adopter_may_go_on_where_the_first_stopped(store: Store) -> None:
    gone = await dead_worker(store, 1, 1, 1)
    first, second = await worker(store, "here.1"), await worker(store, "there.1")
    one, _ = await first.adopt(gone.id, limit=1)
    rest, more = await second.adopt(gone.id)
    assert (one.jobs + rest.jobs, more) == (numbered(3), False)


async def test_the_second_of_two_adopters_gets_nothing(store: Store) -> None:
    gone = await dead_worker(store, 2)
    first, second = await worker(store, "here.1"), await worker(store, "there.1")
    assert (await first.adopt(gone.id))[0].jobs == numbered(2)
    assert await second.adopt(gone.id) == ((second.n, []), False)
    assert await open_claims(store, second.id) == []


async def test_an_unknown_worker_has_nothing_to_adopt(store: Store) -> None:
    adopter = await worker(store)
    assert await adopter.adopt("nobody.1") == ((adopter.n, []), False)
    assert await adopter.adopt("nobody.1", claims=[1, 2]) == ((adopter.n, []), False)


async def test_named_claims_are_taken_and_their_worker_goes_on(store: Store) -> None:
    gone = await dead_worker(store, 1, 2, 3)
    adopter = await worker(store)
    claim, more = await adopter.adopt(gone.id, claims=[1, 3])
    assert (claim.jobs, more) == (["job-0", "job-3", "job-4", "job-5"], False)
    assert await open_claims(store, gone.id) == [2]
    await push(store, entry("next"))
    assert (await gone.claim()).jobs == ["next"]


async def test_named_claims_that_do_not_exist_are_no_matter(store: Store) -> None:
    gone = await dead_worker(store, 1)
    adopter = await worker(store)
    assert (await adopter.adopt(gone.id, claims=[7, 1, 99]))[0].jobs == ["job-0"]
    assert await adopter.adopt(gone.id, claims=[7]) == ((adopter.n, []), False)
    assert await adopter.adopt(gone.id, claims=[]) == ((adopter.n, []), False)
    assert await open_claims(store, gone.id) == []


async def test_named_claims_stay_within_the_limit_too(store: Store) -> None:
    gone = await dead_worker(store, 2, 2, 2)
    adopter = await worker(store)
    claim, more = await adopter.adopt(gone.id, claims=[1, 2], limit=3)
    assert (len(claim.jobs), more) == (2, True)
    claim, more = await adopter.adopt(gone.id, claims=[1, 2], limit=3)
    assert (len(claim.jobs), more) == (2, False)


async def test_adopted_jobs_can_be_adopted_again(store: Store) -> None:
    gone = await dead_worker(store, 2)
    first, second = await worker(store, "here.1"), await worker(store, "there.1")
    await first.adopt(gone.id)
    assert (await second.adopt(first.id))[0].jobs == numbered(2)


@pytest.mark.one_store("order holds within a partition")
async def test_adopted_jobs_go_back_to_the_head_when_they_are_released(store: Store) -> None:
    gone = await dead_worker(store, 2)
    await push(store, entry("fresh"))
    adopter = await worker(store)
    claim, _ = await adopter.adopt(gone.id)
    await adopter.settle(claim.ended(*(released(index, entry(name)) for index, name in enumerate(claim.jobs))))
    ran = await adopter.drain()
    assert (sorted(ran[:2]), ran[2:]) == (numbered(2), ["fresh"])


async def test_a_repeated_adoption_returns_the_same_jobs_and_takes_no_more(store: Store) -> None:
    gone = await dead_worker(store, 1, 1)
    adopter = await worker(store)
    for _ in range(3):
        adopted = await store.adopt(adopter.id, 1, gone.id, None, 1)
        assert (adopted.jobs, adopted.more) == ([b"job-0"], True)
    assert await open_claims(store, gone.id) == [2]


async def test_a_late_adoption_is_stale_and_takes_nothing(store: Store) -> None:
    gone = await dead_worker(store, 1)
    adopter = await worker(store)
    adopter.n = 4
    await adopter.claim()
    with pytest.raises(StaleCall):
        await store.adopt(adopter.id, 4, gone.id, None, 10)
    assert await open_claims(store, gone.id) == [1]
    assert len((await gone.claim()).jobs) == 0  # it was not given up either


async def test_an_adopter_that_is_gone_adopts_nothing(store: Store) -> None:
    gone = await dead_worker(store, 1)
    with pytest.raises(WorkerGone):
        await store.adopt("nobody.1", 1, gone.id, None, 10)
    assert await open_claims(store, gone.id) == [1]
    assert (await gone.claim()).jobs == []  # it was not given up


async def test_adoption_leaves_ready_delayed_and_dead_jobs_alone(store: Store) -> None:
    gone = await dead_worker(store, 1)
    await push(store, entry("ready"), entry("later", delay_s=60))
    await (await worker(store)).adopt(gone.id)
    found = await counts(store)
    assert (found.ready, found.delayed, found.dead) == (1, 1, 0)


async def test_a_large_worker_is_adopted_in_bounded_steps(store: Store) -> None:
    gone = await dead_worker(store, *[100] * 25)
    adopter = await worker(store)
    jobs: list[str] = []
    more = True
    while more:
        claim, more = await adopter.adopt(gone.id, limit=1000)
        assert len(claim.jobs) <= 1000
        jobs += claim.jobs
    assert jobs == numbered(2500)
