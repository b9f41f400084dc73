"""No-op jobs at an even pace from a process of its own: ``python -m fastjobs.benchmark.load JOBS_PER_SECOND``, told the URL.

On SIGTERM it says how many it has enqueued, and in how many seconds.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from typing import Final

import uvloop

from fastjobs import clock
from fastjobs.benchmark.app import jobs, noop
from fastjobs.benchmark.place import TOLD
from fastjobs.bequest import take
from fastjobs.children import end_with

EVERY_S: Final = 0.01


async def load(url: str, per_s: float) -> None:
    """*per_s* jobs a second, a batch every 10 ms, until SIGTERM."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    with jobs.override(url):
        async with jobs:
            began, sent = clock.monotonic(), 0
            while not stop.is_set():
                due = int((clock.monotonic() - began) * per_s) - sent
                sent += await jobs.enqueue_many(noop.prepare(number) for number in range(due))
                await asyncio.sleep(EVERY_S)
            print(sent, clock.monotonic() - began, flush=True)


def main() -> None:
    """The entry of the process."""
    end_with(os.getppid(), 0)
    uvloop.run(load((take(TOLD) or b"").decode(), float(sys.argv[1])))


if __name__ == "__main__":
    main()
