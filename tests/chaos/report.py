"""What a run tells people and programs."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from typing import Any, Final

from tests.chaos.run import Result

SHOWN: Final = 20
"""Culprits told in full."""


SLOW_S: Final = 2.0
"""A recovery that took longer is told in full."""


def percentile_ms(sorted_s: Sequence[float], share: float) -> float | None:
    """In milliseconds; None of nothing."""
    if not sorted_s:
        return None
    return round(1000 * sorted_s[min(int(share * len(sorted_s)), len(sorted_s) - 1)], 1)


def facts(result: Result) -> dict[str, Any]:
    """All of it, as JSON can carry it."""
    balance = result.balance
    injected = {**result.faults, **{words: count for words, count in balance.faults.items() if words}}
    return {
        "store": result.plan.store,
        "seed": result.plan.seed,
        "verdict": result.verdict,
        "seconds": round(result.seconds, 1),
        "faults": sum(injected.values()),
        "faults_by_kind": dict(sorted(injected.items(), key=lambda item: -item[1])),
        "jobs": balance.jobs,
        "unsure": balance.unsure,
        "dead": balance.dead,
        "repeats": balance.repeats,
        "repeats_because": dict(balance.because.most_common()),
        "recoveries": len(balance.recoveries_s),
        "recovery_p50_ms": percentile_ms(balance.recoveries_s, 0.5),
        "recovery_p99_ms": percentile_ms(balance.recoveries_s, 0.99),
        "recovery_max_ms": percentile_ms(balance.recoveries_s, 1.0),
        "culprits": [dataclasses.asdict(culprit) | {"lines": culprit.lines} for culprit in _plain(result)],
        "why": result.why,
        "directory": result.directory,
    }


@dataclasses.dataclass
class _Culprit:
    job: int
    what: str
    lines: list[str]


def _plain(result: Result) -> list[_Culprit]:
    return [_Culprit(*culprit) for culprit in result.balance.culprits[:SHOWN]]


def as_json(results: Sequence[Result]) -> str:
    """One object."""
    return json.dumps({"kept": all(result.kept for result in results), "runs": [facts(result) for result in results]}, indent=1)


def table(results: Sequence[Result]) -> str:
    """One line for each run, and what went wrong."""
    head = ("store", "seed", "faults", "jobs", "dead", "repeats", "recovery p50", "p99", "max, ms", "seconds", "verdict")
    rows = [head]
    for result in results:
        told = facts(result)
        recovery = [told[f"recovery_{name}_ms"] for name in ("p50", "p99", "max")]
        rows.append(
            (
                told["store"],
                str(told["seed"]),
                f"{told['faults']:,}",
                f"{told['jobs']:,}",
                f"{told['dead']:,}",
                f"{told['repeats']:,}",
                *("" if ms is None else f"{ms:,.0f}" for ms in recovery),
                f"{told['seconds']:,.0f}",
                told["verdict"],
            )
        )
    widths = [max(len(row[at]) for row in rows) for at in range(len(head))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def details(result: Result) -> str:
    """The faults and repeats of one run by kind, and its culprits."""
    told = facts(result)
    parts = [f"{result.plan.store}, seed {result.plan.seed}"]
    parts.append("  faults   " + ", ".join(f"{words} {count:,}" for words, count in told["faults_by_kind"].items()))
    if told["repeats_because"]:
        parts.append("  in vain  " + ", ".join(f"{why} {count:,}" for why, count in told["repeats_because"].items()))
    if (slowest := result.balance.slowest) and result.balance.recoveries_s[-1] >= SLOW_S:
        parts.append(f"  slowest  job {slowest.job}, {slowest.what}")
        parts += [f"    {line}" for line in slowest.lines]
    if result.directory:
        parts.append(f"  {result.verdict}: ledger and logs are in {result.directory}")
    if result.why:
        parts.append(result.why)
    for culprit in result.balance.culprits[:SHOWN]:
        parts.append(f"  job {culprit.job}: {culprit.what}" if culprit.job >= 0 else f"  {culprit.what}")
        parts += [f"    {line}" for line in culprit.lines]
    if result.balance.wrong > SHOWN:
        parts.append(f"  … and {result.balance.wrong - SHOWN:,} more")
    return "\n".join(parts)


class ProgressLine:
    """One line on a terminal, drawn again and again."""

    def __init__(self) -> None:
        self._live = sys.stderr.isatty()

    def __call__(self, line: str) -> None:
        if self._live:
            sys.stderr.write(f"\r\x1b[2K{line}")
            sys.stderr.flush()

    def end(self) -> None:
        """Wipe it."""
        if self._live:
            sys.stderr.write("\r\x1b[2K")
            sys.stderr.flush()
