"""huey: RedisHuey, no results; -k thread -w 1, two: -k process -w 2; for jobs that wait 100 threads a process."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from harness import work as handlers
from harness.sending import URL, Send, module
from huey import RedisHuey

huey = RedisHuey("bench", url=URL, results=False)
tasks = {name: huey.task(name=name)(handler) for name, handler in handlers.SYNC.items()}


@asynccontextmanager
async def producer() -> AsyncIterator[Send]:
    """Sends."""

    async def send(kind: str, values: range) -> None:
        task = tasks[kind]
        for value in values:
            task(value)

    yield send


def commands(kind: str, processes: int) -> list[list[str]]:
    """One consumer; for waiting jobs one per process."""
    consumer = module("huey.bin.huey_consumer", "adapters.huey.huey", "-q", "-k")
    if kind == "sleep":
        return [[*consumer, "thread", "-w", "100"]] * processes
    return [[*consumer, *(("thread", "-w", "1") if processes == 1 else ("process", "-w", str(processes)))]]
