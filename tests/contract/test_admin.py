"""stats, peek, purge, open, migrate: what people look at and do by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from fastjobs.backends.base import Store
from tests.contract.kit import HOUR, counts, dead, entries, entry, numbered, push, released, worker


async def test_stats_count_each_queue_by_state_and_all_running_jobs(store: Store) -> None:
    await push(store, *entries(numbered(5), queue="x"), *entries(["p", "q"], queue="y", delay_s=HOUR))
    hand = await worker(store)
    claim = await hand.claim(limit=3, queues=["x"])
    into = hand.number()
    await hand.settle(claim.ended(dead(0, entry("job-0", queue="x")), unfinished=[1, 2], into=into))
    stats = await store.stats()
    assert [(found.queue, found.ready, found.delayed, found.dead) for found in stats.queues] == [("x", 2, 0, 1), ("y", 0, 2, 0)]
    assert stats.running == 2


async def test_stats_list_queues_by_name(store: Store) -> None:
    for queue in ("b", "c", "a"):
        await push(store, entry(queue, queue=queue))
    assert [found.queue for found in (await store.stats()).queues] == ["a", "b", "c"]


async def test_stats_count_due_jobs_as_delayed_until_an_exchange_moves_them(store: Store) -> None:
    await push(store, entry("a", delay_s=HOUR))
    store.time_shift_s += 2 * HOUR
    found = await counts(store)
    assert (found.ready, found.delayed) == (0, 1)


async def test_stats_of_an_empty_store_count_nothing(store: Store) -> None:
    stats = await store.stats()
    assert stats.running == 0
    assert all(queue.ready == queue.delayed == queue.dead == 0 for queue in stats.queues)


async def test_peek_claims_nothing(store: Store) -> None:
    await push(store, *entries(numbered(3)))
    assert await store.peek("q", 2) == [b"job-0", b"job-1"]
    assert await store.peek("q", 2) == [b"job-0", b"job-1"]
    assert (await counts(store)).ready == 3
    assert (await store.stats()).running == 0


@pytest.mark.one_store("a claim takes from one of them")
async def test_peek_shows_ready_jobs_of_its_queue_only(store: Store) -> None:
    await push(store, entry("a"), entry("later", delay_s=HOUR), entry("b", queue="other"))
    await push(store, entry("c"))
    await (await worker(store)).claim(limit=1)
    assert await store.peek("q", 10) == [b"c"]
    assert await store.peek("unknown", 10) == []


async def test_purge_deletes_ready_and_delayed_jobs_of_its_queue_and_counts_them(store: Store) -> None:
    await push(
        store, *entries(numbered(3)), entry("high", priority=9), entry("later", delay_s=HOUR), entry("kept", queue="other")
    )
    assert await store.purge("q") == 5
    found = await counts(store)
    assert (found.ready, found.delayed) == (0, 0)
    store.time_shift_s += 2 * HOUR
    hand = await worker(store)
    assert (await hand.claim(queues=["q", "other"])).jobs == ["kept"]


async def test_purge_leaves_running_jobs_and_dead_letters(store: Store) -> None:
    await push(store, *entries(numbered(3)))
    hand = await worker(store)
    claim = await hand.claim(limit=1)
    await hand.settle(claim.ended(dead(0, entry("job-0"))))
    running = await hand.claim(limit=1)
    assert await store.purge("q") == 1
    assert (await counts(store)).dead == 1
    assert await hand.settle(running.done()) == [True]


async def test_purge_of_an_unknown_queue_deletes_nothing(store: Store) -> None:
    await push(store, entry("a"))
    assert await store.purge("unknown") == 0
    assert (await counts(store)).ready == 1


async def test_a_purged_queue_takes_new_jobs(store: Store) -> None:
    await push(store, entry("a"))
    await store.purge("q")
    await push(store, entry("b"))
    assert await (await worker(store)).drain() == ["b"]


async def test_released_jobs_are_seen_and_purged_too(store: Store) -> None:
    await push(store, entry("a"))
    hand = await worker(store)
    claim = await hand.claim()
    await hand.settle(claim.ended(released(0, entry("a"))))
    assert await store.peek("q", 10) == [b"a"]
    assert await store.purge("q") == 1
    assert (await hand.claim()).jobs == []


async def test_opening_is_not_needed_and_does_no_harm(store: Store) -> None:
    await push(store, entry("a"))
    await store.open()
    await store.open()
    assert (await counts(store)).ready == 1


async def test_a_closed_backend_may_be_used_again(store: Store) -> None:
    await push(store, entry("a"))
    await store.close()
    await store.close()
    assert (await counts(store)).ready == 1


async def test_a_store_that_is_up_to_date_has_nothing_to_migrate(store: Store) -> None:
    await push(store, entry("a"))
    assert await store.migrate() == []
    assert (await counts(store)).ready == 1


async def test_a_clone_sees_the_same_jobs(store: Store) -> None:
    await push(store, entry("a"))
    clone = store.clone()
    try:
        assert (await counts(clone)).ready == 1
        await push(clone, entry("b"))
    finally:
        await clone.close()
    assert (await counts(store)).ready == 2


async def test_another_backend_sees_the_same_jobs(store: Store, another: Callable[[], Store]) -> None:
    await push(store, entry("a"))
    hand = await worker(another(), "there.1")
    assert (await hand.claim()).jobs == ["a"]
    assert (await store.stats()).running == 1
