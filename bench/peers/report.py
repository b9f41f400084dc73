"""What was found, as Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from typing import Any

LABELS = {"celery": "celery {}, prefork", "celery_solo": "celery {}, solo"}
HEADS = (
    "enqueue",
    "noop, 1 process",
    "noop, 2 processes",
    "fastjobs ÷ it",
    "sleep 10 ms",
    "cpu 2 ms",
    "p50 ms",
    "p99 ms",
    "MB",
)


def label(row: dict[str, Any]) -> str:
    """The peer and its version."""
    return LABELS.get(row["peer"], f"{row['peer']} {{}}").format(row["version"]).strip()


def rounds(about: dict[str, Any]) -> str:
    """How many made a figure."""
    return f"median of {about['rounds']} rounds" if about["rounds"] > 1 else "one round"


def rates(row: dict[str, Any], kind: str, processes: int, key: str = "drain_per_s") -> list[float]:
    """One per round."""
    return [one[key] for one in row["rounds"] if (one["work"], one["processes"]) == (kind, processes)]


def noop2(row: dict[str, Any]) -> float:
    """The figure that rows are sorted by; 0 if there is none."""
    found = rates(row, "noop", 2)
    return statistics.median(found) if found else 0.0


def table(found: dict[str, Any], *, brief: bool = False) -> Iterator[str]:
    """The whole answer, line by line; *brief*: medians alone."""
    about = found["about"]
    machine = f"{about['cores']} cores of {about['cpu']}, Python {about['python']}"
    yield f"{about['date']}: {machine}, {about['redis']}, {about['postgres']}."
    yield f"Jobs/s, {rounds(about)}{'' if brief else ' (least to most)'}, with 1 or 2 worker processes; sleep and cpu with 2."
    yield ""
    yield f"| peer | store | {' | '.join(HEADS)} | a killed worker's job |"
    yield f"|---|---|{'--:|' * len(HEADS)}---|"
    ours = {row["store"]: row for row in found["rows"] if row["peer"] == "fastjobs"}
    for row in sorted(found["rows"], key=lambda row: (row["store"], -noop2(row))):
        cells = (label(row), row["store"], *_cells(row, ours.get(row["store"]), brief), row["guarantee"])
        yield f"| {' | '.join(cells)} |"
    troubles = [(label(row), row["store"], trouble) for row in found["rows"] for trouble in row["troubles"]]
    if troubles:
        yield ""
    for name, store, trouble in troubles:
        yield f"- {name} on {store}: {trouble}"


def _cells(row: dict[str, Any], ours: dict[str, Any] | None, brief: bool) -> Iterator[str]:
    enqueue = [one["enqueue_per_s"] for one in row["rounds"] if one["work"] == "noop"]
    yield _spread(enqueue, brief)
    yield _spread(rates(row, "noop", 1), brief)
    yield _spread(rates(row, "noop", 2), brief)
    same = row["peer"] == "fastjobs" or ours is None or not noop2(row)
    yield "" if same else f"{noop2(ours or row) / noop2(row):,.1f}×"
    yield _spread(rates(row, "sleep", 2), brief)
    yield _spread(rates(row, "cpu", 2), brief)
    late = row.get("latency") or {}
    yield from (f"{late[key]:.1f}" if key in late else "" for key in ("p50_ms", "p99_ms"))
    memory = [one["worker_mb"] for one in row["rounds"]]
    yield f"{max(memory):.0f}" if memory else ""


def _spread(found: Sequence[float], brief: bool) -> str:
    if not found:
        return ""
    middle = f"{statistics.median(found):,.0f}"
    return middle if brief or len(found) == 1 else f"{middle} ({min(found):,.0f} to {max(found):,.0f})"
