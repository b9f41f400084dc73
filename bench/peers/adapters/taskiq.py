"""taskiq: acknowledged stream, uvloop, ORJSONSerializer, 100 tasks at once, 100 prefetched (16 and 0 for jobs that compute)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from harness import work as handlers
from harness.sending import URL, Send, in_flight, module
from taskiq.serializers import ORJSONSerializer
from taskiq_redis import RedisStreamBroker

broker = RedisStreamBroker(url=URL).with_serializer(ORJSONSerializer())
tasks = {name: broker.register_task(handler, task_name=name) for name, handler in handlers.ASYNC.items()}


@asynccontextmanager
async def producer() -> AsyncIterator[Send]:
    """Connected; sends."""
    await broker.startup()

    async def send(kind: str, values: range) -> None:
        await in_flight(tasks[kind].kiq, values)

    yield send
    await broker.shutdown()


def commands(kind: str, processes: int) -> list[list[str]]:
    """One, which starts the processes."""
    tasks_at_once, prefetch = ("16", "0") if kind == "cpu" else ("100", "100")
    settings = ("--max-async-tasks", tasks_at_once, "--max-prefetch", prefetch, "--log-level", "WARNING")
    return [module("taskiq", "worker", "adapters.taskiq:broker", "--workers", str(processes), *settings)]
