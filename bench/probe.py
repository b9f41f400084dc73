"""What this machine can do right now: the least that a worker at least once must do, as a ceiling for measured rates.

    python bench/probe.py memory
    python bench/probe.py redis://127.0.0.1:6379/9          # uses the keys probe:*
    python bench/probe.py 'postgresql://postgres@/postgres'  # uses the schema fastjobs_probe
    options: --jobs 500000 --workers 1 --batch 500 --rounds 3 --json

Claim a batch under a lease, decode each envelope and payload, await an async no-op in one of 100 runners, settle the batch
with the next claim, fetching that while this one runs. No retries, delays, priorities, checks, fencing, numbers, ids or time
limits: a job system can hardly be quicker on the same store with this layout (enqueueing here is one push after another), and
rates of two machines can be compared as shares of it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple, Protocol

import asyncpg
import msgspec
import redis.asyncio
import uvloop

Batch = tuple[Any, list[bytes]]
"""What settles it, and its envelopes; none: the store is empty."""

Exchange = Callable[[Any], Awaitable[Batch]]
"""Settles the batch before the last, None for none, and claims the next."""


class Envelope(msgspec.Struct, array_like=True, gc=False):
    """About 60 bytes."""

    id: bytes
    name: str
    payload: bytes


class Payload(msgspec.Struct, gc=False):
    value: int


encode = msgspec.msgpack.Encoder().encode
decode: Callable[[bytes], Envelope] = msgspec.msgpack.Decoder(Envelope).decode
decode_payload: Callable[[bytes], Payload] = msgspec.json.Decoder(Payload).decode


async def noop(payload: Payload) -> None:
    """The handler."""


HANDLERS = {"noop": noop}


def envelopes(first: int, count: int) -> list[bytes]:
    """*count* jobs."""
    return [encode(Envelope(bytes(16), "noop", b'{"value":%d}' % number)) for number in range(first, first + count)]


class Store(Protocol):
    """The least of a store."""

    async def fill(self, jobs: int) -> None: ...
    async def open(self) -> Exchange: ...


async def drain(exchange: Exchange) -> int:
    """Run jobs until the store is empty. Returns how many."""
    ready: deque[bytes] = deque()
    left, done = 0, 0
    more, empty = asyncio.Event(), asyncio.Event()

    async def runner() -> None:
        nonlocal left
        while True:
            while ready:
                job = decode(ready.popleft())
                await HANDLERS[job.name](decode_payload(job.payload))
                left -= 1
                if not left:
                    empty.set()
            more.clear()
            await more.wait()

    runners = [asyncio.create_task(runner()) for _ in range(100)]
    ended: Any = None
    claim, batch = await exchange(None)
    while batch:
        following = asyncio.create_task(exchange(ended))
        left = len(batch)
        done += left
        empty.clear()
        ready.extend(batch)
        more.set()
        await empty.wait()
        ended = claim
        claim, batch = await following
    await exchange(ended)
    for task in runners:
        task.cancel()
    return done


# -- memory ------------------------------------------------------------------------------------------------------------


class Frames(asyncio.Protocol):
    """MessagePack behind four bytes of length."""

    def __init__(self, received: Callable[[Frames, Any], None]) -> None:
        self._received = received
        self._data = b""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        data = self._data + data
        at = 0
        while len(data) >= at + 4 and len(data) >= (end := at + 4 + int.from_bytes(data[at : at + 4], "big")):
            message = msgspec.msgpack.decode(data[at + 4 : end])
            at = end
            self._received(self, message)
        self._data = data[at:]

    def send(self, message: Any) -> None:
        body = encode(message)
        self.transport.write(len(body).to_bytes(4, "big") + body)


class Memory:
    """A list in another process."""

    def __init__(self, batch: int) -> None:
        self.batch = batch
        self.path = tempfile.mkdtemp(prefix="probe-") + "/socket"
        self.pid = fork(self._serve)
        while not os.path.exists(self.path):
            time.sleep(0.01)

    async def _serve(self) -> None:
        ready: deque[bytes] = deque()
        leased: dict[int, list[bytes]] = {}
        numbers = iter(range(1, sys.maxsize))

        def received(client: Frames, message: Any) -> None:
            if isinstance(message, list):
                ready.extend(message)
                client.send(None)
                return
            leased.pop(message, None)
            number = next(numbers)
            batch = leased[number] = [ready.popleft() for _ in range(min(self.batch, len(ready)))]
            client.send((number, batch))

        await asyncio.get_running_loop().create_unix_server(lambda: Frames(received), self.path)
        await asyncio.Event().wait()

    async def _calls(self) -> Callable[[Any], Awaitable[Any]]:
        waiting: deque[asyncio.Future[Any]] = deque()
        loop = asyncio.get_running_loop()
        _, client = await loop.create_unix_connection(
            lambda: Frames(lambda _, message: waiting.popleft().set_result(message)), self.path
        )

        async def call(message: Any) -> Any:
            waiting.append(future := loop.create_future())
            client.send(message)
            return await future

        return call

    async def fill(self, jobs: int) -> None:
        call = await self._calls()
        for first in range(0, jobs, 1000):
            await call(envelopes(first, min(1000, jobs - first)))

    async def open(self) -> Exchange:
        call = await self._calls()
        return lambda ended: call(ended or 0)


# -- redis -------------------------------------------------------------------------------------------------------------

CLAIM = """
if KEYS[2] ~= 'probe:' then redis.call('UNLINK', KEYS[2]) end
local batch = redis.call('LPOP', KEYS[1], ARGV[1])
if batch then
  for from = 1, #batch, 1000 do
    redis.call('RPUSH', KEYS[3], unpack(batch, from, math.min(from + 999, #batch)))
  end
end
return batch
"""


class Redis:
    """A list, and a list per claim."""

    def __init__(self, url: str, batch: int) -> None:
        self.url, self.batch = url, batch

    async def fill(self, jobs: int) -> None:
        async with redis.asyncio.from_url(self.url) as client:
            await client.delete("probe:ready")
            for first in range(0, jobs, 1000):
                await client.rpush("probe:ready", *envelopes(first, min(1000, jobs - first)))

    async def open(self) -> Exchange:
        client = redis.asyncio.from_url(self.url)
        sha = await client.script_load(CLAIM)
        numbers = iter(range(sys.maxsize))

        async def exchange(ended: Any) -> Batch:
            claim = f"probe:{os.getpid()}:{next(numbers)}"
            return claim, await client.evalsha(sha, 3, "probe:ready", ended or "probe:", claim, self.batch) or []

        return exchange


# -- postgres ----------------------------------------------------------------------------------------------------------

TABLES = """
drop schema if exists fastjobs_probe cascade;
create schema fastjobs_probe;
create table fastjobs_probe.ready (seq bigint generated always as identity primary key, job bytea not null)
  with (autovacuum_enabled = off, vacuum_truncate = off);
create table fastjobs_probe.claim (n bigint generated always as identity primary key, jobs bytea[] not null);
alter table fastjobs_probe.claim alter jobs set storage external;
"""

MOVE = """
with ended as (delete from fastjobs_probe.claim where n = $1),
batch as (delete from fastjobs_probe.ready where ctid = any(array(
  select ctid from fastjobs_probe.ready where seq > $2 order by seq limit $3 for update skip locked)) returning seq, job)
insert into fastjobs_probe.claim (jobs) select array_agg(job order by seq) from batch having count(*) > 0
returning n, jobs, (select max(seq) from batch)
"""

SETTINGS = {"synchronous_commit": "off", "plan_cache_mode": "force_generic_plan", "enable_seqscan": "off", "jit": "off"}


class Postgres:
    """A table, and a row per claim."""

    def __init__(self, url: str, batch: int) -> None:
        self.url, self.batch = url, batch

    async def fill(self, jobs: int) -> None:
        connection = await asyncpg.connect(self.url)
        await connection.execute(TABLES)
        for first in range(0, jobs, 1000):
            batch = envelopes(first, min(1000, jobs - first))
            await connection.execute("insert into fastjobs_probe.ready (job) select unnest($1::bytea[])", batch)
        await connection.close()

    async def open(self) -> Exchange:
        connection = await asyncpg.connect(self.url, server_settings=SETTINGS)
        move = await connection.prepare(MOVE)
        hint, turn = 0, asyncio.Lock()

        async def exchange(ended: Any) -> Batch:
            nonlocal hint
            async with turn:
                row = await move.fetchrow(ended, hint, self.batch)
                if row is None and hint:  # another worker's locks may have hidden some
                    row = await move.fetchrow(None, 0, self.batch)
            if row is None:
                return None, []
            hint = max(hint, row[2])
            return row[0], row[1]

        return exchange


# ----------------------------------------------------------------------------------------------------------------------


class Rates(NamedTuple):
    """jobs/s."""

    enqueue: float
    drain: float


def fork(main: Callable[[], Awaitable[object]]) -> int:
    """Run *main* in a child on its own loop."""
    pid = os.fork()
    if not pid:
        status = 1
        try:
            uvloop.run(main())  # type: ignore[arg-type]
            status = 0
        finally:
            os._exit(status)
    return pid


def wait(pid: int) -> None:
    """Wait for a child that must end well."""
    if os.waitpid(pid, 0)[1]:
        raise SystemExit("a process of the probe failed")


def measure(store: Store, jobs: int, workers: int) -> Rates:
    """One round. The clock of the drain runs from each worker's first claim; the longest counts."""
    began = time.monotonic()
    wait(fork(lambda: store.fill(jobs)))
    filled = jobs / (time.monotonic() - began)
    reading, writing = os.pipe()

    async def work() -> None:
        exchange = await store.open()
        before = time.monotonic()
        done = await drain(exchange)
        os.write(writing, f"{done} {before} {time.monotonic()}\n".encode())

    children = [fork(work) for _ in range(workers)]
    for child in children:
        wait(child)
    os.close(writing)
    with os.fdopen(reading) as lines:
        told = [[float(field) for field in line.split()] for line in lines]
    if sum(done for done, _, _ in told) != jobs:
        raise SystemExit("the probe lost jobs")
    return Rates(filled, jobs / (max(end for _, _, end in told) - min(begin for _, begin, _ in told)))


def store_of(url: str, batch: int) -> Store:
    """The store at *url*; "memory" for one of its own."""
    if url.startswith("memory"):
        return Memory(batch)
    return Postgres(url, batch) if url.startswith("postgres") else Redis(url, batch)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store")
    for option, default in (("jobs", 500_000), ("workers", 1), ("batch", 500), ("rounds", 3)):
        parser.add_argument(f"--{option}", type=int, default=default)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    store = store_of(options.store, options.batch)
    rounds = [measure(store, options.jobs, options.workers) for _ in range(options.rounds)]
    if options.json:
        print(json.dumps([each._asdict() for each in rounds]))
    for each in [] if options.json else rounds:
        print(f"enqueue {each.enqueue:>10,.0f} jobs/s   drain {each.drain:>10,.0f} jobs/s")
    if not options.json:
        print(f"median drain {statistics.median(each.drain for each in rounds):,.0f} jobs/s")
    if isinstance(store, Memory):
        os.kill(store.pid, 9)
        os.waitpid(store.pid, 0)


if __name__ == "__main__":
    main()
