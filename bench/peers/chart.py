"""A bar chart as one self-contained SVG: no-op jobs a second with two processes, on a log scale; readable on light and dark."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any
from xml.sax.saxutils import escape

from report import label, noop2, rounds

WIDTH, LEFT, RIGHT, TOP, STEP, BAR = 760, 230, 90, 64, 26, 16

STYLE = """
  svg { color-scheme: light dark; font: 13px system-ui, -apple-system, "Segoe UI", sans-serif }
  text { fill: #24292f } .dim { fill: #57606a; font-size: 11px } .head { font-size: 15px; font-weight: 600 }
  .back { fill: #ffffff } .grid { stroke: #d0d7de }
  .bar { fill: #8c959f } .ours { fill: #0969da } text.ours { fill: #24292f; font-weight: 600 }
  @media (prefers-color-scheme: dark) {
    text, text.ours { fill: #e6edf3 } .dim { fill: #9198a1 }
    .back { fill: #0d1117 } .grid { stroke: #3d444d } .bar { fill: #656c76 } rect.ours { fill: #4493f8 }
  }
"""


def svg(found: dict[str, Any]) -> str:
    """The document."""
    rows = sorted((row for row in found["rows"] if noop2(row)), key=noop2, reverse=True)
    if not rows:
        raise SystemExit("nothing to draw: no peer has run noop with 2 processes")
    height = TOP + STEP * len(rows) + 34
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" role="img" '
        f'aria-label="No-op jobs a second of {len(rows)} job queues">'
    )
    return "\n".join((head, f"<style>{STYLE}</style>", *_lines(found, rows, height), "</svg>\n"))


def _lines(found: dict[str, Any], rows: list[dict[str, Any]], height: int) -> Iterator[str]:
    low, high = _decades([noop2(row) for row in rows])

    def x(rate: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (math.log10(rate) - low) / (high - low)

    # Of its own: who reads a page in dark on a light system would see dark on dark.
    yield f'<rect class="back" width="{WIDTH}" height="{height}" rx="6"/>'
    yield '<text class="head" x="12" y="24">No-op jobs per second, two worker processes (log scale)</text>'
    about = found["about"]
    where = f"{about['cores']} cores of {about['cpu']}, Python {about['python']}, {about['redis']}, {about['postgres']}"
    yield f'<text class="dim" x="12" y="43">{escape(where)}</text>'
    bottom = TOP + STEP * len(rows)
    for power in range(low, high + 1):
        at = x(10**power)
        yield f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP - 6}" y2="{bottom}"/>'
        yield f'<text class="dim" x="{at:.1f}" y="{bottom + 16}" text-anchor="middle">{10**power:,}</text>'
    for number, row in enumerate(rows):
        yield from _bar(row, TOP + STEP * number, x(noop2(row)))
    date = escape(f"{about['date']}, {rounds(about)}")
    yield f'<text class="dim" x="12" y="{height - 18}">{date}</text>'


def _bar(row: dict[str, Any], y: int, end: float) -> Iterator[str]:
    ours = " ours" if row["peer"] == "fastjobs" else ""
    store = "Redis" if row["store"] == "redis" else "Postgres"
    yield f'<text class="name{ours}" x="{LEFT - 10}" y="{y + 13}" text-anchor="end">{escape(label(row))}, {store}</text>'
    yield f'<rect class="bar{ours}" x="{LEFT}" y="{y}" width="{max(end - LEFT, 1):.1f}" height="{BAR}" rx="2"/>'
    yield f'<text class="rate{ours}" x="{end + 6:.1f}" y="{y + 13}">{noop2(row):,.0f}</text>'


def _decades(rates: list[float]) -> tuple[int, int]:
    """Whole powers of ten around them; the least one has a bar too."""
    low = math.ceil(math.log10(min(rates))) - 1
    return low, max(math.ceil(math.log10(max(rates))), low + 1)
