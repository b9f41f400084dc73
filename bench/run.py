"""Whole-process throughput on private servers, each round beside the bare probe of the machine.

    python bench/run.py --quick                  # under 2 minutes
    python bench/run.py --out today.json         # memory, Valkey and Postgres, 1 and 2 workers, all scenarios
    python bench/run.py --compare before.json    # the same beside an earlier run of the same machine
    options: --store memory --store redis --store postgres   --workers 1 --workers 2   --rounds 3   --jobs 300000

Prints Markdown: medians of the rounds, and the median of each round's share of the probe (`bench/probe.py`, just before it).
Rates of one machine drift by a factor within the hour and differ by three between machines: compare shares, not rates.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from machine import cores, cpu
from stores import ROOT, STORES, store_at  # bench/ is where this script is

OTHERS = ("payload", "large", "retry", "delayed", "sleep", "nap", "cpu", "single", "latency", "loaded")
"""Scenarios measured once, with two workers, after the rounds of "noop"."""

PACKAGES = ("uvloop", "redis", "hiredis", "asyncpg", "orjson", "msgspec")


def run(*command: str) -> Any:
    """The JSON that *command* prints."""
    done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, timeout=900, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr}")
    return json.loads(done.stdout)


def bench(url: str, workers: int, jobs: int, names: Sequence[str]) -> list[dict[str, Any]]:
    """What ``fastjobs bench`` measures."""
    scenarios = [part for name in names for part in ("--scenario", name)]
    found = run("-m", "fastjobs", "bench", "--json", "--backend", url, "-n", str(workers), "--jobs", str(jobs), *scenarios)
    results: list[dict[str, Any]] = found["results"]
    return results


def rounds_of(url: str, workers: int, jobs: int, rounds: int) -> dict[str, Any]:
    """No-op jobs, each round with the probe just before it; medians."""
    pairs = []
    for _ in range(rounds):
        [bare] = run("bench/probe.py", url, "--workers", str(workers), "--jobs", str(jobs), "--rounds", "1", "--json")
        [ours] = bench(url, workers, jobs, ["noop"])
        pairs.append((bare, ours))
    keys = [key for key, value in pairs[0][1].items() if isinstance(value, (int, float))]
    medians = {key: statistics.median(ours[key] for _, ours in pairs) for key in keys}
    return {
        **medians,
        "workers": workers,
        "scenario": "noop",
        "drain_share": statistics.median(ours["drain_per_s"] / bare["drain"] for bare, ours in pairs),
        "enqueue_share": statistics.median(ours["enqueue_per_s"] / bare["enqueue"] for bare, ours in pairs),
        "probe_drain_per_s": statistics.median(bare["drain"] for bare, _ in pairs),
        "probe_enqueue_per_s": statistics.median(bare["enqueue"] for bare, _ in pairs),
    }


def machine() -> dict[str, Any]:
    """What the figures belong to."""
    return {
        "cpu": cpu(),
        "cores": cores(),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
    }


def rows(found: dict[str, Any]) -> Iterator[str]:
    """The tables, as Markdown."""
    about = found["machine"]
    yield f"{about['cores']} cores of {about['cpu']}, Python {about['python']}; store on the same machine"
    yield ""
    heads = ("enqueue, jobs/s", "of the probe", "drain, jobs/s", "of the probe", "µs producer", "µs worker", "µs store")
    yield f"| store | workers | {' | '.join(heads)} |"
    yield f"|---|--:|{'--:|' * len(heads)}"
    for kind, results in found["stores"].items():
        for one in results["noop"]:
            store = (one["store_enqueue_cpu_us"] or 0) + (one["store_drain_cpu_us"] or 0)
            yield (
                f"| {kind} | {one['workers']} | {one['enqueue_per_s']:,.0f} | {one['enqueue_share']:.0%} "
                f"| {one['drain_per_s']:,.0f} | {one['drain_share']:.0%} "
                f"| {one['producer_cpu_us']:.2f} | {one['worker_cpu_us']:.2f} | {store:.2f} |"
            )
    yield from _others(found)


def _others(found: dict[str, Any]) -> Iterator[str]:
    names = dict.fromkeys(one["scenario"] for results in found["stores"].values() for one in results["others"])
    if not names:
        return
    yield ""
    yield f"| two workers | {' | '.join(found['stores'])} |"
    yield f"|---|{'--:|' * len(found['stores'])}"
    for name in names:
        cells = [
            next((_cell(one) for one in results["others"] if one["scenario"] == name), "")
            for results in found["stores"].values()
        ]
        yield f"| {name} | {' | '.join(cells)} |"


def _cell(one: dict[str, Any]) -> str:
    if "p50_ms" in one:
        return f"{one['p50_ms']:.2f} · {one['p99_ms']:.2f} · {one['p999_ms']:.2f} ms"
    if "alone_ms" in one:
        return f"{one['enqueue_per_s']:,.0f} jobs/s · {one['alone_ms']:.2f} ms"
    return f"{one['drain_per_s']:,.0f} jobs/s · tail {one['tail_s']:.2f} s"


def compared(before: dict[str, Any], now: dict[str, Any]) -> Iterator[str]:
    """Then and now, by shares of the probe."""
    if before["machine"] != now["machine"]:
        yield "not the same machine or packages: only shares of the probe say something"
    yield "| store | workers | enqueue, of the probe | drain, of the probe | µs worker | µs store, drain |"
    yield "|---|--:|--:|--:|--:|--:|"
    for kind, results in now["stores"].items():
        for one in results["noop"]:
            then = next(
                (old for old in before["stores"].get(kind, {}).get("noop", []) if old["workers"] == one["workers"]), None
            )
            if then is not None:
                yield (
                    f"| {kind} | {one['workers']} | {then['enqueue_share']:.0%} → {one['enqueue_share']:.0%} "
                    f"| {then['drain_share']:.0%} → {one['drain_share']:.0%} "
                    f"| {then['worker_cpu_us']:.2f} → {one['worker_cpu_us']:.2f} "
                    f"| {then['store_drain_cpu_us']:.2f} → {one['store_drain_cpu_us']:.2f} |"
                )


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", action="append", choices=STORES)
    parser.add_argument("--workers", action="append", type=int)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=300_000)
    parser.add_argument("--quick", action="store_true", help="one round of 100,000 jobs, two workers, no other scenarios")
    parser.add_argument("--out", type=Path, help="where the results go as JSON")
    parser.add_argument("--compare", type=Path, help="results of an earlier run")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.jobs, options.workers = 1, min(options.jobs, 100_000), options.workers or [2]
    found: dict[str, Any] = {"machine": machine(), "stores": {}}
    for kind in options.store or STORES:
        with store_at(kind) as url:
            noop = [rounds_of(url, workers, options.jobs, options.rounds) for workers in options.workers or [1, 2]]
            others = [] if options.quick else bench(url, 2, options.jobs, OTHERS)
            found["stores"][kind] = {"noop": noop, "others": [one for one in others if one["scenario"] != "noop"]}
    print("\n".join(rows(found)))
    if options.out is not None:
        options.out.write_text(json.dumps(found, indent=1))
    if options.compare is not None:
        print("\n" + "\n".join(compared(json.loads(options.compare.read_text()), found)))


if __name__ == "__main__":
    main()
