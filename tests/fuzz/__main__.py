"""``python -m tests.fuzz --inputs 1000000 [--seed N] [--only NAME]``: so many inputs in all, and what became of them.

Ends with 1 if any failed. Each input may take 10 seconds; the process may grow by 2 GiB of address space.
"""

from __future__ import annotations

import argparse
import logging
import os
import resource
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from fastjobs.cli.terminal import table
from tests.fuzz.surface import Count, Surface, explore
from tests.fuzz.surfaces import SURFACES

HANG_S = 10.0
GROWTH_BYTES = 2 << 30


class Hang(Exception):
    """An input took longer than `HANG_S`."""


@contextmanager
def watched() -> Iterator[None]:
    """Ends what hangs."""
    signal.setitimer(signal.ITIMER_REAL, HANG_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _hang(number: int, frame: FrameType | None) -> NoReturn:
    raise Hang(f"still at work after {HANG_S:g} s")


def bound_memory() -> None:
    """An input that has gigabytes reserved for it fails."""
    if not os.path.exists("/proc/self/statm"):
        return
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + GROWTH_BYTES, hard))


def run(surface: Surface, inputs: int, seed: int) -> Count:
    """What became of so many inputs; a failure is printed, and counted."""
    count = Count()
    try:
        return explore(surface, inputs, seed, watched=watched, count=count)
    except Exception as error:
        print(f"\n{surface.name} (seed {seed}):", file=sys.stderr)
        traceback.print_exception(error)
        count.failures.append(str(error))
        return count


def main() -> int:
    """Run what the command line says."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("--inputs", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", metavar="NAME", help="of a surface")
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    signal.signal(signal.SIGALRM, _hang)
    bound_memory()
    chosen = [surface for surface in SURFACES if options.only in (None, surface.name)]
    total = sum(surface.weight for surface in chosen)
    began = time.monotonic()
    rows: list[tuple[str, int, int, int, int, str]] = []
    for surface in chosen:
        before = time.monotonic()
        count = run(surface, max(options.inputs * surface.weight // total, 1), options.seed)
        took = f"{time.monotonic() - before:.0f} s"
        rows.append((surface.name, count.inputs, count.refused, count.accepted, len(count.failures), took))
        print(f"{surface.name}: {count.inputs:,} inputs in {took}", file=sys.stderr, flush=True)
    sums = [sum(row[column] for row in rows) for column in (1, 2, 3, 4)]  # type: ignore[misc]
    rows.append(("all", *sums, f"{time.monotonic() - began:.0f} s"))
    for line in table(("what", "inputs", "refused", "accepted", "failures", "time"), rows):
        print(line)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"seed {options.seed} · peak memory {peak:,.0f} MiB")
    return 1 if rows[-1][4] else 0


if __name__ == "__main__":
    sys.exit(main())
