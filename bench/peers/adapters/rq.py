"""rq: SimpleWorker (its default, a fork per job, is a fifth as quick), result_ttl=0, enqueue_many."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from harness import work as handlers
from harness.sending import URL, Send, chunks, itself
from redis import Redis
from rq import Queue, SimpleWorker


@asynccontextmanager
async def producer() -> AsyncIterator[Send]:
    """Sends."""
    queue = Queue("bench", connection=Redis.from_url(URL))

    async def send(kind: str, values: range) -> None:
        handler = handlers.SYNC[kind]
        for part in chunks(values):
            queue.enqueue_many([Queue.prepare_data(handler, (value,), result_ttl=0) for value in part])

    yield send


def commands(kind: str, processes: int) -> list[list[str]]:
    """A worker per process."""
    return itself("rq", kind, processes)


def work(kind: str) -> None:
    """One worker."""
    SimpleWorker(["bench"], connection=Redis.from_url(URL)).work(logging_level="WARNING")
