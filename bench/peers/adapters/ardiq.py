"""ardiq: concurrency=200, prefetch=1000 (16 and 32 for jobs that compute), no results, enqueue_many, its own -w."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from ardiq import Ardiq
from harness import work as handlers
from harness.sending import URL, WORK, Send, chunks, module

concurrency, prefetch = (16, 32) if WORK == "cpu" else (200, 1000)
app = Ardiq(redis_url=URL or None, queue_name="bench", concurrency=concurrency, prefetch=prefetch, result_ttl_ms=0)
tasks = {name: app.task(name=name)(handler) for name, handler in handlers.ASYNC.items()}


@asynccontextmanager
async def producer() -> AsyncIterator[Send]:
    """Sends."""

    async def send(kind: str, values: range) -> None:
        task = tasks[kind]
        for part in chunks(values):
            await app.enqueue_many([task.prepare(value) for value in part])

    yield send


def commands(kind: str, processes: int) -> list[list[str]]:
    """One, which starts the processes."""
    return [module("ardiq", "run", "-q", "-w", str(processes), "adapters.ardiq:app")]
