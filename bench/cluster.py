"""One queue over a Redis Cluster of three primaries, beside one server, whole and cut in three: rates, server CPU, evenness.

python bench/cluster.py [--jobs 300000] [--workers 2] [--rounds 3]

All servers and workers share this machine's cores, so the rates tell little; what a job costs the servers tells what more
machines would bring. Evenness: over looks during the drain, how far the fullest partition is above the emptiest, in jobs.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from stores import ROOT  # bench/ is where this script is

from fastjobs.backends.redis_partitions import tags
from fastjobs.benchmark.app import QUEUE
from fastjobs.benchmark.place import NAME
from tests.servers.redis import RedisCluster, RedisServer

LOOK_S = 0.02
PARTITIONS = 3


def cpu_s(server: RedisServer) -> float:
    """Of *server*, by its own count."""
    lines = dict(line.split(":", 1) for line in server.command("INFO", "cpu").splitlines() if ":" in line)
    return float(lines["used_cpu_user"]) + float(lines["used_cpu_sys"])


def left(servers: Sequence[RedisServer]) -> list[int]:
    """Ready jobs of each partition; they lie on *servers* in turn."""
    keys = [f"{{{tag}}}:ready:{QUEUE}:5" for tag in tags(NAME, PARTITIONS)]
    return [int(server.command("LLEN", key)) for server, key in zip(itertools.cycle(servers), keys, strict=False)]


@dataclass(frozen=True, slots=True)
class Run:
    """What one run of the no-op scenario came to."""

    enqueue_per_s: float
    drain_per_s: float
    worker_cpu_us: float  #: per job
    used_us: list[float]  #: CPU per job of each server, whole life
    apart: int  #: jobs, see above


def measure(url: str, servers: Sequence[RedisServer], jobs: int, workers: int) -> Run:
    """One run of the no-op scenario."""
    before = [cpu_s(server) for server in servers]
    apart = 0
    with tempfile.NamedTemporaryFile(suffix=".json") as out:
        sizes = ("-n", str(workers), "--jobs", str(jobs), "--scenario", "noop", "--json")
        process = subprocess.Popen(
            (sys.executable, "-m", "fastjobs", "bench", "--backend", url, *sizes),
            cwd=ROOT,
            stdout=out.fileno(),
            stderr=subprocess.DEVNULL,
        )
        full = False
        while process.poll() is None:
            if "partitions" in url:
                now = left(servers)
                full = full or sum(now) >= jobs
                if full and min(now):
                    apart = max(apart, max(now) - min(now))
            time.sleep(LOOK_S)
        if process.returncode:
            raise SystemExit(1)
        found = json.loads(Path(out.name).read_text())["results"][0]
    used = [(cpu_s(server) - was) / jobs * 1e6 for server, was in zip(servers, before, strict=True)]
    return Run(found["enqueue_per_s"], found["drain_per_s"], found["worker_cpu_us"], used, apart)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=300_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    single, cluster = RedisServer("valkey"), RedisCluster(3)
    try:
        single.start()
        cluster.start()
        places = {
            "1 server": (f"redis://{single.address}/0", [single]),
            "1 server, 3 partitions": (f"redis://{single.address}/0?partitions={PARTITIONS}", [single]),
            "3 primaries": (f"{cluster.url}?partitions={PARTITIONS}", cluster.primaries),
        }
        rounds: dict[str, list[Run]] = {name: [] for name in places}
        for _ in range(options.rounds):
            for name, (url, servers) in places.items():
                rounds[name].append(measure(url, servers, options.jobs, options.workers))
    finally:
        single.stop()
        cluster.stop()
    print(f"{options.jobs:,} no-op jobs, {options.workers} workers, medians of {options.rounds} rounds\n")
    print("| | enqueue jobs/s | drain jobs/s | worker µs/job | servers µs/job, whole life | of each | most apart |")
    print("|---|--:|--:|--:|--:|---|--:|")
    for name, runs in rounds.items():
        middle = [statistics.median(one) for one in zip(*(run.used_us for run in runs), strict=True)]
        rates = (statistics.median(rate) for rate in zip(*((run.enqueue_per_s, run.drain_per_s) for run in runs), strict=True))
        cells = [f"{rate:,.0f}" for rate in rates]
        cells.append(f"{statistics.median(run.worker_cpu_us for run in runs):.2f}")
        cells += [f"{sum(middle):.2f}", ", ".join(f"{one:.2f}" for one in middle)]
        print(f"| {name} | {' | '.join(cells)} | {statistics.median(run.apart for run in runs):,.0f} |")


if __name__ == "__main__":
    main()
