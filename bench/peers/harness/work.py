"""The handlers: the same three for every peer, as coroutines and as plain functions."""

from __future__ import annotations

import asyncio
import time

from harness.tally import begin, end

SLEEP_S = 0.010
CPU_S = 0.002


async def noop(value: int) -> None:
    """Nothing, counted."""
    end(value)


async def sleep(value: int) -> None:
    """Wait, as for a network."""
    begin()
    await asyncio.sleep(SLEEP_S)
    end(value)


async def cpu(value: int) -> None:
    """Hold the CPU."""
    cpu_sync(value)


def noop_sync(value: int) -> None:
    """Nothing, counted."""
    end(value)


def sleep_sync(value: int) -> None:
    """Wait, as for a network."""
    begin()
    time.sleep(SLEEP_S)
    end(value)


def cpu_sync(value: int) -> None:
    """Hold the CPU."""
    begin()
    stop = time.thread_time() + CPU_S
    while time.thread_time() < stop:
        pass
    end(value)


ASYNC = {"noop": noop, "sleep": sleep, "cpu": cpu}
SYNC = {"noop": noop_sync, "sleep": sleep_sync, "cpu": cpu_sync}
