"""procrastinate: uvloop, concurrency 10 (50 is no quicker; 100 for jobs that wait), pool of 10, finished jobs deleted, bulk."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from harness import work as handlers
from harness.sending import URL, Send, chunks, itself
from procrastinate import App, PsycopgConnector

app = App(connector=PsycopgConnector(conninfo=URL, min_size=10, max_size=10))
tasks = {name: app.task(name=name)(handler) for name, handler in handlers.ASYNC.items()}


async def prepare() -> None:
    """The tables."""
    async with app.open_async():
        await app.schema_manager.apply_schema_async()


@asynccontextmanager
async def producer() -> AsyncIterator[Send]:
    """Connected; sends."""

    async def send(kind: str, values: range) -> None:
        for part in chunks(values):
            await tasks[kind].batch_defer_async(*({"value": value} for value in part))

    async with app.open_async():
        yield send


def commands(kind: str, processes: int) -> list[list[str]]:
    """A worker per process."""
    return itself("procrastinate", kind, processes)


async def work(kind: str) -> None:
    """One worker."""
    async with app.open_async():
        await app.run_worker_async(concurrency=100 if kind == "sleep" else 10, delete_jobs="always")
