"""``fastjobs enqueue``: one job from the command line, or one per line of a file."""

from __future__ import annotations

import asyncio
import os
import sys
from difflib import get_close_matches
from pathlib import Path
from typing import IO, Any, NamedTuple

import click
import msgspec

from fastjobs import clock
from fastjobs.calls import Call, JobHandle
from fastjobs.cli.fields import build, field_options, given
from fastjobs.cli.lines import Line, Lines
from fastjobs.cli.target import open_app, run, target_options
from fastjobs.cli.terminal import LiveLine, bar, is_live, plural, printable
from fastjobs.durations import duration_text
from fastjobs.errors import ConfigError, EnqueueManyError, FastjobsError, SerializationError, UnknownJobError
from fastjobs.options import EnqueueOptions
from fastjobs.queue import JobQueue
from fastjobs.streams import turn_to_nowhere

EXIT_REFUSED = 1
"""Lines were refused; the others are stored."""


@click.command("enqueue")
@click.argument("name")
@click.argument("data", required=False, metavar="[JSON]")
@click.option("--jsonl", metavar="FILE", help="One payload a line; - reads stdin.")
@field_options(EnqueueOptions, skip=("retry",))
@target_options
def command(
    name: str,
    data: str | None,
    jsonl: str | None,
    app: str | None,
    app_dir: Path | None,
    backend: str | None,
    **values: Any,
) -> None:
    """Store a job NAME with its arguments as JSON: {"path": "a.png"}. Prints its id.

    With --jsonl each line of FILE is the arguments of one job. Lines that are refused are told on stderr with their number and
    reason; the others are stored, and the exit code is 1.
    """
    if data is not None and jsonl is not None:
        raise ConfigError("give the arguments as JSON, or a file of them with --jsonl, not both")
    options = build(lambda: EnqueueOptions(**given(EnqueueOptions, values)))
    jobs = open_app(app, app_dir, backend, create=True)
    _check_known(jobs, name)
    if jsonl is None:
        call = _prepare(jobs, name, os.fsencode("{}" if data is None else data), options)
        _show_id(run(jobs, lambda: jobs.enqueue(call)))
        return
    with _opened(jsonl) as stream:
        bulk = Bulk(jobs, name, options, stream, Progress(sys.stderr, _size_of(stream)))
        try:
            run(jobs, bulk.store)
        except KeyboardInterrupt:
            click.echo(
                f"interrupted: {bulk.summary()}; all up to line {bulk.done_line:,} is done, later lines may be", err=True
            )
            raise
    click.echo(bulk.summary())
    if bulk.refused:
        raise click.exceptions.Exit(EXIT_REFUSED)


def _show_id(handle: JobHandle) -> None:
    """Print the id; if that fails, say at least that the job is stored, lest it be enqueued again."""
    try:
        click.echo(handle.id)
    except BrokenPipeError:
        raise
    except OSError as error:
        turn_to_nowhere(1)
        raise click.ClickException(
            f"the job is stored, as {handle.id}, but stdout cannot be written: {error.strerror}"
        ) from error


class Progress:
    """How far a bulk enqueue is, on a terminal; elsewhere silent."""

    def __init__(self, stream: Any, size: int | None) -> None:
        self._stream = stream
        self._size = size
        self._line = LiveLine(stream) if is_live(stream) else None

    def show(self, read_bytes: int, stored: int, refused: int, seconds: float) -> None:
        """Draw the line, at most four times a second."""
        if self._line is None:
            return
        share = ""
        if self._size:
            share = f"{bar(read_bytes / self._size)} · "
        rate = stored / max(seconds, 1e-3)
        self._line.draw(f"{share}{stored:,} stored · {refused:,} refused · {rate:,.0f} jobs/s")

    def tell(self, text: str) -> None:
        """A line of its own, above the progress."""
        if self._line is None:
            self._stream.write(f"{text}\n")
        else:
            self._line.print(text)

    def end(self) -> None:
        """Take the line away."""
        if self._line is not None:
            self._line.erase()


class Batch(NamedTuple):
    """Calls of consecutive lines."""

    calls: list[Call]
    numbers: list[int]  #: their lines


class Bulk:
    """Stores one job per line of a stream, in constant memory, each as soon as the stream gives it."""

    def __init__(self, jobs: JobQueue, name: str, options: EnqueueOptions, stream: IO[bytes], progress: Progress) -> None:
        self.stored = 0
        self.refused = 0
        self.done_line = 0  #: last line that is stored or refused
        self._jobs = jobs
        self._name = name
        self._options = options
        self._limit = jobs.max_payload_bytes
        self._stream = stream
        self._lines = Lines(stream, self._limit)
        self._progress = progress
        self._began = clock.monotonic()

    async def store(self) -> None:
        """Until the stream ends. EnqueueManyError says after which line to go on when the store fails."""
        try:
            while not self._lines.ended:
                if lines := await self._next_lines():
                    await self._store(lines)
                    self.done_line = lines[-1].number
                    self._show()
        finally:
            self._progress.end()

    def summary(self) -> str:
        """What was done, in one line."""
        seconds = clock.monotonic() - self._began
        refused = f" · {plural(self.refused, 'line')} refused" if self.refused else ""
        rate = self.stored / max(seconds, 1e-3)
        return f"{plural(self.stored, 'job')} stored{refused} · {duration_text(seconds)} · {rate:,.0f} jobs/s"

    async def _next_lines(self) -> list[Line]:
        """What the stream gives next. Waits for a slow pipe without blocking the loop, which has replies to read."""
        ready = asyncio.Event()
        loop = asyncio.get_running_loop()
        try:
            loop.add_reader(self._stream.fileno(), ready.set)
        except OSError:  # a regular file, always ready: epoll takes none
            return self._lines.next()
        try:
            await ready.wait()
        finally:
            loop.remove_reader(self._stream.fileno())
        return self._lines.next()

    async def _store(self, lines: list[Line]) -> None:
        batch = self._prepare(lines)
        try:
            self.stored += await self._jobs.enqueue_many(batch.calls)
        except EnqueueManyError as error:
            raise self._stopped(error, batch) from error

    def _prepare(self, lines: list[Line]) -> Batch:
        batch = Batch([], [])
        for number, text in lines:
            if text is not None and not text.strip():
                continue
            try:
                if text is None:
                    raise SerializationError(f"longer than the payload limit of {self._limit:,} bytes")
                call = _prepare(self._jobs, self._name, text, self._options)
            except FastjobsError as error:
                self.refused += 1
                self._progress.tell(f"line {number:,} refused: {printable(str(error))}")
            else:
                batch.calls.append(call)
                batch.numbers.append(number)
        return batch

    def _show(self) -> None:
        self._progress.show(self._lines.read_bytes, self.stored, self.refused, clock.monotonic() - self._began)

    def _stopped(self, error: EnqueueManyError, batch: Batch) -> EnqueueManyError:
        self.stored += error.accepted
        first = batch.numbers[error.accepted] if error.accepted < len(batch.numbers) else batch.numbers[-1] + 1
        unsure = f" (the next {error.uncertain:,} may or may not be)" if error.uncertain else ""
        cause = error.__cause__ or error
        return EnqueueManyError(
            f"{cause}\n  {plural(self.stored, 'job')} stored{unsure}; once the store is back, go on from line {first}:"
            f" tail -n +{first} FILE | fastjobs enqueue {self._name} --jsonl -",
            accepted=self.stored,
            uncertain=error.uncertain,
        )


def _prepare(jobs: JobQueue, name: str, text: bytes, options: EnqueueOptions) -> Call:
    """The call with its arguments as JSON *text*. SerializationError for what the job does not take."""
    try:
        text.decode()
        data = msgspec.json.decode(text)
    except UnicodeDecodeError as error:
        raise SerializationError(f"no valid UTF-8: {error.reason} 0x{text[error.start]:02x} (byte {error.start})") from error
    except (msgspec.DecodeError, RecursionError) as error:
        raise SerializationError(f"no valid JSON: {error}") from error
    try:
        return jobs.prepare(name, data, options)
    except TypeError as error:
        raise SerializationError(str(error)) from error


def _check_known(jobs: JobQueue, name: str) -> None:
    """UnknownJobError if the app has handlers, but none of that name."""
    names = sorted(jobs.registry.names())
    if names and name not in names:
        close = get_close_matches(name, names, n=1)
        hint = f"did you mean {close[0]}?" if close else f"it has: {', '.join(names[:20])}"
        raise UnknownJobError(f"{jobs.module} has no job {name!r}; {hint}")


def _opened(path: str) -> IO[bytes]:
    """The file *path*, or stdin for "-". ConfigError if it cannot be read."""
    try:
        return click.open_file(path, "rb")
    except OSError as error:
        raise ConfigError(f"--jsonl: {path}: {error.strerror}") from error


def _size_of(stream: IO[bytes]) -> int | None:
    """Bytes of a regular file; None for a pipe."""
    try:
        status = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return None
    return status.st_size or None
