"""Whether a store stays as fast when it holds much, and when it is busy for long. On private servers.

    python bench/scale.py backlog --store redis --ready 10000 --ready 1000000 --ready 10000000
    python bench/scale.py backlog --store postgres --ready 10000 --delayed 1000000 --dead 100000
    python bench/scale.py level --store postgres --seconds 600 [--hold]

backlog: fills a fresh store, then has jobs from the head of the queue drained by two workers: jobs/s, CPU µs of the store per
job, and what a ready or delayed job takes there, its payload included. --delayed and --dead lie beside the ready ones.
level: enqueues and drains at once while about 100,000 jobs wait; a line every 10 s: jobs/s, rows that the dead leave behind,
disk. --hold: another session keeps a transaction with a snapshot open all the time, as a forgotten psql does.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import logging
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg
import redis.asyncio
from stores import STORES, store_at  # bench/ is where this script is

from fastjobs import Discard, WorkerOptions, clock
from fastjobs.benchmark.app import jobs, noop
from fastjobs.benchmark.fleet import Look, Options
from fastjobs.benchmark.meters import StoreMeter, meter_of
from fastjobs.benchmark.place import NAME, Place, place_at
from fastjobs.benchmark.scenarios import Fleet, fleet_of

DAY_S = 86_400.0
WAITING = 100_000
LINE_S = 10.0
SIZES_SQL = """
    select coalesce(sum(pg_total_relation_size(relid)), 0)::bigint as bytes, coalesce(sum(n_dead_tup), 0)::bigint as dead
    from pg_stat_user_tables where schemaname = $1
"""


@jobs.job(queue="spoilt")
async def spoil(value: int) -> None:
    """Become a dead letter."""
    raise Discard("as asked")


async def sizes(server: str) -> tuple[int, int]:
    """Bytes the store holds, and rows in it that are dead to all but open snapshots; zeros for memory."""
    if server.startswith("memory"):
        return 0, 0
    if not server.startswith("postgres"):
        async with redis.asyncio.from_url(server) as client:
            return int((await client.info("memory"))["used_memory"]), 0
    connection = await asyncpg.connect(server)
    try:
        row = await connection.fetchrow(SIZES_SQL, NAME)
        return row["bytes"], row["dead"]
    finally:
        await connection.close()


@asynccontextmanager
async def fresh(kind: str) -> AsyncIterator[tuple[str, Place, StoreMeter]]:
    """The server's URL, an empty place there, its meter; `jobs` goes there."""
    with store_at(kind) as server:
        async with place_at(server) as place:
            meter = meter_of(place.url, place.broker)
            try:
                with jobs.override(place.url):
                    async with jobs:
                        yield server, place, meter
            finally:
                await meter.close()


async def bury(count: int) -> None:
    """Fill the dead letters with *count* jobs."""
    await jobs.enqueue_many(spoil.prepare(number) for number in range(count))
    worker = asyncio.create_task(jobs.start_worker(WorkerOptions(queues=("spoilt",))))
    while sum(queue.dead for queue in (await jobs.stats()).queues) < count:
        if worker.done():
            await worker
        await asyncio.sleep(0.2)
    worker.cancel()
    await asyncio.wait([worker])


async def drain(url: str, meter: StoreMeter, count: int) -> tuple[float, float]:
    """Have *count* jobs and some more run by two workers. Returns jobs/s and the store's CPU µs per job, start included."""
    first = reached = last = Look(0.0, 0, 0, 0, 0)
    before = await meter.cpu_s()
    async with fleet_of(Options(backend=url, workers=2)) as fleet:
        async for last in fleet.looks():
            if not last.done:
                first = last
            elif last.done >= count and not reached.done:
                reached = last
                fleet.process.send_signal(signal.SIGTERM)
    cpu_s = (await meter.cpu_s() or 0.0) - (before or 0.0)
    return reached.done / (reached.at - first.at), cpu_s / last.done * 1e6


async def backlog(kind: str, ready: list[int], delayed: int, dead: int, count: int) -> None:
    """A line for each size of the queue."""
    print(
        "| store | ready | delayed | dead | drain, jobs/s | µs store | bytes/job |\n|---|--:|--:|--:|--:|--:|--:|", flush=True
    )
    for size in ready:
        async with fresh(kind) as (server, place, meter):
            await bury(dead or 1)
            before, _ = await sizes(server)
            await jobs.enqueue_many(noop.options(delay=DAY_S).prepare(number) for number in range(delayed))
            await jobs.enqueue_many(noop.prepare(number) for number in range(size))
            held, _ = await sizes(server)
            rate, cost = await drain(place.url, meter, min(count, size))
        each = (held - before) / (size + delayed)
        print(f"| {kind} | {size:,} | {delayed:,} | {dead:,} | {rate:,.0f} | {cost:.2f} | {each:.0f} |", flush=True)


async def produce(progress: list[int]) -> None:
    """Keep the queue at WAITING; *progress*: what has been enqueued and what is done."""
    numbers = itertools.count()
    while True:
        missing = WAITING - (progress[0] - progress[1])
        if missing > 0:
            progress[0] += await jobs.enqueue_many(noop.prepare(next(numbers)) for _ in range(min(missing, 20_000)))
        else:
            await asyncio.sleep(0.005)


async def report(server: str, progress: list[int], seconds: float) -> list[float]:
    """A line every LINE_S; returns the rates."""
    print("|    s | jobs/s | dead rows | store, MiB |\n|--:|--:|--:|--:|")
    began, done, rates = clock.monotonic(), progress[1], list[float]()
    before = began
    while (now := clock.monotonic()) - began < seconds:
        await asyncio.sleep(LINE_S)
        now, then, done = clock.monotonic(), done, progress[1]
        rates.append((done - then) / (now - before))
        before = now
        held, dead = await sizes(server)
        print(f"| {now - began:4.0f} | {rates[-1]:,.0f} | {dead:,} | {held / 2**20:,.0f} |", flush=True)
    return rates


async def level(kind: str, seconds: float, hold: bool) -> None:
    """Enqueue and drain at once for *seconds*."""
    async with fresh(kind) as (server, place, _), contextlib.AsyncExitStack() as stack:
        await jobs.enqueue_many(noop.prepare(number) for number in range(WAITING))
        progress = [WAITING, 0]
        if hold:
            holder = await asyncpg.connect(server)
            stack.push_async_callback(holder.close)
            await holder.execute("begin isolation level repeatable read")
            await holder.fetchval("select count(*) from pg_class")
        fleet = await stack.enter_async_context(fleet_of(Options(backend=place.url, workers=2)))
        helpers = [asyncio.create_task(produce(progress)), asyncio.create_task(follow(fleet, progress))]
        try:
            rates = await report(server, progress, seconds)
        finally:
            for task in helpers:
                task.cancel()
            await asyncio.wait(helpers)
    third = max(len(rates) // 3, 1)
    first, end = sum(rates[:third]) / third, sum(rates[-third:]) / third
    print(f"\nfirst third {first:,.0f} jobs/s, last third {end:,.0f} jobs/s: {end / first:.0%}")


async def follow(fleet: Fleet, progress: list[int]) -> None:
    """Take over what the fleet has done."""
    async for look in fleet.looks():
        progress[1] = look.done


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_subparsers(dest="kind", required=True)
    for name in ("backlog", "level"):
        kinds.add_parser(name).add_argument("--store", choices=STORES, default="postgres")
    filled, busy = kinds.choices["backlog"], kinds.choices["level"]
    filled.add_argument("--ready", action="append", type=int, help="jobs in the queue; as often as you like")
    filled.add_argument("--delayed", type=int, default=0)
    filled.add_argument("--dead", type=int, default=0)
    filled.add_argument("--jobs", type=int, default=100_000, help="jobs drained from the head of the queue")
    busy.add_argument("--seconds", type=float, default=60)
    busy.add_argument("--hold", action="store_true")
    options = parser.parse_args()
    logging.getLogger("fastjobs").setLevel(logging.CRITICAL)  # each of the dead letters is told of
    if options.kind == "level":
        asyncio.run(level(options.store, options.seconds, options.hold))
    else:
        asyncio.run(backlog(options.store, options.ready or [10_000], options.delayed, options.dead, options.jobs))


if __name__ == "__main__":
    main()
