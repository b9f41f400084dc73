"""dramatiq: plain actors, -t 8 (as quick as 32; 100 for jobs that wait), its own -p for processes; it has no bulk."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import dramatiq
from dramatiq.brokers.redis import RedisBroker
from harness import work as handlers
from harness.sending import URL, Send, module

dramatiq.set_broker(RedisBroker(url=URL))
actors = {name: dramatiq.actor(handler, actor_name=name) for name, handler in handlers.SYNC.items()}


@asynccontextmanager
async def producer() -> AsyncIterator[Send]:
    """Sends."""

    async def send(kind: str, values: range) -> None:
        actor = actors[kind]
        for value in values:
            actor.send(value)

    yield send


def commands(kind: str, processes: int) -> list[list[str]]:
    """One, which starts the processes."""
    threads = "100" if kind == "sleep" else "8"
    return [module("dramatiq", "adapters.dramatiq", "-p", str(processes), "-t", threads, "--skip-logging")]
