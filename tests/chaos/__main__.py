"""``python -m tests.chaos``: kill, cut, stop and crash everything while jobs run, then count: none may be lost.

On each store a load of jobs runs on two supervisors, which are taken for two machines, behind a proxy that plays the network;
faults are picked by a seed, several a second. At the end every accepted job has finished or is dead with a reason, what ran
twice is explained by a fault that hit its worker, and the store is empty. Exit code 0 if so, 1 if not. Linux only.
"""

from __future__ import annotations

import argparse
import random
import sys

from tests.chaos.arena import KINDS
from tests.chaos.report import ProgressLine, as_json, details, table
from tests.chaos.run import Plan, Run

MINUTES = 5.0
SEED = 20_261


def parser() -> argparse.ArgumentParser:
    """Of the command line."""
    made = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__.partition("\n")[0])
    made.add_argument("--minutes", type=float, help=f"of faults, over all stores and seeds (default {MINUTES:g})")
    made.add_argument("--seconds", type=float, help="the same, of each run")
    made.add_argument("--seed", type=int, nargs="+", default=[SEED], help=f"one run for each; 0 picks one (default {SEED})")
    made.add_argument("--store", nargs="+", choices=KINDS, default=list(KINDS), help="default: all")
    made.add_argument("--workers", type=int, default=3, help="of each of the two supervisors")
    made.add_argument("--jobs", type=int, default=10_000_000, help="most jobs of a run")
    made.add_argument("--load", type=float, default=20_000, help="jobs a second")
    made.add_argument("--only", default="", help="faults whose name has this in it, as in: worker killed")
    made.add_argument("--rate", type=float, default=8.0, help="faults a second, beside those of handlers")
    made.add_argument("--keep", action="store_true", help="keep ledger and logs also when all is well")
    made.add_argument("--json", action="store_true", help="print JSON")
    return made


def main() -> int:
    """Returns the exit code."""
    given = parser().parse_args()
    seeds = [seed or random.randrange(1, 10**6) for seed in given.seed]
    runs = len(given.store) * len(seeds)
    seconds = given.seconds if given.seconds is not None else (given.minutes or MINUTES) * 60 / runs
    progress = ProgressLine()
    results = []
    for seed in seeds:
        for store in given.store:
            plan = Plan(
                store=store,
                seed=seed,
                seconds=seconds,
                workers=given.workers,
                most_jobs=given.jobs,
                load=given.load,
                faults_s=given.rate,
                only=given.only,
                keep=given.keep,
            )
            result = Run(plan, progress).go()
            progress.end()
            results.append(result)
            if not given.json:
                print(details(result), flush=True)
    print(as_json(results) if given.json else table(results), flush=True)
    return 0 if all(result.kept for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
