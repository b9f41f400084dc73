"""What a supervisor shows: the first lines, the line that counts, its children's output above it, and the last line."""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from typing import Final, TextIO

import fastjobs
from fastjobs.cli.terminal import LiveLine, coloured, is_live, plural
from fastjobs.durations import duration_text
from fastjobs.logs import Style
from fastjobs.progress import Progress
from fastjobs.supervisor import Launch

log = logging.getLogger("fastjobs")

NAMES_SHOWN: Final = 20

FIRST_S: Final = 10.0
"""Before that there may be too few looks for a rate of the last seconds: then it is that since the start."""


class Screen:
    """Shows a supervisor's run on *stream*: drawn in place on a terminal, elsewhere a log line where something has changed.

    A stream that cannot be written to any more stops nothing.
    """

    def __init__(self, style: Style, stream: TextIO) -> None:
        self.live = is_live(stream) and style == "text"
        self._stream = stream
        self._line = LiveLine(stream)
        self._style = style
        self._last = ""
        self._shown: tuple[int | None, ...] = ()
        self._durable = False

    def started(self, launch: Launch) -> None:
        """Say what is about to run."""
        self._durable = launch.facts.scheme != "memory"
        for line in banner(launch):
            self._tell(line)
        if not launch.facts.jobs:
            self._tell("  no job is registered here: is a module missing in JobQueue(include=[…])?")

    def report(self, progress: Progress) -> None:
        """Show how far it has come."""
        if progress.final:
            self._tell(summary(progress))
            if progress.dead and self._durable:
                self._tell(f"{self._red('✗')} {plural(progress.dead, 'job')} died; why: fastjobs dead list")
            if progress.elsewhere:
                self._tell(f"{plural(progress.elsewhere, 'job')} in queues that were not served here: fastjobs stats")
            left = (progress.ready or 0) + (progress.delayed or 0)
            if left and not self._durable:
                self._tell(f"{plural(left, 'job')} not done ended with this supervisor; to keep jobs set FASTJOBS_URL")
            return
        text = counts(progress)
        if self.live:
            self._last = f"{time.strftime('%H:%M:%S')}  {text}"
            with contextlib.suppress(OSError):
                self._line.draw(self._last)
            return
        seen = (progress.ready, progress.delayed, progress.running, progress.done, progress.retried, progress.dead)
        if seen != self._shown:  # an idle fleet is quiet
            self._shown = seen
            log.info("%s", text)

    def output(self, stream: int, lines: bytes) -> None:
        """Pass on what children wrote to their stdout (1) or stderr (2), above the live line."""
        target = sys.stdout if stream == 1 else sys.stderr
        with contextlib.suppress(OSError):
            self._line.erase()
            target.flush()
            target.buffer.write(lines)
            target.buffer.flush()
            if self._last:
                self._line.draw(self._last, now=True)

    def _tell(self, line: str) -> None:
        """One of the first and last lines."""
        with contextlib.suppress(OSError):
            if self._style == "json":
                log.info("%s", line.strip())
            else:
                self._line.print(line)

    def _red(self, sign: str) -> str:
        return coloured(sign, self._stream, fg="red")


def banner(launch: Launch) -> list[str]:
    """The first lines: version, app, store, workers; jobs; queues."""
    facts, options = launch.facts, launch.options
    store = "memory (in this supervisor: jobs end with it)" if facts.scheme == "memory" else facts.url
    fleet = f"{plural(launch.workers, 'worker')} × {options.concurrency}"
    again = " · new code" if launch.reloaded else ""
    names = [name if queue == "default" else f"{name} ({queue})" for name, queue in facts.jobs.items()]
    return [
        f"fastjobs {fastjobs.__version__} · {facts.spec} · {store} · {fleet}{again}",
        f"  jobs    {_listed(names)}",
        f"  queues  {_listed(list(options.queues or facts.queues))}",
    ]


def counts(progress: Progress) -> str:
    """``ready 81,200 · running 800 · done 1,204,331 · retry 12 · dead 0 · 241,300 jobs/s``."""
    parts = [] if progress.ready is None else [f"ready {progress.ready:,}"]
    if progress.delayed:
        parts.append(f"delayed {progress.delayed:,}")
    parts += [
        f"running {progress.running:,}",
        f"done {progress.done:,}",
        f"retry {progress.retried:,}",
        f"dead {progress.dead:,}",
        f"{progress.rate or progress.overall_rate if progress.elapsed_s < FIRST_S else progress.rate:,.0f} jobs/s",
    ]
    if progress.store_down:
        parts.insert(0, "store away")
    if progress.draining:
        parts.insert(0, "draining")
    return " · ".join(parts)


def summary(progress: Progress) -> str:
    """``done 1,205,127 · retried 12 · dead 0 · released 0 · 5.0 s · 241,025 jobs/s``."""
    parts = [
        f"done {progress.done:,}",
        f"retried {progress.retried:,}",
        f"dead {progress.dead:,}",
        f"released {progress.released:,}",
    ]
    if progress.delayed:
        parts.append(f"delayed left {progress.delayed:,}")
    return " · ".join([*parts, duration_text(progress.elapsed_s), f"{progress.overall_rate:,.0f} jobs/s"])


def _listed(names: list[str]) -> str:
    more = [f"and {len(names) - NAMES_SHOWN} more"] if len(names) > NAMES_SHOWN else []
    return " · ".join([*names[:NAMES_SHOWN], *more]) or "none"
