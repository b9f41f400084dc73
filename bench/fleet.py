"""What a supervised fleet costs and how soon it acts: its start, its idleness, and a killed worker's job.

python bench/fleet.py [--store redis] [--store postgres] [--workers 8] [--rounds 5] [--seconds 30] [--kills 20]

Start: from spawning `fastjobs supervise` to the first line of the first job. Idle: CPU of all its processes and calls to the
store over some seconds. Kill: from SIGKILL of a worker to the first line of its job's next run, of workers that are idle else.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import asyncpg
from stores import ROOT, store_at  # bench/ is where this script is

from fastjobs import JobQueue
from fastjobs.benchmark.rediscli import client_of
from fastjobs.benchmark.usage import children_of, cpu_of

HEARD = struct.Struct("=qqd")
"""Number of the job, process, time of its first line."""

SENT = ("cmdstat_evalsha", "cmdstat_blpop", "cmdstat_hgetall")
"""What a fleet sends to Redis once it has started; all others are its scripts' own."""

APP = """
    import asyncio, os, pathlib, socket, struct, time
    from fastjobs import JobQueue
    jobs = JobQueue()
    out = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)

    @jobs.job
    async def told(number: int, place: str) -> None:
        out.sendto(struct.pack("=qqd", number, os.getpid(), time.monotonic()), place)
        again = pathlib.Path(place + f".{number}")
        if number > 0 and not again.exists():
            again.touch()
            await asyncio.sleep(60)

    @jobs.job
    async def load(seconds: float) -> None:
        await asyncio.sleep(seconds)
"""


class Fleet:
    """A running `fastjobs supervise`."""

    def __init__(self, url: str, workers: int, directory: Path, ear: socket.socket) -> None:
        self.ear = ear  #: where its jobs report to
        self.began = time.monotonic()
        command = (sys.executable, "-m", "fastjobs", "supervise", "-n", str(workers), "--backend", url, "fleet_app:jobs")
        path = os.pathsep.join((str(directory), str(ROOT)))
        self.process = subprocess.Popen(
            command, env={**os.environ, "PYTHONPATH": path}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    def hear(self, number: int) -> tuple[int, float]:
        """Process and time of the next run of job *number*."""
        while True:
            heard, pid, at = HEARD.unpack(self.ear.recv(HEARD.size))
            if heard == number:
                return pid, at

    def cpu_s(self) -> float:
        """Used so far by the supervisor and its children."""
        pids = (self.process.pid, *children_of(self.process.pid))
        return sum(used for pid in pids if (used := cpu_of(pid)) is not None)

    def stop(self) -> None:
        """Drain."""
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(40)


@contextmanager
def fleet_of(url: str, workers: int, end: Callable[[Fleet], None] = Fleet.stop) -> Iterator[tuple[Fleet, str]]:
    """A fleet on an empty store with one job in it; where its handler reports to. *end* ends it."""
    with tempfile.TemporaryDirectory(prefix="fastjobs-fleet-") as name:
        directory, place = Path(name), f"{name}/ear"
        (directory / "fleet_app.py").write_text(textwrap.dedent(APP))
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ear:
            ear.bind(place)
            ear.settimeout(30)
            enqueue(url, place, [0])
            fleet = Fleet(url, workers, directory, ear)
            try:
                yield fleet, place
            finally:
                end(fleet)


def enqueue(url: str, place: str, numbers: Sequence[int]) -> None:
    """Store jobs of these numbers."""

    async def go() -> None:
        async with JobQueue(url) as jobs:
            for number in numbers:
                await jobs.enqueue("told", {"number": number, "place": place})

    asyncio.run(go())


def calls(url: str) -> int:
    """Made to the store so far: commands of Redis that come from outside its scripts, transactions of Postgres."""

    async def go() -> int:
        if url.startswith("postgres"):
            connection = await asyncpg.connect(url)
            count = await connection.fetchval("select sum(xact_commit + xact_rollback)::bigint from pg_stat_database")
            await connection.close()
            return int(count)
        async with await client_of(url) as client:
            found = await client.info("commandstats")
            return sum(int(found[name]["calls"]) for name in SENT if name in found)

    return asyncio.run(go())


def start(url: str, workers: int) -> float:
    """Seconds."""
    with fleet_of(url, workers) as (fleet, _):
        return fleet.hear(0)[1] - fleet.began


def idle(url: str, workers: int, seconds: float) -> tuple[float, float]:
    """Share of one core, and calls a second."""
    with fleet_of(url, workers) as (fleet, _):
        fleet.hear(0)
        time.sleep(5)  # what the start has left to do
        before, cpu = calls(url), fleet.cpu_s()
        time.sleep(seconds)
        return (fleet.cpu_s() - cpu) / seconds, (calls(url) - before) / seconds


def kills(url: str, workers: int, count: int) -> list[float]:
    """Seconds, ascending."""
    found = []
    with fleet_of(url, workers) as (fleet, place):
        fleet.hear(0)
        for number in range(1, count + 1):
            enqueue(url, place, [number])
            pid, _ = fleet.hear(number)
            time.sleep(0.3)
            before = time.monotonic()
            os.kill(pid, signal.SIGKILL)
            found.append(fleet.hear(number)[1] - before)
    return sorted(found)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", action="append", choices=("redis", "postgres"))
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5, help="starts")
    parser.add_argument("--seconds", type=float, default=30, help="of idleness")
    parser.add_argument("--kills", type=int, default=20)
    options = parser.parse_args()
    print(f"{options.workers} workers\n")
    heads = ("start, s", "idle, % of a core", "idle, calls/s", "killed to run again, ms: p50", "max")
    print(f"| store | {' | '.join(heads)} |\n|---|{'--:|' * len(heads)}")
    for kind in options.store or ("redis", "postgres"):
        with store_at(kind) as url:
            starts = statistics.median(start(url, options.workers) for _ in range(options.rounds))
            cpu, rate = idle(url, options.workers, options.seconds)
            again = kills(url, options.workers, options.kills)
        late = f"{1000 * statistics.median(again):.0f} | {1000 * again[-1]:.0f}"
        print(f"| {kind} | {starts:.2f} | {100 * cpu:.2f} | {rate:.1f} | {late} |", flush=True)


if __name__ == "__main__":
    main()
