"""The app under chaos: handlers that write in the ledger what they do, and some that do harm.

FASTJOBS_CHAOS_LEDGER is the directory of the ledger, FASTJOBS_CHAOS_MACHINE the name of the machine this is said to be.
"""

from __future__ import annotations

import asyncio
import ctypes
import logging
import os
import random
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import ClassVar, Final

from fastjobs import Discard, JobContext, JobQueue, Retry, RetryPolicy
from tests.chaos.kinds import FATES, Kind
from tests.chaos.ledger import Event, Ledger

LEDGER: Final = "FASTJOBS_CHAOS_LEDGER"
MACHINE: Final = "FASTJOBS_CHAOS_MACHINE"

DISOWNED: Final = ("was taken over by others", "starting over")
"""In what a worker logs when it learns that others have jobs of its."""

BLOCK_S: Final = (0.1, 3.0)
"""So long a handler blocks its loop: at most longer than the tests' lease less its margin."""


STUCK_S: Final = 25.0
LEAK_BYTES: Final = 16 << 20
"""Of one run; a worker is replaced when it has grown to some times that."""


class Worker:
    """This process's ledger, once it works."""

    ledger: Ledger
    leaked: ClassVar[list[bytes]] = []


class Disowned(logging.Handler):
    """Writes in the ledger that jobs of this worker went to others."""

    def emit(self, record: logging.LogRecord) -> None:
        if any(words in record.getMessage() for words in DISOWNED):
            Worker.ledger.write(Event.DISOWNED)


@asynccontextmanager
async def lifespan() -> AsyncIterator[None]:
    Worker.ledger = Ledger(os.environ[LEDGER], f"w-{os.environ[MACHINE]}")
    yield


if LEDGER in os.environ:  # in a process of a run, not in one that only wants to know the app
    logging.basicConfig(
        format="%(asctime)s.%(msecs)03d %(process)d %(levelname)s %(message)s", datefmt="%H:%M:%S", level=logging.INFO
    )
    logging.getLogger("fastjobs.job").setLevel(logging.ERROR)  # failures of jobs are no news here
    logging.getLogger("fastjobs.worker").addHandler(Disowned())

jobs = JobQueue(lifespan=lifespan, enqueue_timeout=5)

SECOND = RetryPolicy(base=1)
PATIENT: Final = 1_000
"""The faults kill innocent workers, and may hit a bystander three times."""


def write(event: Event, n: int, kind: Kind) -> None:
    Worker.ledger.write(event, n, kind)


@jobs.job(max_losses=PATIENT)
async def plain(n: int) -> None:
    ledger = Worker.ledger
    ledger.write(Event.STARTED, n)
    ledger.write(Event.FINISHED, n)


@jobs.job(max_losses=PATIENT)
async def nap(n: int) -> None:
    """Some of them are always under way when a worker is killed."""
    write(Event.STARTED, n, Kind.NAP)
    try:
        await asyncio.sleep(random.uniform(0.01, 0.3))
    except BaseException:
        write(Event.FAILED, n, Kind.NAP)
        raise
    write(Event.FINISHED, n, Kind.NAP)


@jobs.job(max_losses=PATIENT)
def thread(n: int) -> None:
    write(Event.STARTED, n, Kind.THREAD)
    time.sleep(0.001)
    write(Event.FINISHED, n, Kind.THREAD)


@jobs.job(max_losses=PATIENT)
async def fork(n: int) -> None:
    write(Event.STARTED, n, Kind.FORK)
    pid = os.fork()
    if not pid:
        os._exit(0)
    os.waitpid(pid, 0)
    write(Event.FINISHED, n, Kind.FORK)


@jobs.job(max_losses=PATIENT)
async def block(n: int) -> None:
    write(Event.STARTED, n, Kind.BLOCK)
    time.sleep(random.uniform(*BLOCK_S))
    write(Event.FINISHED, n, Kind.BLOCK)


@jobs.job(max_losses=PATIENT, retry=SECOND)
async def retry(ctx: JobContext, n: int) -> None:
    write(Event.STARTED, n, Kind.RETRY)
    if ctx.attempt <= FATES[Kind.RETRY].failures:
        write(Event.FAILED, n, Kind.RETRY)
        if ctx.attempt == 1:
            raise Retry("not yet", after=random.choice((0, 0.3)))
        raise ValueError("by design")
    write(Event.FINISHED, n, Kind.RETRY)


class Base(BaseException):
    """Not an Exception."""


@jobs.job(max_losses=PATIENT, retry=SECOND)
async def base(ctx: JobContext, n: int) -> None:
    write(Event.STARTED, n, Kind.BASE)
    if ctx.attempt == 1:
        write(Event.FAILED, n, Kind.BASE)
        raise random.choice((Base, KeyboardInterrupt, SystemExit, GeneratorExit))("by design")
    write(Event.FINISHED, n, Kind.BASE)


@jobs.job(max_losses=PATIENT, retry=SECOND)
async def cancel(ctx: JobContext, n: int) -> None:
    write(Event.STARTED, n, Kind.CANCEL)
    if ctx.attempt == 1:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        try:
            await asyncio.sleep(60)
        finally:
            write(Event.FAILED, n, Kind.CANCEL)
    write(Event.FINISHED, n, Kind.CANCEL)


@jobs.job(max_losses=PATIENT, retry=SECOND, timeout=0.3)
async def limit(ctx: JobContext, n: int) -> None:
    write(Event.STARTED, n, Kind.LIMIT)
    if ctx.attempt == 1:
        try:
            await asyncio.Event().wait()
        finally:
            write(Event.FAILED, n, Kind.LIMIT)
    write(Event.FINISHED, n, Kind.LIMIT)


@jobs.job(max_losses=PATIENT, retry=SECOND, timeout=0.3)
def stuck(ctx: JobContext, n: int) -> None:
    """Its thread sits in a call past the time limit, and its worker has to be replaced."""
    write(Event.STARTED, n, Kind.STUCK)
    if ctx.attempt == 1:
        try:
            time.sleep(STUCK_S)
        finally:
            write(Event.FAILED, n, Kind.STUCK)
    write(Event.FINISHED, n, Kind.STUCK)


@jobs.job(max_losses=PATIENT)
async def leak(n: int) -> None:
    write(Event.STARTED, n, Kind.LEAK)
    Worker.leaked.append(b"x" * LEAK_BYTES)
    write(Event.FINISHED, n, Kind.LEAK)


@jobs.job(max_losses=PATIENT)
async def discard(n: int) -> None:
    write(Event.STARTED, n, Kind.DISCARD)
    write(Event.FAILED, n, Kind.DISCARD)
    raise Discard("by design")


def die_by_exit() -> None:
    os._exit(7)


def die_by_segv() -> None:
    ctypes.string_at(0)


def die_by_closing() -> None:
    """Of a loop that has nothing to wait on any more."""
    os.closerange(3, 4096)


def die_by_kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _once(kind: Kind, ctx: JobContext, n: int) -> None:
    write(Event.STARTED, n, kind)
    if not ctx.losses:
        write(Event.DYING, n, kind)
        DEATHS[kind]()
    else:
        write(Event.FINISHED, n, kind)


DEATHS = {
    Kind.EXIT_ONCE: die_by_exit,
    Kind.SEGV_ONCE: die_by_segv,
    Kind.ABORT_ONCE: os.abort,
    Kind.KILL_ONCE: die_by_kill,
    Kind.CLOSE_ONCE: die_by_closing,
}


@jobs.job(max_losses=PATIENT)
async def exit_once(ctx: JobContext, n: int) -> None:
    _once(Kind.EXIT_ONCE, ctx, n)


@jobs.job(max_losses=PATIENT)
async def segv_once(ctx: JobContext, n: int) -> None:
    _once(Kind.SEGV_ONCE, ctx, n)


@jobs.job(max_losses=PATIENT)
async def abort_once(ctx: JobContext, n: int) -> None:
    _once(Kind.ABORT_ONCE, ctx, n)


@jobs.job(max_losses=PATIENT)
async def kill_once(ctx: JobContext, n: int) -> None:
    _once(Kind.KILL_ONCE, ctx, n)


@jobs.job(max_losses=PATIENT)
async def close_once(ctx: JobContext, n: int) -> None:
    _once(Kind.CLOSE_ONCE, ctx, n)
    if not ctx.losses:
        await asyncio.Event().wait()  # the loop is to find out before this job has ended


@jobs.job
async def poison(n: int) -> None:
    write(Event.STARTED, n, Kind.POISON)
    write(Event.DYING, n, Kind.POISON)
    DEATHS[random.choice((Kind.EXIT_ONCE, Kind.SEGV_ONCE, Kind.ABORT_ONCE, Kind.KILL_ONCE))]()


HANDLERS = {
    Kind.PLAIN: plain,
    Kind.NAP: nap,
    Kind.THREAD: thread,
    Kind.FORK: fork,
    Kind.BLOCK: block,
    Kind.RETRY: retry,
    Kind.BASE: base,
    Kind.CANCEL: cancel,
    Kind.LIMIT: limit,
    Kind.DISCARD: discard,
    Kind.EXIT_ONCE: exit_once,
    Kind.SEGV_ONCE: segv_once,
    Kind.ABORT_ONCE: abort_once,
    Kind.KILL_ONCE: kill_once,
    Kind.POISON: poison,
    Kind.STUCK: stuck,
    Kind.LEAK: leak,
    Kind.CLOSE_ONCE: close_once,
}
