"""No-op jobs in one process: `JobQueue("memory://")` enqueues and drains in its own event loop, without broker or supervisor.

python bench/embedded.py [--jobs 300000] [--rounds 3]
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time

import uvloop

from fastjobs import JobQueue


async def once(count: int) -> tuple[float, float]:
    """Jobs/s of the enqueue and of the drain, counted in the handler."""
    jobs, ran, all_ran = JobQueue("memory://"), 0, asyncio.Event()

    @jobs.job
    async def noop(value: int) -> None:
        nonlocal ran
        ran += 1
        if ran == count:
            all_ran.set()

    async with jobs:
        before = time.perf_counter()
        await jobs.enqueue_many(noop.prepare(number) for number in range(count))
        between = time.perf_counter()
        worker = asyncio.create_task(jobs.start_worker())
        await all_ran.wait()
        after = time.perf_counter()
        worker.cancel()
        await asyncio.wait([worker])
    return count / (between - before), count / (after - between)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=300_000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    found = [uvloop.run(once(options.jobs)) for _ in range(options.rounds)]
    enqueue, drain = (statistics.median(rates) for rates in zip(*found, strict=True))
    print(f"in process: enqueue {enqueue:,.0f} jobs/s, drain {drain:,.0f} jobs/s; median of {options.rounds} rounds")


if __name__ == "__main__":
    main()
