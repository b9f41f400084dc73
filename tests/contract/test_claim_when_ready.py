"""claim_when_ready: a wait and a claim in one call, which a later call of the worker may pass."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from fastjobs.backends.base import Store
from fastjobs.errors import StaleCall
from fastjobs.model import Settlement
from tests.contract.kit import Worker, entries, entry, numbered, open_claims, push, worker

LONG_S = 60.0  #: of a wait that something must end
SOON_S = 10.0  #: until then, on a busy machine
MOMENT_S = 0.1  #: in which nothing must happen


def waiting(store: Store, hand: Worker, n: int, timeout_s: float = LONG_S) -> asyncio.Task[Any]:
    return asyncio.create_task(store.claim_when_ready(hand.id, n, ["q"], 10, timeout_s))


async def asleep(store: Store, hand: Worker) -> tuple[int, asyncio.Task[Any]]:
    """One that waits, and its number. Hints of earlier jobs that came late may have ended others before."""
    for n in range(hand.n + 1, hand.n + 20):
        claim = waiting(store, hand, n)
        ended, _ = await asyncio.wait([claim], timeout=MOMENT_S)
        if not ended:
            return n, claim
    raise AssertionError("waits end at once though nothing is ready")


async def test_jobs_that_come_meanwhile_are_claimed(store: Store, another: Callable[[], Store]) -> None:
    hand = await worker(store)
    n, claim = await asleep(store, hand)
    await push(another(), *entries(numbered(2)))
    async with asyncio.timeout(SOON_S):
        answer = await claim
    assert answer.jobs == [b"job-0", b"job-1"]
    assert await open_claims(store, hand.id) == [n]
    assert (await store.exchange(hand.id, n, (), ["q"], 10)).jobs == answer.jobs, "a repeat tells the same"
    assert (await store.exchange(hand.id, n + 1, [Settlement(n)], ["q"], 0)).kept == [True]
    assert await open_claims(store, hand.id) == []


async def test_a_claim_that_waits_in_vain_ends_empty(store: Store) -> None:
    hand = await worker(store)
    assert (await waiting(store, hand, 1, 0.05)).jobs == []
    assert await open_claims(store, hand.id) == []


async def test_a_claim_of_what_is_there_or_falls_due_does_not_wait_for_more(store: Store) -> None:
    hand = await worker(store)
    async with asyncio.timeout(SOON_S):
        await push(store, entry("now"))
        assert (await waiting(store, hand, 1)).jobs == [b"now"]
        await push(store, entry("soon", delay_s=0.1))
        n, jobs = 2, []
        while not jobs:  # a wait tells nobody when a delayed job is due: `next_due_s` has
            answer = await waiting(store, hand, n, 0.05)
            n, jobs = n + 1, answer.jobs
        assert jobs == [b"soon"]


async def test_a_waiting_claim_that_a_later_call_has_passed_claims_nothing(store: Store, another: Callable[[], Store]) -> None:
    hand = await worker(store)
    n, claim = await asleep(store, hand)
    await store.exchange(hand.id, n + 1, [], ["q"], 0)
    await push(another(), entry("a"))
    async with asyncio.timeout(SOON_S):
        with pytest.raises(StaleCall):
            await claim
    assert await store.peek("q", 10) == [b"a"]
    assert (await store.exchange(hand.id, n + 2, [], ["q"], 10)).jobs == [b"a"]
