"""An app whose every job writes down, in one small append each, that it has started and that it has finished."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from typing import NamedTuple

from fastjobs import JobQueue, rescue

if claims_s := os.environ.get("TEST_CLAIMS_S"):
    rescue.CLAIMS_S = float(claims_s)  # type: ignore[misc]

jobs = JobQueue()


class Line(NamedTuple):
    """One event of one job."""

    started: bool  #: else finished
    job: int
    pid: int


@jobs.job(max_losses=1_000)  # the tests kill its workers, and may hit a bystander three times
async def entry(n: int, path: str, seconds: float) -> None:
    """Job *n*: write, work, write."""
    started(n, path)
    await asyncio.sleep(seconds)
    finished(n, path)


def started(n: int, path: str) -> None:
    _append(path, f"s {n} {os.getpid()}\n")


def finished(n: int, path: str) -> None:
    _append(path, f"f {n} {os.getpid()}\n")


def _append(path: str, line: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(fd, line.encode())
    finally:
        os.close(fd)


def read(path: str) -> Iterator[Line]:
    """All lines so far, oldest first."""
    with open(path) as file:
        for line in file:
            kind, job, pid = line.split()
            yield Line(kind == "s", int(job), int(pid))
