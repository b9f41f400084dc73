"""Late requests, for real: one is held on its way while its sender gives up waiting, connects anew, repeats it and goes on."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from fastjobs.backends.base import Store
from fastjobs.errors import StoreUnavailable
from fastjobs.model import Settlement
from tests.chaos.detour import Detour, detour
from tests.chaos.proxy import DOWN, UP, Link, Way
from tests.contract.kit import counts, dead, empty, entry, open_claims, push, retry, worker
from tests.stores import Place
from tests.working import until

TIMEOUT_S = 0.2
"""Of whose request is late. It may be too short for other calls on a busy machine, so those go another way."""


class Delay:
    """A tap: keeps one request back."""

    def __init__(self) -> None:
        self._words: bytes | None = None
        self._link: Link | None = None
        self._answered = False

    def __call__(self, link: Link, way: Way, data: bytes) -> None:
        if way is UP and self._words is not None and self._words in data:
            self._words, self._link = None, link
            link.stall(UP)
        elif way is DOWN and link is self._link:
            self._answered = True

    async def keep(self, words: str, call: Callable[[], Awaitable[Any]]) -> None:
        """Make *call*: its request, which has *words* in it, does not arrive, and nobody waits for it any more."""
        self._words, self._link, self._answered = words.encode(), None, False
        while self._link is None:  # connecting may take too long already
            with pytest.raises(StoreUnavailable):
                await call()

    async def deliver(self) -> None:
        """The request arrives; the store has answered it when this returns."""
        assert self._link is not None
        assert not self._answered
        self._link.resume()
        await until(lambda: self._answered)


@pytest.fixture(params=["socket", "redis", "postgres"])
def store_kind(request: pytest.FixtureRequest) -> str:
    """All that have a network."""
    return str(request.param)


@pytest.fixture
def delay() -> Delay:
    return Delay()


@pytest.fixture
async def way(place: Place, delay: Delay) -> AsyncIterator[Detour]:
    """To the store; nothing may be left in it."""
    with detour(place.url(), delay) as made:
        yield made
    direct = place.backend()
    try:
        await empty(direct)
    finally:
        await direct.close()
    assert await place.leftovers() == []


@pytest.fixture
async def store(way: Detour) -> AsyncIterator[Store]:
    made = way.backend(10.0)
    yield made
    await made.close()


@pytest.fixture
async def hasty(way: Detour) -> AsyncIterator[Store]:
    """The same store, for calls whose requests are late."""
    made = way.backend(TIMEOUT_S)
    yield made
    await made.close()


async def test_a_claim_that_arrives_after_its_repeat_takes_nothing_more(store: Store, hasty: Store, delay: Delay) -> None:
    await push(store, entry("a"), entry("b"))
    hand = await worker(store)

    async def claim(by: Store) -> list[bytes]:
        return (await by.exchange(hand.id, 1, [], ["q"], 1)).jobs

    await delay.keep(hand.id, lambda: claim(hasty))
    assert await claim(store) == [b"a"]
    await delay.deliver()
    assert await open_claims(store, hand.id) == [1]
    assert (await counts(store)).ready == 1
    hand.n = 1
    assert await hand.settle(Settlement(1)) == [True]


async def test_a_settlement_that_arrives_after_its_repeat_and_more_stores_nothing(
    store: Store, hasty: Store, delay: Delay
) -> None:
    await push(store, entry("a"))
    hand = await worker(store)
    claim = await hand.claim()

    async def settle(by: Store) -> list[bool]:
        return (await by.exchange(hand.id, 2, [claim.ended(retry(0, entry("a")))], ["q"], 0)).kept

    await delay.keep(hand.id, lambda: settle(hasty))
    assert await settle(store) == [True]
    assert (await store.exchange(hand.id, 3, [], ["q"], 1)).jobs == [b"a"]
    await delay.deliver()
    assert (await counts(store)).ready == 0
    assert await open_claims(store, hand.id) == [3]


async def test_a_claim_that_arrives_instead_of_its_repeat_is_found_by_that(store: Store, hasty: Store, delay: Delay) -> None:
    """It was the repeat that was late."""
    await push(store, entry("a"))
    hand = await worker(store)

    async def claim(by: Store) -> list[bytes]:
        return (await by.exchange(hand.id, 1, [], ["q"], 1)).jobs

    await delay.keep(hand.id, lambda: claim(hasty))
    await delay.deliver()
    assert await claim(store) == [b"a"]


async def test_a_claim_that_arrives_after_later_calls_takes_nothing(store: Store, hasty: Store, delay: Delay) -> None:
    await push(store, entry("a"))
    hand = await worker(store)
    await delay.keep(hand.id, lambda: hasty.exchange(hand.id, 1, [], ["q"], 1))
    await store.exchange(hand.id, 2, [], ["q"], 0)
    await delay.deliver()
    assert await open_claims(store, hand.id) == []
    assert (await counts(store)).ready == 1


@pytest.mark.parametrize("successor", ["here.1-1", "here.2-0"])
async def test_what_arrives_after_its_worker_was_adopted_and_another_took_the_slot_does_nothing(
    store: Store, hasty: Store, delay: Delay, successor: str
) -> None:
    await push(store, entry("a"), entry("b"), entry("c"))
    hand, adopter = await worker(store, "here.1-0"), await worker(store, "here.0-7")
    claim = await hand.claim(limit=1)
    settlement = claim.ended(retry(0, entry("a")))
    await delay.keep(hand.id, lambda: hasty.exchange(hand.id, 2, [settlement], ["q"], 1))
    adopted, _ = await adopter.adopt(hand.id)
    assert adopted.jobs == ["a"]
    await adopter.settle(adopted.done())
    after = await worker(store, successor)
    held = await after.claim(limit=1)
    await delay.deliver()
    assert await open_claims(store, hand.id) is None
    assert await open_claims(store, after.id) == [held.id]
    assert (await counts(store)).ready == 1
    assert await after.settle(held.done()) == [True]


async def test_jobs_that_arrive_after_their_repeat_are_stored_once(store: Store, hasty: Store, delay: Delay) -> None:
    async def enqueue(by: Store) -> None:
        await by.push("late-producer", 1, 1, [entry("a"), entry("later", delay_s=60.0)])

    await delay.keep("late-producer", lambda: enqueue(hasty))
    await enqueue(store)
    await store.push("late-producer", 2, 2, [entry("b")])  # the reply to the first has been seen
    await delay.deliver()
    found = await counts(store)
    assert (found.ready, found.delayed) == (2, 1)


async def test_an_adoption_that_arrives_after_its_repeat_takes_nothing_more(store: Store, hasty: Store, delay: Delay) -> None:
    await push(store, entry("a"), entry("b"))
    hand, adopter = await worker(store, "here.1-0"), await worker(store, "here.0-7")
    for _ in range(2):
        await hand.claim(limit=1)

    async def adopt(by: Store) -> list[bytes]:
        return (await by.adopt(adopter.id, 1, hand.id, None, 1)).jobs

    await delay.keep(adopter.id, lambda: adopt(hasty))
    assert await adopt(store) == [b"a"]
    assert (await store.exchange(adopter.id, 2, [Settlement(1)], (), 0)).kept == [True]
    await delay.deliver()
    assert await open_claims(store, adopter.id) == []
    assert await open_claims(store, hand.id) == [2]


async def test_a_registration_of_a_worker_that_is_forgotten_holds_nothing(store: Store, hasty: Store, delay: Delay) -> None:
    """Maintenance takes it for a worker of no slot, and gives it up again."""
    adopter = await worker(store, "here.0-7")
    await delay.keep("here.1-0", lambda: hasty.register("here.1-0"))
    await store.register("here.1-0")
    assert await store.adopt(adopter.id, 1, "here.1-0", None, 10) == ([], False)
    await delay.deliver()
    assert await open_claims(store, "here.1-0") == []
    assert await store.adopt(adopter.id, 2, "here.1-0", None, 10) == ([], False)
    assert await open_claims(store, "here.1-0") is None


async def test_a_requeue_that_arrives_after_its_repeat_and_a_run_stores_nothing(
    store: Store, hasty: Store, delay: Delay
) -> None:
    await push(store, entry("a"))
    hand = await worker(store)
    claim = await hand.claim()
    await hand.settle(claim.ended(dead(0, entry("a"))))
    alive = entry("a", envelope=b"alive again")

    async def requeue(by: Store) -> list[bool]:
        return await by.dead_requeue([alive])

    await delay.keep("alive again", lambda: requeue(hasty))
    assert await requeue(store) == [True]
    assert await hand.drain() == ["alive again"]
    await delay.deliver()
    found = await counts(store)
    assert (found.ready, found.dead) == (0, 0)
