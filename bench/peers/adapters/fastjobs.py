"""fastjobs itself: default settings, concurrency=1000 for jobs that wait; bulk as one call over a generator."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from harness import work as handlers
from harness.sending import URL, Send, module

from fastjobs import JobQueue

jobs = JobQueue(URL or None)
handles = {name: jobs.job(queue="bench")(handler) for name, handler in handlers.ASYNC.items()}


@asynccontextmanager
async def producer() -> AsyncIterator[Send]:
    """Connected; sends."""

    async def send(kind: str, values: range) -> None:
        prepare = handles[kind].prepare
        await jobs.enqueue_many(prepare(value) for value in values)

    async with jobs:
        await jobs.stats()  # connects, and makes the tables
        yield send


def commands(kind: str, processes: int) -> list[list[str]]:
    """One supervisor."""
    concurrency = 1000 if kind == "sleep" else 100
    sizes = ("-n", str(processes), "--concurrency", str(concurrency))
    return [module("fastjobs", "supervise", *sizes, "--backend", URL, "adapters.fastjobs:jobs")]
