"""saq: uvloop, orjson, ttl=-1, its own --workers; Redis: concurrency 100; Postgres: psycopg binary, 50, pool of 8."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import orjson
import uvloop
from harness import work as handlers
from harness.sending import URL, Send, in_flight, module
from saq import Queue

POSTGRES = URL.startswith("postgres")

asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())

pool = {"min_size": 8, "max_size": 8} if POSTGRES else {}
queue = Queue.from_url(URL or "redis://localhost", dump=orjson.dumps, load=orjson.loads, **pool)


@asynccontextmanager
async def producer() -> AsyncIterator[Send]:
    """Connected; sends."""
    await queue.connect()

    async def send(kind: str, values: range) -> None:
        await in_flight(lambda value: queue.enqueue(kind, value=value, ttl=-1), values)

    yield send
    await queue.disconnect()


async def noop(_: Any, *, value: int) -> None:
    """As saq calls it."""
    await handlers.noop(value)


async def sleep(_: Any, *, value: int) -> None:
    """As saq calls it."""
    await handlers.sleep(value)


async def cpu(_: Any, *, value: int) -> None:
    """As saq calls it."""
    await handlers.cpu(value)


settings = {"queue": queue, "functions": [noop, sleep, cpu], "concurrency": 50 if POSTGRES else 100}


async def prepare() -> None:
    """The tables, where it is Postgres."""
    await queue.connect()
    await queue.disconnect()


def commands(kind: str, processes: int) -> list[list[str]]:
    """One, which starts the processes."""
    return [module("saq", "adapters.saq.settings", "--workers", str(processes))]
