"""wait: a hint that comes at once. A test fails when a wait ends by its own time where an event should have ended it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from fastjobs.backends.base import Store
from tests.contract.kit import HOUR, dead, entries, entry, numbered, push, released, worker

LONG_S = 60.0  #: of a wait that something must end
SOON_S = 10.0  #: until then, on a busy machine
MOMENT_S = 0.1  #: in which nothing must happen


async def woken(*waits: asyncio.Task[bool]) -> set[asyncio.Task[bool]]:
    """The first of *waits* to end with True."""
    ended, _ = await asyncio.wait(waits, timeout=SOON_S, return_when=asyncio.FIRST_COMPLETED)
    assert [wait.result() for wait in ended] == [True] * max(1, len(ended))
    return ended


async def cancel(*waits: asyncio.Task[bool]) -> None:
    for wait in waits:
        wait.cancel()
    await asyncio.gather(*waits, return_exceptions=True)


async def asleep(store: Store, *queues: str) -> asyncio.Task[bool]:
    """A wait that has begun and found nothing. It may have ended early before: a hint of earlier jobs that came late."""
    for _ in range(20):
        task = asyncio.create_task(store.wait(queues or ("q",), LONG_S))
        ended, _ = await asyncio.wait([task], timeout=MOMENT_S)
        if not ended:
            return task
    raise AssertionError("waits end at once though nothing is ready")


async def test_a_wait_returns_at_once_when_a_job_is_ready(store: Store) -> None:
    await push(store, entry("a"))
    async with asyncio.timeout(SOON_S):
        assert await store.wait(["q"], LONG_S)


async def test_a_wait_that_nothing_ends_returns_false_after_its_time(store: Store) -> None:
    started = asyncio.get_running_loop().time()
    assert await store.wait(["q"], 0.2) is False
    assert 0.15 < asyncio.get_running_loop().time() - started < SOON_S


async def test_a_push_wakes_a_waiter(store: Store, another: Callable[[], Store]) -> None:
    wait = await asleep(another())
    await push(store, entry("a"))
    await woken(wait)


async def test_every_push_wakes_again(store: Store, another: Callable[[], Store]) -> None:
    waiter, hand = another(), await worker(store)
    for name in numbered(20):
        wait = asyncio.create_task(waiter.wait(["q"], LONG_S))
        await push(store, entry(name))
        await woken(wait)
        assert await hand.drain() == [name]


async def test_a_waiter_of_several_queues_is_woken_by_any(store: Store, another: Callable[[], Store]) -> None:
    waiter, hand = another(), await worker(store)
    for queue in ("x", "z", "y"):
        wait = await asleep(waiter, "x", "y", "z")
        await push(store, entry("a", queue=queue))
        await woken(wait)
        await hand.drain("x", "y", "z")


async def test_two_waiters_of_the_same_queues_wake_each_other_by_leaving_jobs_behind(
    store: Store, another: Callable[[], Store]
) -> None:
    waits = [await asleep(another()), await asleep(another())]
    await push(store, *entries(["a", "b"]))
    first = await woken(*waits)
    hand = await worker(store)
    assert (await hand.exchange(limit=1)).more
    await woken(*(set(waits) - first or waits))


async def test_a_released_job_wakes_a_waiter(store: Store, another: Callable[[], Store]) -> None:
    await push(store, entry("a"))
    hand = await worker(store)
    claim = await hand.claim()
    wait = await asleep(another())
    await hand.exchange(claim.ended(released(0, entry("a"))), limit=0)
    await woken(wait)


async def test_a_requeued_dead_letter_wakes_a_waiter(store: Store, another: Callable[[], Store]) -> None:
    await push(store, entry("a"))
    hand = await worker(store)
    claim = await hand.claim()
    await hand.settle(claim.ended(dead(0, entry("a"))))
    wait = await asleep(another())
    await store.dead_requeue([entry("a")])
    await woken(wait)


async def test_a_cancelled_wait_leaves_the_store_usable(store: Store, another: Callable[[], Store]) -> None:
    waiter = another()
    wait = await asleep(waiter)
    await cancel(wait)
    await push(store, entry("a"))
    hand = await worker(waiter)
    assert (await hand.claim()).jobs == ["a"]


async def test_a_wake_up_is_not_lost_with_a_waiter_that_was_cancelled(store: Store, another: Callable[[], Store]) -> None:
    wait, other = await asleep(another()), await asleep(another())
    await cancel(wait)
    await push(store, entry("a"))
    await woken(other)


async def test_calls_go_on_while_their_backend_waits(store: Store) -> None:
    wait = await asleep(store, "other")
    await push(store, entry("a"))
    assert await (await worker(store)).drain() == ["a"]
    await cancel(wait)


async def test_a_delayed_job_alone_does_not_end_a_wait(store: Store) -> None:
    await push(store, entry("a", delay_s=HOUR))
    await cancel(await asleep(store))
