"""The scenarios of a measurement: enqueue, drain by real worker processes, count, and the time from enqueue to start."""

from __future__ import annotations

import asyncio
import random
import signal
import socket
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import IO, Final

import msgspec

from fastjobs import clock
from fastjobs.benchmark.app import QUEUE, STAMP, arrive, burn, carry, jobs, noop, pause, stumble
from fastjobs.benchmark.fleet import Look, Options
from fastjobs.benchmark.meters import StoreMeter
from fastjobs.benchmark.place import start_own
from fastjobs.calls import Call
from fastjobs.errors import WorkerError

DELAY_S: Final = 1.0
WARM_UP: Final = 50
"""Latencies that are not counted: connections are made, pages are touched."""

SILENCE_S: Final = 60.0
"""A fleet that gets no further for so long has failed."""

END_S: Final = 20.0
"""A process that needs longer to end is killed."""


class Load(msgspec.Struct, frozen=True):
    """What is enqueued and drained."""

    about: str
    call: Callable[[int], Call]  #: by number
    share: float = 1.0  #: of the jobs asked for
    concurrency: int = 100
    retried: float = 0.0  #: share of the jobs that run twice


LOADS: Final[dict[str, Load]] = {
    "noop": Load("jobs that do nothing", noop.prepare),
    "payload": Load("a payload of 1 KiB", lambda n: carry.prepare("x" * 1024), 0.3),
    "large": Load("a payload of 100 KiB", lambda n: carry.prepare("x" * 102_400), 0.005),
    "retry": Load("one of ten fails once", stumble.prepare, 0.3, retried=0.1),
    "delayed": Load(
        "every other one delayed by 1 s",
        lambda n: noop.options(delay=DELAY_S if n % 2 else 0).prepare(n),
        0.3,
    ),
    "sleep": Load("jobs that wait 10 ms, 1,000 at once per worker", lambda n: pause.prepare(0.01), 0.3, concurrency=1000),
    "nap": Load("jobs that wait 1 s, 1,000 at once per worker", lambda n: pause.prepare(1.0), 0.02, concurrency=1000),
    "cpu": Load("jobs that hold the CPU for 2 ms", lambda n: burn.prepare(0.002), 0.01),
}


class Drained(msgspec.Struct, kw_only=True):
    """What a load came to."""

    scenario: str
    jobs: int
    workers: int
    enqueue_per_s: float
    drain_per_s: float
    producer_cpu_us: float  #: per job
    worker_cpu_us: float  #: per job, of all children of the supervisor
    store_enqueue_cpu_us: float | None  #: per job
    store_drain_cpu_us: float | None
    worker_mib: float  #: of the largest worker, beyond what it shares
    tail_s: float  #: at the end, while some worker had nothing left to run


class Latencies(msgspec.Struct, kw_only=True):
    """From before the enqueue to the first line of the handler, in ms."""

    scenario: str
    count: int
    load_per_s: float  #: jobs/s beside it
    p50_ms: float
    p99_ms: float
    p999_ms: float


class Singles(msgspec.Struct, kw_only=True):
    """Concurrent single enqueues."""

    scenario: str
    jobs: int
    concurrency: int
    enqueue_per_s: float
    alone_ms: float  #: one at a time on an idle loop, median


Result = Drained | Latencies | Singles

Tell = Callable[[str, float], None]
"""Takes what is done now and how much of it, 0 to 1."""


class Fleet:
    """A running `fleet` process."""

    def __init__(self, process: asyncio.subprocess.Process, errors: IO[bytes]) -> None:
        self.process = process
        self._errors = errors

    async def looks(self) -> AsyncIterator[Look]:
        """Its looks, to the end. WorkerError if it falls silent or fails."""
        assert self.process.stdout is not None
        last = None
        while True:
            try:
                async with asyncio.timeout(SILENCE_S):
                    line = await self.process.stdout.readline()
            except TimeoutError:
                raise self.failure(f"the workers have been silent for {SILENCE_S:g} s") from None
            if not line:
                break
            last = msgspec.json.decode(line, type=Look)
            yield last
        if last is None or not last.final or await self.process.wait():
            raise self.failure("the workers failed")

    def failure(self, what: str) -> WorkerError:
        """An error with what the fleet has printed."""
        self._errors.seek(0)
        return WorkerError(f"{what}:\n{self._errors.read().decode(errors='replace').strip()[-4000:]}")


@asynccontextmanager
async def fleet_of(options: Options) -> AsyncIterator[Fleet]:
    """The fleet, ended at the end."""
    with tempfile.TemporaryFile() as errors:
        process = await start_own("fleet", told=msgspec.json.encode(options), stderr=errors)
        try:
            yield Fleet(process, errors)
        finally:
            await _end(process)


async def _end(process: asyncio.subprocess.Process) -> bytes:
    """Have it end, by force if it must be. Returns what it still says: a full pipe must not keep it."""
    assert process.stdout is not None
    try:
        async with asyncio.timeout(END_S):
            if process.returncode is None:
                process.send_signal(signal.SIGTERM)
            said = await process.stdout.read()
            await process.wait()
            return said
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def drain(url: str, meter: StoreMeter, name: str, count: int, workers: int, tell: Tell) -> Drained:
    """Enqueue *count* jobs of the load *name* times its share, have them drained, count them. WorkerError if any is missing."""
    load = LOADS[name]
    total = max(int(count * load.share), 1)
    before, cpu, store = clock.monotonic(), time.process_time(), await meter.cpu_s()
    async with jobs:
        accepted = await jobs.enqueue_many(_told(map(load.call, range(total)), total, tell, f"{name}: enqueue"))
    seconds, cpu = clock.monotonic() - before, time.process_time() - cpu
    filled = await meter.cpu_s()
    drained_s, tail_s, last = await _drain(url, total, workers, load, lambda share: tell(f"{name}: drain", share))
    emptied = await meter.cpu_s()
    retried = round(total * load.retried)
    if (accepted, last.done, last.retried) != (total, total, retried):
        raise WorkerError(f"{name}: of {total:,} jobs {accepted:,} were accepted, {last.done:,} done, {last.retried:,} retried")
    return Drained(
        scenario=name,
        jobs=total,
        workers=workers,
        enqueue_per_s=total / seconds,
        drain_per_s=total / drained_s,
        producer_cpu_us=cpu / total * 1e6,
        worker_cpu_us=last.cpu_s / total * 1e6,
        store_enqueue_cpu_us=_per_job(store, filled, total),
        store_drain_cpu_us=_per_job(filled, emptied, total),
        worker_mib=last.private_bytes / 2**20,
        tail_s=tail_s,
    )


async def _drain(url: str, total: int, workers: int, load: Load, tell: Callable[[float], None]) -> tuple[float, float, Look]:
    """Seconds from the last look before anything ran to the first with all done; `Drained.tail_s`; the final look."""
    first = ended = moved = all_busy = 0.0
    last = Look(0.0, 0, 0, 0, 0)
    async with fleet_of(Options(backend=url, workers=workers, concurrency=load.concurrency)) as fleet:
        async for look in fleet.looks():
            if not (look.done or look.busy):
                first = look.at
            elif not ended and look.done >= total:
                ended = look.at
                fleet.process.send_signal(signal.SIGTERM)
            if look.busy == workers:
                all_busy = look.at
            if look.done != last.done:
                moved = look.at
            elif look.at - max(moved, first) > SILENCE_S:
                raise fleet.failure(f"no job was done for {SILENCE_S:g} s; {look.done:,} of {total:,} are")
            last = look
            tell(look.done / total)
    return max(ended - first, 1e-3), max(ended - max(all_busy, first), 0.0), last


def _told(calls: Iterable[Call], total: int, tell: Tell, what: str) -> Iterator[Call]:
    for number, call in enumerate(calls):
        if not number % 10_000:
            tell(what, number / total)
        yield call


def _per_job(before: float | None, after: float | None, total: int) -> float | None:
    return None if before is None or after is None else (after - before) / total * 1e6


class Listener:
    """Hears from `arrive` when a job has started."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(path)
        self._socket.setblocking(False)

    async def hear(self, number: int) -> float:
        """clock.monotonic when job *number* started. WorkerError if it does not come."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(SILENCE_S):
                while True:
                    heard, at = STAMP.unpack(await loop.sock_recv(self._socket, STAMP.size))
                    if heard == number:
                        return float(at)
        except TimeoutError:
            raise WorkerError(f"job {number} was not run within {SILENCE_S:g} s") from None

    def close(self) -> None:
        self._socket.close()


async def latency(url: str, name: str, count: int, workers: int, load_per_s: float, tell: Tell) -> Latencies:
    """*count* jobs, one at a time with pauses of 1 to 10 ms, while *load_per_s* no-op jobs a second run beside them."""
    with tempfile.TemporaryDirectory(prefix="fastjobs-bench-") as directory:
        listener = Listener(str(Path(directory, "arrivals")))
        async with jobs, fleet_of(Options(backend=url, workers=workers, look_s=SILENCE_S / 4)) as fleet:
            reading = asyncio.create_task(_read_on(fleet))
            loading = await start_own("load", str(load_per_s), told=url.encode()) if load_per_s else None
            try:
                found = [await _one(listener, number, reading) for number in range(WARM_UP)]
                found.clear()
                for number in range(WARM_UP, WARM_UP + count):
                    tell(name, len(found) / count)
                    await asyncio.sleep(random.uniform(0.001, 0.010))  # nosec B311  # noqa: S311 - spreads the samples
                    found.append(await _one(listener, number, reading))
            finally:
                said = b"" if loading is None else await _end(loading)
                reading.cancel()
                await asyncio.wait([reading])
                listener.close()
                await jobs.purge(QUEUE)
    if loading is not None:
        load_per_s = _paced(said)
    found.sort()
    at = {share: 1000 * found[min(int(share * count), count - 1)] for share in (0.5, 0.99, 0.999)}
    return Latencies(scenario=name, count=count, load_per_s=load_per_s, p50_ms=at[0.5], p99_ms=at[0.99], p999_ms=at[0.999])


async def _one(listener: Listener, number: int, reading: asyncio.Task[None]) -> float:
    before = clock.monotonic()
    await arrive.enqueue(number, listener.path)
    hearing = asyncio.create_task(listener.hear(number))
    await asyncio.wait([hearing, reading], return_when=asyncio.FIRST_COMPLETED)
    if reading.done():
        hearing.cancel()
        await reading  # raises what ended the fleet
        raise WorkerError("the workers ended before they were told to")
    return hearing.result() - before


async def _read_on(fleet: Fleet) -> None:
    async for _ in fleet.looks():
        pass


def _paced(said: bytes) -> float:
    """The rate that `load` has kept. WorkerError if it failed."""
    try:
        sent, seconds = said.split()
    except ValueError:
        raise WorkerError("the process that enqueues beside the measurement has failed; its error stands above") from None
    return int(sent) / float(seconds)


async def singles(name: str, count: int, concurrency: int, tell: Tell) -> Singles:
    """*count* single enqueues, *concurrency* at a time; then some one by one."""
    numbers = iter(range(count))

    async def one_by_one() -> None:
        for number in numbers:
            await noop.enqueue(number)

    async with jobs:
        await noop.enqueue(0)
        tell(name, 0.0)
        before = clock.monotonic()
        async with asyncio.TaskGroup() as group:
            for _ in range(concurrency):
                group.create_task(one_by_one())
        seconds = clock.monotonic() - before
        alone = []
        for number in range(200):
            before = clock.monotonic()
            await noop.enqueue(number)
            alone.append(clock.monotonic() - before)
        stored = await jobs.purge(QUEUE)
    if stored != count + 1 + len(alone):
        raise WorkerError(f"{name}: of {count + 1 + len(alone):,} jobs {stored:,} are in the store")
    alone.sort()
    return Singles(
        scenario=name,
        jobs=count,
        concurrency=concurrency,
        enqueue_per_s=count / seconds,
        alone_ms=1000 * alone[len(alone) // 2],
    )
