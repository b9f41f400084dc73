"""``fastjobs bench``: measure a store and this machine."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import click
import msgspec
import uvloop

from fastjobs.benchmark.run import SCENARIOS, USUAL, check, measure
from fastjobs.benchmark.scenarios import Drained, Latencies, Result, Singles
from fastjobs.cli.fields import build, verbose_option
from fastjobs.cli.terminal import LiveLine, bar, is_live, table
from fastjobs.options import check_int
from fastjobs.supervisor import MOST_WORKERS

ROUGH_S = 0.1
"""A drain that took less is no measurement: more jobs are needed."""

EPILOG = "Scenarios: " + "; ".join(f"{name}: {about}" for name, about in SCENARIOS.items()) + "."


@click.command("bench", epilog=EPILOG)
@click.option(
    "--backend",
    metavar="URL",
    default="memory://",
    show_default=True,
    envvar="FASTJOBS_BENCH_URL",
    show_envvar=True,
    help="The store; your jobs there stay.",
)
@click.option("-n", "--workers", type=int, default=2, show_default=True, help="Worker processes.")
@click.option("--jobs", "count", type=int, default=300_000, show_default=True, help="Jobs of the largest scenario.")
@click.option("--scenario", "names", multiple=True, metavar="NAME", help=f"As often as you like; default: {', '.join(USUAL)}.")
@click.option("--json", "as_json", is_flag=True, help="The results as one JSON object.")
@verbose_option
def command(backend: str, workers: int, count: int, names: tuple[str, ...], as_json: bool) -> None:
    """Enqueue jobs, have them run by real worker processes, count them; measure rates, times, CPU and memory."""
    build(lambda: check_int(workers, "workers", 1, MOST_WORKERS))
    build(lambda: check_int(count, "jobs", 100, 10**9))
    chosen = build(lambda: check(names))
    progress = Progress()
    try:
        results = uvloop.run(measure(backend, chosen, count, workers, progress.tell))
    except asyncio.CancelledError:
        raise click.exceptions.Exit(128 + signal.SIGTERM) from None
    finally:
        progress.end()
    if as_json:
        click.echo(msgspec.json.encode({"workers": workers, "results": results}))
        return
    for line in lines(results):
        click.echo(line)


class Progress:
    """What is measured now, on a terminal; elsewhere silent."""

    def __init__(self) -> None:
        self._line = LiveLine(sys.stderr) if is_live(sys.stderr) else None

    def tell(self, what: str, share: float) -> None:
        """Draw it."""
        if self._line is not None:
            self._line.draw(f"{bar(share)} · {what}")

    def end(self) -> None:
        """Take it away."""
        if self._line is not None:
            self._line.erase()


def lines(results: Sequence[Result]) -> Iterator[str]:
    """The closing tables."""
    drained = [result for result in results if isinstance(result, Drained)]
    if drained:
        head = (
            "scenario",
            "jobs",
            "enqueue/s",
            "drain/s",
            "per worker",
            "µs producer",
            "µs worker",
            "µs store",
            "MiB",
            "tail, s",
        )
        yield from table(head, [_row(result) for result in drained])
        yield "µs: CPU time per job, of the store for its whole life; MiB: of a worker, beyond what it shares;"
        yield "tail: at the end of a drain, while some worker had nothing left to run"
    singles = [result for result in results if isinstance(result, Singles)]
    for single in singles:
        many = f"{single.concurrency:,} at a time {single.enqueue_per_s:,.0f} jobs/s"
        yield f"single enqueues: {many}; alone {single.alone_ms:.2f} ms"
    for found in results:
        if isinstance(found, Latencies):
            beside = f" beside {found.load_per_s:,.0f} jobs/s" if found.load_per_s else ""
            times = f"p50 {found.p50_ms:.2f} · p99 {found.p99_ms:.2f} · p99.9 {found.p999_ms:.2f} ms"
            yield f"enqueue to start{beside}: {times}"


def _row(result: Drained) -> tuple[Any, ...]:
    rough = "~" if result.jobs / result.drain_per_s < ROUGH_S else ""
    parts = (result.store_enqueue_cpu_us, result.store_drain_cpu_us)
    store = "?" if parts[0] is None or parts[1] is None else f"{parts[0] + parts[1]:.2f}"
    return (
        result.scenario,
        result.jobs,
        round(result.enqueue_per_s),
        f"{rough}{result.drain_per_s:,.0f}",
        f"{rough}{result.drain_per_s / result.workers:,.0f}",
        f"{result.producer_cpu_us:.2f}",
        f"{result.worker_cpu_us:.2f}",
        store,
        f"{result.worker_mib:.1f}",
        f"{result.tail_s:.2f}",
    )
