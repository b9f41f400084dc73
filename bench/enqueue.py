"""What a producer's own CPU spends on a job, beside the least that one Python call per job can do. In memory, in one process.

python bench/enqueue.py [--jobs 200000] [--rounds 7]

Bare: a function called once for each job makes its JSON, a fresh id and its envelope from parts encoded before, and each 1,000
go to the store in one push. fastjobs: `enqueue_many(f.prepare(n) for n in …)`, which also binds and checks arguments by the
handler's signature, and waits for pushes. CPU time of the one thread, so that what else runs counts little.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import statistics
import struct
import time
from collections.abc import Callable, Coroutine
from typing import Any

import orjson

from fastjobs import JobQueue
from fastjobs.backends.bundles import Bundle
from fastjobs.backends.memory_core import MemoryStore

jobs = JobQueue("memory://")
BATCH = 1_000


@jobs.job
async def work(number: int) -> None: ...


async def bare(count: int) -> None:
    """The least."""
    store, envelopes = MemoryStore(), list[bytes]()
    dumps, join, clock, pack = orjson.dumps, b"".join, time.time, struct.Struct(">QQ").pack
    pack_float, low = struct.Struct(">Bd").pack, itertools.count(int.from_bytes(os.urandom(7), "big"))
    head, place, tail = b"\x9e\x01\x05\xc4\x10", b"\xa4work\xa7default", b"\x00" * 8

    def call(number: int) -> bytes:
        now, payload = clock(), dumps({"number": number})
        id = pack(int(now * 1000) << 16, next(low))
        return join((head, id, place, b"\xc4", payload, pack_float(0xCB, now), tail))

    for number in range(count):
        envelopes.append(call(number))
        if len(envelopes) >= BATCH:
            store.push("p", number, number, [Bundle("default", 5, envelopes)], [], clock())
            envelopes = []


async def ours(count: int) -> None:
    """Any number of calls."""
    with jobs.override("memory://"):
        async with jobs:
            await jobs.enqueue_many(work.prepare(number) for number in range(count))


def us_per_job(run: Callable[[int], Coroutine[Any, Any, None]], count: int) -> float:
    """CPU time, µs."""
    before = time.thread_time()
    asyncio.run(run(count))
    return (time.thread_time() - before) / count * 1e6


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    pairs = [(us_per_job(bare, options.jobs), us_per_job(ours, options.jobs)) for _ in range(options.rounds)]
    least, found = (statistics.median(column) for column in zip(*pairs, strict=True))
    share = statistics.median(one / other for one, other in pairs)
    print(f"CPU per job, medians of {options.rounds}: bare {least:.2f} µs, fastjobs {found:.2f} µs, {share:.0%} of its rate")


if __name__ == "__main__":
    main()
