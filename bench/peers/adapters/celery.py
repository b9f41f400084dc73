"""celery, prefork (threads for jobs that wait): prefetch 64, no results, gossip, mingle, heartbeat; early ack (its default)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from celery import Celery
from harness import work as handlers
from harness.sending import URL, Send, module

app = Celery("bench", broker=URL)
app.conf.update(task_ignore_result=True, worker_prefetch_multiplier=64, broker_connection_retry_on_startup=True)
tasks = {name: app.task(handler, name=name) for name, handler in handlers.SYNC.items()}


@asynccontextmanager
async def producer() -> AsyncIterator[Send]:
    """Sends."""

    async def send(kind: str, values: range) -> None:
        task = tasks[kind]
        for value in values:
            task.apply_async((value,))

    yield send


def workers(number: int, pool: str, concurrency: int) -> list[list[str]]:
    """Commands of *number* workers."""
    quiet = ("--without-gossip", "--without-mingle", "--without-heartbeat", "-l", "WARNING")
    worker = ("-A", "adapters.celery:app", "worker", "-P", pool, "-c", str(concurrency), *quiet)
    return [module("celery", *worker, "-n", f"w{one}@%h") for one in range(number)]


def commands(kind: str, processes: int) -> list[list[str]]:
    """One, which starts the processes; or so many with threads."""
    return workers(processes, "threads", 100) if kind == "sleep" else workers(1, "prefork", processes)
