"""The handlers that are measured."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import time
from typing import Final

from fastjobs.clock import monotonic
from fastjobs.context import JobContext
from fastjobs.queue import JobQueue
from fastjobs.retry import Retry

QUEUE: Final = "bench"

jobs = JobQueue()

STAMP: Final = struct.Struct("=Qd")
"""What `arrive` sends: its number, and clock.monotonic of its first line."""

_socket: Final = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
_socket.setblocking(False)


@jobs.job(queue=QUEUE)
async def noop(value: int) -> None:
    """Nothing, as quickly as possible."""


@jobs.job(queue=QUEUE)
async def carry(data: str) -> None:
    """Nothing, with a payload."""


@jobs.job(queue=QUEUE)
async def pause(seconds: float) -> None:
    """Wait, as for a network."""
    await asyncio.sleep(seconds)


@jobs.job(queue=QUEUE)
async def burn(seconds: float) -> None:
    """Hold the CPU."""
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


@jobs.job(queue=QUEUE)
async def stumble(ctx: JobContext, value: int) -> None:
    """One of ten fails once and is run again at once."""
    if value % 10 == 0 and ctx.attempt == 1:
        raise Retry("as asked", after=0)


@jobs.job(queue=QUEUE)
async def arrive(number: int, path: str) -> None:
    """Say when it started, to the socket at *path*."""
    now = monotonic()
    with contextlib.suppress(OSError):  # whoever listened has given up
        _socket.sendto(STAMP.pack(number, now), path)
