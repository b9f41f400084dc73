"""The store of a process test, used and looked into from the test."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from fastjobs.backends import make_store
from fastjobs.backends.base import Store
from fastjobs.calls import Call
from fastjobs.envelope import decode_job
from fastjobs.model import Job, Stats
from tests.processes import app

T = TypeVar("T")


def _run(url: str, work: Callable[[Store], Awaitable[T]]) -> T:
    async def go() -> T:
        store = make_store(url)
        try:
            return await work(store)
        finally:
            await store.close()

    return asyncio.run(go())


def enqueue(url: str, *calls: Call) -> None:
    """Store *calls*, in this order."""

    async def go() -> None:
        with app.jobs.override(url):
            async with app.jobs:
                await app.jobs.enqueue_many(calls)

    asyncio.run(go())


def stats(url: str) -> Stats:
    return _run(url, lambda store: store.stats())


def ready(url: str) -> list[Job]:
    """The jobs that a claim would get."""
    return [decode_job(envelope) for envelope in _run(url, lambda store: store.peek("default", 1000))]


def dead(url: str) -> list[Job]:
    letters = _run(url, lambda store: store.dead_list(None, None, 1000))
    return [decode_job(letter.envelope) for letter in letters]


def leases(url: str) -> dict[str, int]:
    return _run(url, lambda store: store.leases())


def workers(url: str) -> dict[str, list[int]]:
    """Every worker that the store knows, with its open claims."""

    async def all_of(store: Store) -> dict[str, list[int]]:
        found: dict[str, list[int]] = {}
        for lease in await store.leases():
            found |= await store.workers(lease)
        return found

    return _run(url, all_of)
