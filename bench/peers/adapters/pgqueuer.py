"""pgqueuer: asyncpg, uvloop, batch_size=500 (the default 10 is slower; 50 for jobs that compute), one connection, bulk."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg
from harness import work as handlers
from harness.sending import URL, Send, chunks, itself
from pgqueuer import PgQueuer
from pgqueuer.db import AsyncpgDriver
from pgqueuer.models import Job
from pgqueuer.queries import Queries


async def prepare() -> None:
    """The tables."""
    await Queries(AsyncpgDriver(await asyncpg.connect(URL))).install()


@asynccontextmanager
async def producer() -> AsyncIterator[Send]:
    """Connected; sends."""
    queries = Queries(AsyncpgDriver(await asyncpg.connect(URL)))

    async def send(kind: str, values: range) -> None:
        for part in chunks(values):
            payloads: list[bytes | None] = [json.dumps({"value": value}).encode() for value in part]
            await queries.enqueue([kind] * len(part), payloads, [0] * len(part))

    yield send


def commands(kind: str, processes: int) -> list[list[str]]:
    """A worker per process."""
    return itself("pgqueuer", kind, processes)


async def work(kind: str) -> None:
    """One worker."""
    pgq = PgQueuer(AsyncpgDriver(await asyncpg.connect(URL)))
    handler = handlers.ASYNC[kind]

    @pgq.entrypoint(kind)
    async def _(job: Job) -> None:
        await handler(**json.loads(job.payload or b""))

    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, pgq.shutdown.set)
    await pgq.run(batch_size=50 if kind == "cpu" else 500)
