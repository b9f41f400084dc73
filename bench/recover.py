"""How soon the jobs of a killed worker run again on a busy fleet.

python bench/recover.py [--store memory] [--store redis] [--store postgres] [--workers 8] [--kills 200] [--every 0.75]

All workers are busy with jobs that wait 20 ms, of which thousands more are ready. Beside them run marked jobs, which say when
they start and hold until their worker dies. Every 0.75 s the oldest worker that holds some is killed: of eight, it is some 6
s old then, as one that dies younger is replaced with growing delay. Measured is, for each marked job, the time from SIGKILL
to the first line of its next run, past the backlog and on a worker that had its hands full.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import socket
import statistics
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from fleet import HEARD, Fleet, enqueue, fleet_of  # bench/ is where this script is
from stores import STORES, store_at

from fastjobs import JobQueue
from tests.stores import MemoryPlace

LOAD_S = 0.02
"""Of one job of the load."""

CONCURRENCY = 100
"""Jobs at once of a worker, by default."""

MARKED = 3
"""Marked jobs per worker."""


@contextmanager
def under_load(url: str, workers: int) -> Iterator[None]:
    """Half a second's worth of work is ready, always."""
    stop = threading.Event()
    ready = int(workers * CONCURRENCY / LOAD_S / 2)

    async def produce() -> None:
        async with JobQueue(url) as jobs:
            while not stop.is_set():
                found = {queue.queue: queue.ready for queue in (await jobs.stats()).queues}
                missing = ready - found.get("default", 0)
                if missing > 0:
                    await jobs.enqueue_many(jobs.prepare("load", {"seconds": LOAD_S}) for _ in range(missing))
                await asyncio.sleep(0.1)

    with ThreadPoolExecutor(1, "load") as pool:
        producing = pool.submit(lambda: asyncio.run(produce()))
        try:
            yield
        finally:
            stop.set()
        producing.result()


class Marked:
    """The marked jobs: which process holds each, and how long each took to run again."""

    def __init__(self, url: str, place: str, ear: socket.socket) -> None:
        self.again: list[float] = []  #: seconds
        self._url = url
        self._place = place
        self._ear = ear
        self._last = 0
        self._waiting = 0  # enqueued, not yet started
        self._held: dict[int, int] = {}
        self._seen: dict[int, float] = {}  # when a process was first heard of
        self._killed: dict[int, float] = {}

    def top_up(self, count: int) -> None:
        """Have *count* of them, after some rounds: those that come together are claimed together."""
        missing = min(count - len(self._held) - self._waiting, MARKED)
        if missing > 0:
            enqueue(self._url, self._place, range(self._last + 1, self._last + missing + 1))
            self._last += missing
            self._waiting += missing

    def listen(self, until: float) -> None:
        """Hear what starts until then, and on until all of killed workers have started again, and some are held."""
        while (left := until - time.monotonic()) > 0 or self._awaited():
            self._ear.settimeout(max(left, 0.001) if left > 0 else 30)
            try:
                number, pid, at = HEARD.unpack(self._ear.recv(HEARD.size))
            except TimeoutError:
                if left > 0:
                    continue
                raise
            self._started(number, pid, at)

    def _awaited(self) -> bool:
        """Whether a start is still to come."""
        return any(pid in self._killed for pid in self._held.values()) or bool(self._waiting and not self._held)

    def _started(self, number: int, pid: int, at: float) -> None:
        if number == 0:
            return
        self._seen.setdefault(pid, at)
        if (holder := self._held.pop(number, None)) is not None:
            self.again.append(at - self._killed[holder])
        else:
            self._held[number] = pid
            self._waiting -= 1

    def kill(self) -> None:
        """The oldest worker that holds some."""
        victim = min((pid for pid in self._held.values() if pid not in self._killed), key=self._seen.__getitem__)
        self._killed[victim] = time.monotonic()
        os.kill(victim, signal.SIGKILL)


def stop(fleet: Fleet) -> None:
    """Not waiting for what holds."""
    fleet.process.send_signal(signal.SIGTERM)
    time.sleep(1)
    fleet.stop()


def recover(url: str, workers: int, kills: int, every_s: float) -> list[float]:
    """Seconds until each job of a killed worker ran again."""
    with fleet_of(url, workers, end=stop) as (fleet, place), under_load(url, workers):
        fleet.hear(0)
        marked = Marked(url, place, fleet.ear)
        for number in range(-2 * workers, kills):
            marked.top_up(MARKED * workers)
            marked.listen(time.monotonic() + every_s)
            if number >= 0:
                marked.kill()
        marked.listen(time.monotonic())
        return marked.again


@contextmanager
def place_of(kind: str) -> Iterator[str]:
    """The URL of a store that this process reaches too."""
    if kind != "memory":
        with store_at(kind) as url:
            yield url
        return
    memory = MemoryPlace()
    try:
        yield memory.url()
    finally:
        memory.close()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", action="append", choices=STORES)
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--every", type=float, default=0.75, help="seconds between two kills")
    options = parser.parse_args()
    print(f"{options.workers} workers, {options.kills} kills\n")
    print("| store | jobs | killed to run again, ms: p50 | p99 | max |\n|---|--:|--:|--:|--:|")
    for kind in options.store or STORES:
        with place_of(kind) as url:
            again = recover(url, options.workers, options.kills, options.every)
        cuts = statistics.quantiles(again, n=100, method="inclusive")
        late = " | ".join(f"{1000 * seconds:.0f}" for seconds in (cuts[49], cuts[98], max(again)))
        print(f"| {kind} | {len(again)} | {late} |", flush=True)


if __name__ == "__main__":
    main()
