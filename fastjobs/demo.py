"""A demonstration on files that every machine has: measure each module of Python's own standard library, one job a file.

``fastjobs demo`` starts eight workers, enqueues about two thousand files, and counts: as many results as files, none missing,
none twice. Each job reads, hashes and parses its file and appends one line of JSON. A worker that is killed between that and
settling leaves a job that is run again: at the end such repeats are counted and dropped, as any reader of results must.
"""

from __future__ import annotations

import ast
import asyncio
import hashlib
import os
import select
import signal
import sys
import sysconfig
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NoReturn

import msgspec

from fastjobs import clock
from fastjobs.backends import scheme_of
from fastjobs.durations import duration_text
from fastjobs.errors import BackendError, ConfigError
from fastjobs.local import broker_answers
from fastjobs.queue import JobQueue

QUEUE: Final = "demo"

CONCURRENCY: Final = 4
"""Files at once per worker: it is work for the CPU, of which no laptop has eight times a hundred."""

POLL_S: Final = 0.2
"""How often the producer looks whether all results are there."""


class Longest(msgspec.Struct, frozen=True):
    """The longest function of a file."""

    name: str
    lines: int
    at: int  #: its first line


class Measured(msgspec.Struct, frozen=True):
    """What one job found out: a line of the results."""

    path: str
    bytes: int
    sha256: str
    lines: int
    definitions: int  #: functions and classes
    longest: Longest | None  #: None: no function, or no valid Python
    problem: str  #: why it cannot be parsed; "" if it can
    pid: int  #: of the worker


@asynccontextmanager
async def quiet() -> AsyncIterator[None]:
    """Once per worker: odd escapes in old files are none of our business."""
    warnings.simplefilter("ignore", SyntaxWarning)
    yield


jobs = JobQueue(lifespan=quiet)


@jobs.job(queue=QUEUE, max_attempts=2)
def measure(path: str, out: str) -> None:
    """Measure the file *path* and append the result to the file *out*. A plain function: it runs in a thread."""
    append(out, measured(path, Path(path).read_bytes()))


def measured(path: str, source: bytes) -> Measured:
    """Size, hash, lines, definitions and longest function of *source*. What is no valid Python is a result too."""
    functions: list[Longest] = []
    definitions, problem = 0, ""
    try:
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                definitions += 1
                if not isinstance(node, ast.ClassDef):
                    functions.append(Longest(node.name, (node.end_lineno or node.lineno) - node.lineno + 1, node.lineno))
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        definitions, functions, problem = 0, [], f"{type(error).__name__}: {error}"
    return Measured(
        path=path,
        bytes=len(source),
        sha256=hashlib.sha256(source).hexdigest(),
        lines=source.count(b"\n") + (not source.endswith(b"\n") and bool(source)),
        definitions=definitions,
        longest=max(functions, key=lambda function: function.lines, default=None),
        problem=problem,
        pid=os.getpid(),
    )


def append(out: str, result: Measured) -> None:
    """One line in one write to a file opened for appending: the lines of many processes stay whole."""
    line = msgspec.json.encode(result) + b"\n"
    file = os.open(out, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        if os.write(file, line) < len(line):
            raise OSError(f"{out}: the disk is full")
    finally:
        os.close(file)


def python_files(root: Path) -> Iterator[str]:
    """All modules under *root*, in order; of a standard library without what was installed into it."""
    for directory, below, names in os.walk(root):
        below[:] = sorted(set(below) - {"__pycache__", "site-packages", "dist-packages"})
        for name in sorted(names):
            path = os.path.join(directory, name)
            # Names that are no UTF-8 cannot stand in JSON.
            if name.endswith(".py") and os.path.isfile(path) and path.isprintable():
                yield path


# -- the run ----------------------------------------------------------------------------------------------------------


class Follower:
    """Reads the results as they are appended; `seen` has the files they are of."""

    def __init__(self, out: Path) -> None:
        self.seen: set[str] = set()
        self._out = out
        self._at = 0
        self._rest = b""

    def read(self) -> None:
        """Take in what is new."""
        with self._out.open("rb") as file:
            file.seek(self._at)
            new = file.read()
        self._at += len(new)
        *lines, self._rest = (self._rest + new).split(b"\n")
        self.seen.update(msgspec.json.decode(line, type=Measured).path for line in lines)


class Run:
    """One demonstration: files under *root* (the standard library), results to the new file *out*, jobs on *backend*."""

    def __init__(self, root: Path | None, out: Path | None, backend: str | None) -> None:
        """ConfigError if *out* is there already or the demo runs already; StoreUnavailable if there is no store."""
        self.root = root or Path(sysconfig.get_path("stdlib"))
        self.paths = list(python_files(self.root))
        if backend is not None:
            jobs.use(backend)
        if scheme_of(jobs.url) != "memory":
            asyncio.run(_reach())
        elif broker_answers(jobs.app_id):
            raise ConfigError("a supervisor of the demo runs here already; stop it first, or give this one a --backend")
        self.out = _new_file(out)
        self.seconds = 0.0
        self._report: Report | None = None

    def beside(self, supervise: Callable[[], int]) -> int:
        """Run *supervise* in this process and the producer in another beside it, as a web service or script would be.

        Returns what *supervise* does; the producer ends it by SIGTERM when all results are there.
        """
        life, ours = os.pipe()
        began = clock.monotonic()
        if not os.fork():
            os.close(ours)
            _run_producer(self.paths, self.out, life)
        os.close(life)
        try:
            return supervise()
        finally:
            os.close(ours)  # the producer need not wait any longer
            self.seconds = clock.monotonic() - began

    @property
    def result(self) -> Report:
        """What came of it, read back from the file."""
        if self._report is None:
            self._report = report(self.paths, self.out)
        return self._report

    def summary(self) -> Iterator[str]:
        """For people."""
        return described(self.result, self.root, self.out, self.seconds)


def _new_file(out: Path | None) -> Path:
    """An empty file at *out*, or somewhere among the system's temporary files. ConfigError if *out* is there already."""
    if out is None:
        out = Path(tempfile.mkdtemp(prefix="fastjobs-demo-"), "results.jsonl")
    try:
        out.touch(exist_ok=False)
    except OSError as error:
        raise ConfigError(f"--out: {out}: {error.strerror}; results go to a new file") from error
    return out.absolute()


async def _reach() -> None:
    """Before eight workers say that they cannot. StoreUnavailable, or what else is wrong with the store."""
    try:
        await jobs.migrate()
        await jobs.stats()
    finally:
        await jobs.close()


def _run_producer(paths: Sequence[str], out: Path, life: int) -> NoReturn:
    """The producer's process, to its end. *life*: a pipe that ends with its parent, the supervisor, or when that is done."""
    supervisor = os.getppid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # ^C is the supervisor's to handle
    try:
        asyncio.run(_produce(paths, out, life))
    except BackendError as error:
        if not _has_ended(life):
            print(f"error: {error}", file=sys.stderr, flush=True)
    except BaseException:
        traceback.print_exc()
    if os.getppid() == supervisor and not _has_ended(life):
        os.kill(supervisor, signal.SIGTERM)
    os._exit(0)


def _has_ended(life: int) -> bool:
    return bool(select.select([life], [], [], 0)[0])


async def _produce(paths: Sequence[str], out: Path, life: int) -> None:
    """Enqueue a job a file, then wait for the results."""
    while scheme_of(jobs.url) == "memory" and not broker_answers(jobs.app_id):
        if _has_ended(life):
            return
        await asyncio.sleep(POLL_S / 4)
    async with jobs:
        await jobs.enqueue_many(measure.prepare(path, str(out)) for path in paths)
        follower = Follower(out)
        while not _has_ended(life):
            idle = await _is_idle()
            follower.read()  # after the look at the store: what was running then has been written since
            if idle or len(follower.seen) == len(paths):
                return
            await asyncio.sleep(POLL_S)


async def _is_idle() -> bool:
    """Whether nothing of the demo's queue waits and nothing at all runs: what has no result by then is dead."""
    stats = await jobs.stats()
    return not stats.running and not any(queue.ready or queue.delayed for queue in stats.queues if queue.queue == QUEUE)


# -- what came of it --------------------------------------------------------------------------------------------------


@dataclass
class Report:
    """The results put together."""

    files: int  #: that were to be measured
    results: int = 0
    repeated: int = 0  #: results beyond the first of a file, dropped: a worker died between writing and settling
    missing: list[str] = field(default_factory=list)
    lines: int = 0
    definitions: int = 0
    bytes: int = 0
    unparsable: int = 0
    longest: list[tuple[Longest, str]] = field(default_factory=list)  #: the five longest functions, and where they are
    by_worker: Counter[int] = field(default_factory=Counter)


def report(paths: Sequence[str], out: Path) -> Report:
    """Read the results back, leave one a file in *out*, and count."""
    found: dict[str, Measured] = {}
    kept: list[bytes] = []
    result = Report(len(paths))
    with out.open("rb") as lines:
        for line in lines:
            measured = msgspec.json.decode(line, type=Measured)
            result.by_worker[measured.pid] += 1
            if measured.path in found:
                result.repeated += 1
            else:
                found[measured.path] = measured
                kept.append(line)
    result.results = len(found)
    if result.repeated:
        fresh = out.with_name(f"{out.name}.new")
        fresh.write_bytes(b"".join(kept))
        fresh.replace(out)
    result.missing = [path for path in paths if path not in found]
    for each in found.values():
        result.lines += each.lines
        result.definitions += each.definitions
        result.bytes += each.bytes
        result.unparsable += bool(each.problem)
    functions = [(each.longest, each.path) for each in found.values() if each.longest]
    result.longest = sorted(functions, key=lambda item: (-item[0].lines, item[1]))[:5]
    return result


def described(result: Report, root: Path, out: Path, seconds: float) -> Iterator[str]:
    """*result* for people."""
    measured = result.files - len(result.missing)
    rate = measured / max(seconds, 1e-3)
    yield f"files        {result.files:,} under {root}"
    workers = "1 worker" if len(result.by_worker) == 1 else f"{len(result.by_worker)} workers"
    counts = f"{measured:,} · missing {len(result.missing):,} · repeated {result.repeated:,}"
    yield f"results      {counts} · by {workers} in {duration_text(seconds)} · {rate:,.0f} jobs/s"
    yield f"contents     {result.lines:,} lines · {result.bytes:,} bytes · {result.definitions:,} definitions"
    if result.unparsable:
        yield f"             files that are no valid Python (tests of the parser, mostly): {result.unparsable:,}"
    for place, (function, path) in enumerate(result.longest):
        title = "" if place else "longest"
        yield f"{title:<13}{function.lines:>5,} lines  {function.name}  {os.path.relpath(path, root)}:{function.at}"
    for path in result.missing[:10]:
        yield f"missing      {path}"
    yield f"all results  {out}"
