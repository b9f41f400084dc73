"""How quick an enqueue to a start can be on a store, at least once: the bare calls that it takes, beside `fastjobs bench`.

python bench/floor.py [--store redis] [--store postgres] [--count 500] [--rounds 3]

Bare: a producer that stores a job and rings, and a process that is rung, takes the job into a claim of its own, and notes the
time. No envelope, handler, retry, fence or lease. One job at a time with pauses of 1 to 10 ms, as in the scenario `latency`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import random
import socket
import statistics
import struct
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable

import asyncpg
import uvloop
from stores import ROOT, store_at  # bench/ is where this script is

from fastjobs.backends.redis_link import Links, Script

STAMP = struct.Struct("=d")
CLAIM = Script("claim", "local job = redis.call('LPOP', KEYS[1]) if job then redis.call('RPUSH', KEYS[2], job) end return job")
PUSH = Script("push", "redis.call('RPUSH', KEYS[1], ARGV[1]) redis.call('RPUSH', KEYS[2], '1')")
TABLES = "create table ready (id bigserial primary key, job bytea); create table claimed (jobs bytea[])"
TAKE = """
with taken as (delete from ready where ctid = any(array(select ctid from ready order by id limit 100 for update skip locked))
returning job) insert into claimed select array_agg(job) from taken having count(*) > 0 returning jobs
"""


async def work_on_redis(url: str, started: Callable[[], None]) -> None:
    """Be rung, claim, note the time."""
    links = Links(url, 5, 30)
    while True:
        if await links.block(1.0, "BLPOP", "wake", "1"):
            if await links.run(CLAIM, ("ready", "claim")):
                started()
            await links.call("DEL", "claim")


async def work_on_postgres(url: str, started: Callable[[], None]) -> None:
    """The same; claims need not be durable, as a crash of the server may only undo them."""
    rung = asyncio.Event()
    ear = await asyncpg.connect(url)
    await ear.add_listener("wake", lambda *_: rung.set())
    hand = await asyncpg.connect(url)
    await hand.execute("set synchronous_commit = off")
    while True:
        await rung.wait()
        rung.clear()
        if await hand.fetch(TAKE):
            started()
        await hand.execute("delete from claimed")


async def redis_producer(url: str) -> Callable[[bytes], Awaitable[object]]:
    """Stores one job."""
    links = Links(url, 5, 30)
    await links.call("PING")
    return lambda job: links.run(PUSH, ("ready", "wake"), job)


async def postgres_producer(url: str) -> Callable[[bytes], Awaitable[object]]:
    """Stores one job, durably."""
    connection = await asyncpg.connect(url)
    await connection.execute(TABLES)
    insert = await connection.prepare("with job as (insert into ready (job) values ($1)) select pg_notify('wake', '')")
    return lambda job: insert.fetchval(job)


def worker(kind: str, url: str, out: socket.socket) -> None:
    """A process of its own."""
    work = work_on_redis if kind == "redis" else work_on_postgres
    uvloop.run(work(url, lambda: out.send(STAMP.pack(time.monotonic()))))


async def bare(kind: str, url: str, count: int) -> list[float]:
    """Seconds from before the call to the start, ascending."""
    produce = await (redis_producer if kind == "redis" else postgres_producer)(url)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    ours.setblocking(False)
    process = multiprocessing.get_context("spawn").Process(target=worker, args=(kind, url, theirs), daemon=True)
    process.start()
    try:
        await asyncio.sleep(1.5)
        found = []
        for _ in range(count + 50):
            await asyncio.sleep(random.uniform(0.001, 0.010))
            before = time.monotonic()
            await produce(b"x" * 60)
            (at,) = STAMP.unpack(await asyncio.get_running_loop().sock_recv(ours, STAMP.size))
            found.append(at - before)
        return sorted(found[50:])
    finally:
        process.kill()
        process.join()


def ours(url: str) -> tuple[float, float]:
    """p50 and p99 of the scenario `latency`, ms."""
    command = (sys.executable, "-m", "fastjobs", "bench", "--backend", url, "-n", "2", "--scenario", "latency", "--json")
    found = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    (latency,) = json.loads(found.stdout)["results"]
    return latency["p50_ms"], latency["p99_ms"]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", action="append", choices=("redis", "postgres"))
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    print(f"medians of {options.rounds} rounds\n")
    print("| store | bare p50, ms | fastjobs p50 | bare p99 | fastjobs p99 |\n|---|--:|--:|--:|--:|")
    for kind in options.store or ("redis", "postgres"):
        rounds = []
        for _ in range(options.rounds):
            with store_at(kind) as url:
                found = uvloop.run(bare(kind, url, options.count))
                floor = [1000 * found[int(share * len(found))] for share in (0.5, 0.99)]
                p50, p99 = ours(url)
                rounds.append((floor[0], p50, floor[1], p99))
        cells = (f"{statistics.median(column):.2f}" for column in zip(*rounds, strict=True))
        print(f"| {kind} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
