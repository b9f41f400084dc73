"""What the commands print with: numbers, tables, colours where they are wanted, and the line that is redrawn in place."""

from __future__ import annotations

import os
import sys
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Final, TextIO

import click

from fastjobs import clock
from fastjobs.errors import ConfigError

REDRAW_S: Final = 0.25
"""The live line is drawn at most so often."""

ERASE: Final = "\r\x1b[2K"


def is_live(stream: TextIO) -> bool:
    """Whether *stream* is a terminal on which a line can be redrawn."""
    return stream.isatty() and os.environ.get("TERM", "") != "dumb"


def coloured(text: str, stream: TextIO, **style: bool | str) -> str:
    """*text* in a colour, where *stream* is a terminal and NO_COLOR is not set. It says the same without."""
    if not is_live(stream) or os.environ.get("NO_COLOR"):
        return text
    return click.style(text, **style)  # type: ignore[arg-type]


def columns_of(stream: TextIO) -> int:
    """How wide the terminal of *stream* is; 80 if nobody knows. COLUMNS in the environment wins."""
    try:
        own = os.get_terminal_size(stream.fileno())
    except (OSError, ValueError):
        own = os.terminal_size((80, 24))
    asked = os.environ.get("COLUMNS", "")
    return int(asked) if asked.isdecimal() and int(asked) else own.columns or 80


def width_of(text: str) -> int:
    """Columns of *text* in a terminal: wide characters take two, combining ones none."""
    return sum(0 if unicodedata.combining(sign) else 2 if unicodedata.east_asian_width(sign) in "WF" else 1 for sign in text)


def cut(text: str, width: int) -> str:
    """*text* in at most *width* columns, an ellipsis where it was cut."""
    if width_of(text) <= width:
        return text
    kept, used = [], 0
    for sign in text:
        used += width_of(sign)
        if used > width - 1:
            break
        kept.append(sign)
    return "".join(kept) + "…" if width > 0 else ""


def printable(text: str) -> str:
    """*text* in one line and harmless to a terminal: control characters, also those of an escape sequence, become `?`."""
    return "".join(sign if sign.isprintable() else " " if sign.isspace() else "?" for sign in text)


def confirm_deletion(question: str) -> None:
    """Ask, and abort unless told yes. ConfigError where there is no terminal to ask at."""
    if not sys.stdin.isatty():
        raise ConfigError("nothing was deleted: there is no terminal to ask at; add --yes")
    click.confirm(question, abort=True, err=True)


def bar(share: float) -> str:
    """``██████░░░░░░░░░░░░░░  30 %``."""
    part = min(max(share, 0.0), 1.0)
    return f"{'█' * round(20 * part):░<20} {100 * part:3.0f} %"


class LiveLine:
    """One line at the bottom of a terminal, redrawn in place at most four times a second."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._drawn_at = float("-inf")
        self._shown = False

    def draw(self, text: str, *, now: bool = False) -> None:
        """Show *text*, cut to the terminal's width; nothing if the last drawing is less than 250 ms old, but for *now*."""
        moment = clock.monotonic()
        if not now and moment - self._drawn_at < REDRAW_S:
            return
        self._drawn_at = moment
        self._shown = True
        columns = columns_of(self._stream)
        # A line as wide as the terminal would wrap on some; the cursor goes back so that what others print starts at its head.
        self._stream.write(f"{ERASE}{cut(text, columns - 1)}\r")
        self._stream.flush()

    def print(self, text: str) -> None:
        """Print *text* above the line."""
        self.erase()
        self._stream.write(f"{text}\n")
        self._stream.flush()

    def erase(self) -> None:
        """Take the line away; the next `draw` shows it at once."""
        if self._shown:
            self._stream.write(ERASE)
            self._stream.flush()
        self._shown = False
        self._drawn_at = float("-inf")


def table(head: Sequence[str], rows: Iterable[Sequence[str | int]], *, columns: int | None = None) -> list[str]:
    """Lines of a table: whole numbers to the right with thousands separated, texts to the left, the last cut at *columns*."""
    rows = list(rows)
    cells = [[f"{cell:,}" if isinstance(cell, int) else printable(cell) for cell in row] for row in rows]
    right = [bool(rows) and isinstance(rows[0][index], int) for index in range(len(head))]
    widths = [max(width_of(line[index]) for line in (head, *cells)) for index in range(len(head))]
    lines = []
    for line in (list(head), *cells):
        padded = []
        for cell, width, to_the_right in zip(line, widths, right, strict=True):
            gap = " " * (width - width_of(cell))
            padded.append(gap + cell if to_the_right else cell + gap)
        text = "  ".join(padded).rstrip()
        lines.append(text if columns is None else cut(text, columns))
    return lines


def plural(count: int, what: str) -> str:
    """``1 job``, ``81,200 jobs``."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"
