"""chasquimq: concurrency 100, read_count 64, no events (they cost 44 %), uvloop, add_bulk. Needs Redis 8.6."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from chasquimq import Queue, Worker
from harness import work as handlers
from harness.sending import URL, Send, chunks, itself


@asynccontextmanager
async def producer() -> AsyncIterator[Send]:
    """Connected; sends."""
    queue = Queue("bench", redis_url=URL)

    async def send(kind: str, values: range) -> None:
        for part in chunks(values):
            await queue.add_bulk([{"name": kind, "data": {"value": value}} for value in part])

    yield send
    await queue.close()


def commands(kind: str, processes: int) -> list[list[str]]:
    """A worker per process."""
    return itself("chasquimq", kind, processes)


async def work(kind: str) -> None:
    """One worker."""
    handler = handlers.ASYNC[kind]

    async def process(job: Any) -> None:
        await handler(**job.data)

    await Worker("bench", process, redis_url=URL, concurrency=100, read_count=64, events_enabled=False).run()
