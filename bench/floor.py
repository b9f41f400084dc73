"""How quick an enqueue to a start can be on a store, at least once: the bare calls that it takes, beside `fastjobs bench`.

python bench/floor.py [--store redis] [--store postgres] [--count 500] [--rounds 3]

Bare: a producer that stores a job and rings, and a process that is rung, takes the job into a claim of its own, and notes the
time. No envelope, handler, retry, fence or lease. One job at a time with pauses of 1 to 10 ms, as in the scenario `latency`.
Fenced, on Postgres alone: with the least that the promises take. A push keeps a record of itself, so that it may be repeated,
and notifies after its commit, so that no other commit waits for it. A claim locks its worker's row, looks up the number of the
last call, looks for jobs that are due, and keeps its own number.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import math
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

NAN = math.nan
STAMP = struct.Struct("=d")
CLAIM = Script("claim", "local job = redis.call('LPOP', KEYS[1]) if job then redis.call('RPUSH', KEYS[2], job) end return job")
PUSH = Script("push", "redis.call('RPUSH', KEYS[1], ARGV[1]) redis.call('RPUSH', KEYS[2], '1')")
TABLES = "create table ready (id bigserial primary key, job bytea); create table claimed (jobs bytea[])"
TAKE = """
with taken as (delete from ready where ctid = any(array(select ctid from ready order by id limit 100 for update skip locked))
returning job) insert into claimed select array_agg(job) from taken having count(*) > 0 returning jobs
"""
FENCED_TABLES = f"""
create table pushed (producer text, seq bigint, primary key (producer, seq));
create table worker (id text primary key, given_up boolean not null default false);
create table call (worker text, n bigint, primary key (worker, n));
create table later (queue text, due float8);
create index on later (queue, due);
insert into worker values ('w');
insert into call values ('w', 0);
create procedure push(p_seq bigint, p_job bytea) language plpgsql as $$
begin
  insert into pushed values ('p', p_seq) on conflict do nothing;
  insert into ready (job) values (p_job);
  commit;
  perform set_config('synchronous_commit', 'off', true), pg_notify('wake', '');
end $$;
create function take() returns setof bytea[] language plpgsql as $$
declare
  v_last bigint;
  v_due float8;
begin
  perform from worker where id = 'w' and not given_up for update;
  select n into v_last from call where worker = 'w' order by n desc limit 1;
  select due into v_due from later where queue = 'q' order by due limit 1;
  return query {TAKE};
  update call set n = v_last + 1 where worker = 'w' and n = v_last;
end $$
"""


async def work_on_redis(url: str, started: Callable[[], None]) -> None:
    """Be rung, claim, note the time."""
    links = Links(url, 5, 30)
    while True:
        if await links.block(1.0, "BLPOP", "wake", "1"):
            if await links.run(CLAIM, ("ready", "claim")):
                started()
            await links.call("DEL", "claim")


async def work_on_postgres(url: str, started: Callable[[], None], take: str = TAKE) -> None:
    """The same; claims need not be durable, as a crash of the server may only undo them."""
    rung = asyncio.Event()
    ear = await asyncpg.connect(url)
    await ear.add_listener("wake", lambda *_: rung.set())
    hand = await asyncpg.connect(url)
    await hand.execute("set synchronous_commit = off")
    while True:
        await rung.wait()
        rung.clear()
        if await hand.fetch(take):
            started()
        await hand.execute("delete from claimed")


async def work_fenced(url: str, started: Callable[[], None]) -> None:
    """The same with a fence."""
    await work_on_postgres(url, started, "select * from take()")


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


async def fenced_producer(url: str) -> Callable[[bytes], Awaitable[object]]:
    """Stores one job, durably, with a record of the push."""
    connection = await asyncpg.connect(url)
    await connection.execute(TABLES)
    await connection.execute(FENCED_TABLES)
    push, seqs = await connection.prepare("call push($1, $2)"), itertools.count()
    return lambda job: push.fetch(next(seqs), job)


WORK = {"redis": work_on_redis, "postgres": work_on_postgres, "fenced": work_fenced}
PRODUCERS = {"redis": redis_producer, "postgres": postgres_producer, "fenced": fenced_producer}


def worker(kind: str, url: str, out: socket.socket) -> None:
    """A process of its own."""
    uvloop.run(WORK[kind](url, lambda: out.send(STAMP.pack(time.monotonic()))))


async def bare(kind: str, url: str, count: int) -> list[float]:
    """Seconds from before the call to the start, ascending."""
    produce = await PRODUCERS[kind](url)
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


def measured(kind: str, count: int) -> tuple[float, float]:
    """p50 and p99 of the bare calls on a fresh store, ms."""
    with store_at("redis" if kind == "redis" else "postgres") as url:
        found = uvloop.run(bare(kind, url, count))
        return 1000 * found[len(found) // 2], 1000 * found[int(0.99 * len(found))]


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
    print("| store | bare p50, ms | fenced p50 | fastjobs p50 | bare p99 | fenced p99 | fastjobs p99 |")
    print("|---|--:|--:|--:|--:|--:|--:|", flush=True)
    for kind in options.store or ("redis", "postgres"):
        rounds = []
        for _ in range(options.rounds):
            found = [measured(kind, options.count), measured("fenced", options.count) if kind == "postgres" else (NAN, NAN)]
            with store_at(kind) as url:
                found.append(ours(url))
            rounds.append([p50 for p50, _ in found] + [p99 for _, p99 in found])
        medians = (statistics.median(column) for column in zip(*rounds, strict=True))
        cells = ("" if math.isnan(cell) else f"{cell:.2f}" for cell in medians)
        print(f"| {kind} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
