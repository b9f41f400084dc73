"""How adapters send many jobs, how they are told the store, and how they name the command of a worker."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable, Iterator

URL = os.environ.get("PEERS_URL", "")
"""Of the store."""

WORK = os.environ.get("PEERS_WORK", "")
"""What the workers will do, for settings that are the app's own."""

BULK = 1000
"""Jobs of one call, where a peer can take several."""

IN_FLIGHT = 50
"""Calls at once, where it cannot but is asynchronous."""

Send = Callable[[str, range], Awaitable[None]]
"""Enqueues jobs of a kind of work, with these values."""


def chunks(values: range) -> Iterator[range]:
    """*values* in parts of `BULK`."""
    return (values[start : start + BULK] for start in range(0, len(values), BULK))


async def in_flight(call: Callable[[int], Awaitable[object]], values: range) -> None:
    """One call per value, `IN_FLIGHT` at a time."""
    rest = iter(values)

    async def one_by_one() -> None:
        for value in rest:
            await call(value)

    await asyncio.gather(*(one_by_one() for _ in range(min(IN_FLIGHT, len(values)))))


def module(name: str, *arguments: str) -> list[str]:
    """``python -m name arguments`` of the peer's own interpreter."""
    return [sys.executable, "-m", name, *arguments]


def itself(adapter: str, kind: str, processes: int) -> list[list[str]]:
    """Commands of *processes* workers that are the adapter's own `work`."""
    return [module("harness", adapter, "work", kind) for _ in range(processes)]
