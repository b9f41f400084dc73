"""The uniform command line of an adapter, run by its peer's interpreter in the directory above:

    python -m harness arq prepare                # the tables, where there are any
    python -m harness arq enqueue noop 1000      # prints {"count": 1000, "seconds": 0.4}
    python -m harness arq commands noop 2        # prints the worker commands, each a list of arguments
    python -m harness arq work noop              # is a worker, where the peer has no command for it
    python -m harness arq latency 100            # prints {"ms": [...]}; the workers run already

PEERS_URL names the store, PEERS_TALLY the file in which handlers count, PEERS_WORK what workers will do.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import json
import os
import random
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

from harness.tally import LAST, VARIABLE, Tally

WARM_UP = 20
"""Latencies that are not counted."""

LIMIT_S = 30.0
"""A single job that has not run by then never will."""


def run(main: Any) -> Any:
    """The result of a coroutine, on uvloop where the peer's environment has it, or of a plain call."""
    if not inspect.iscoroutine(main):
        return main
    try:
        import uvloop
    except ImportError:
        return asyncio.run(main)
    return uvloop.run(main)


async def enqueue(adapter: ModuleType, kind: str, count: int) -> dict[str, Any]:
    """From the first call to the last reply; connections are made before."""
    async with adapter.producer() as send:
        started = time.monotonic()
        await send(kind, range(count))
        return {"count": count, "seconds": time.monotonic() - started}


async def latency(adapter: ModuleType, count: int) -> dict[str, Any]:
    """From before the enqueue call to the handler, one job at a time, pauses of 5 to 25 ms between."""
    tally, found = Tally(Path(os.environ[VARIABLE])), []
    async with adapter.producer() as send:
        for number in range(WARM_UP + count):
            await asyncio.sleep(random.uniform(0.005, 0.025))
            started = time.monotonic_ns()
            await send("noop", range(number, number + 1))
            while not tally.marks[number]:
                if time.monotonic_ns() - started > LIMIT_S * 1e9:
                    raise SystemExit(f"job {number} did not run within {LIMIT_S:g} s")
                await asyncio.sleep(0.001)  # the handler has noted its time: how late we see it does not matter
            found.append((max(slot[LAST] for slot in tally.slots()) - started) / 1e6)
    return {"ms": found[WARM_UP:]}


def main() -> None:
    """The command line."""
    name, action, *rest = sys.argv[1:]
    adapter = importlib.import_module(f"adapters.{name}")
    if action == "prepare":
        if hasattr(adapter, "prepare"):
            run(adapter.prepare())
    elif action == "enqueue":
        print(json.dumps(run(enqueue(adapter, rest[0], int(rest[1])))))
    elif action == "latency":
        print(json.dumps(run(latency(adapter, int(rest[0])))))
    elif action == "commands":
        print(json.dumps(adapter.commands(rest[0], int(rest[1]))))
    elif action == "work":
        run(adapter.work(rest[0]))
    else:
        raise SystemExit(__doc__)


if __name__ == "__main__":
    main()
