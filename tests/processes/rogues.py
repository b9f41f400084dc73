"""An app whose handlers end, stop or maim their worker, beside the ordinary jobs of the ledger."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import threading

from fastjobs import JobQueue
from tests.processes import ledger

jobs = JobQueue()
jobs.registry.add(ledger.entry.handler)

ALL_FDS = 65_536


class Untypical(BaseException):
    """Caught by no `except Exception`."""


@jobs.job
async def exits(n: int, path: str, code: int) -> None:
    ledger.started(n, path)
    os._exit(code)


@jobs.job
async def segfaults(n: int, path: str) -> None:
    ledger.started(n, path)
    ctypes.string_at(0)


@jobs.job
def aborts(n: int, path: str) -> None:
    """In a thread."""
    ledger.started(n, path)
    os.abort()


@jobs.job
async def closes_descriptors(n: int, path: str) -> None:
    """Of the event loop, the store, the logs: everything."""
    ledger.started(n, path)
    os.closerange(0, ALL_FDS)


@jobs.job
def closes_descriptors_from_a_thread(n: int, path: str) -> None:
    ledger.started(n, path)
    os.closerange(0, ALL_FDS)


@jobs.job(max_attempts=1)
async def raises(n: int, path: str, error: str) -> None:
    ledger.started(n, path)
    raise {kind.__name__: kind for kind in (SystemExit, KeyboardInterrupt, GeneratorExit, Untypical)}[error]("by a handler")


@jobs.job(max_attempts=1)
def raises_in_a_thread(n: int, path: str) -> None:
    ledger.started(n, path)
    raise Untypical("by a handler")


@jobs.job(max_attempts=1)
async def cancels_itself(n: int, path: str) -> None:
    ledger.started(n, path)
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    await asyncio.sleep(60)


@jobs.job(max_attempts=1, timeout=0.2)
async def never_returns(n: int, path: str) -> None:
    ledger.started(n, path)
    await asyncio.Event().wait()


@jobs.job(max_attempts=1, timeout=0.2)
def never_returns_in_a_thread(n: int, path: str) -> None:
    """In Python code, which an exception in the thread can stop."""
    ledger.started(n, path)
    while not threading.Event().wait(0.01):
        pass


@jobs.job
async def leaks(n: int, path: str, mib: int) -> None:
    ledger.started(n, path)
    leaked.append(b"x" * (mib << 20))
    ledger.finished(n, path)


leaked: list[bytes] = []


@jobs.job
async def terminates_its_worker(n: int, path: str) -> None:
    """As somebody with `kill` would: it drains, and this job ends well."""
    ledger.started(n, path)
    os.kill(os.getpid(), signal.SIGTERM)
    await asyncio.sleep(0.1)
    ledger.finished(n, path)


@jobs.job
async def forks_a_copy_that_stays(n: int, path: str) -> None:
    """The copy ends when nobody has the pipe *path*.pipe open for writing any more."""
    ledger.started(n, path)
    told, tell = os.pipe()
    if not os.fork():
        os.close(told)
        fd = os.open(f"{path}.pipe", os.O_RDONLY)  # when the test has it open for writing
        os.write(tell, b"1")
        os.read(fd, 1)
        os._exit(0)
    os.close(tell)
    await asyncio.get_running_loop().run_in_executor(None, os.read, told, 1)
    os.close(told)
    ledger.finished(n, path)
