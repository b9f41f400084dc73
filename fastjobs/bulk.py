"""`enqueue_many`: any number of prepared calls, in chunks, in constant memory."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, Iterable, Sequence
from contextlib import aclosing
from typing import Final

from fastjobs.calls import Call, Shape
from fastjobs.errors import BackendError, ConfigError, EnqueueManyError, EnqueueUncertain
from fastjobs.model import Entry, Likes
from fastjobs.producer import BATCH, BATCH_BYTES, Producer

PIPELINED: Final = 2
"""Pushes under way at once: the next chunk is encoded while the store works on the last."""


class _SourceFailed(Exception):
    """The iterable, or something it yielded, is broken; `__cause__` says how. Not an error of the store."""


async def enqueue_all(producer: Producer, calls: Iterable[Call] | AsyncIterable[Call]) -> int:
    """Push *calls* in chunks. Returns how many. EnqueueManyError when it stops before the end, with what is known then.

    ConfigError for what is no iterable.
    """
    if not isinstance(calls, (Iterable, AsyncIterable)):
        raise ConfigError(f"enqueue_many takes an iterable of prepared calls, f.prepare(…), got {type(calls).__name__}")
    under_way: deque[tuple[asyncio.Task[None], int]] = deque()
    accepted = 0
    source: BaseException | None = None
    try:
        try:
            async with aclosing(_chunks(calls)) as chunks:
                async for chunk in chunks:
                    if len(under_way) >= PIPELINED:
                        accepted += await _confirmed(under_way)
                    under_way.append((asyncio.create_task(producer.push(chunk)), len(chunk)))
        except _SourceFailed as failed:  # what came before it still counts
            source = failed.__cause__
        while under_way:
            accepted += await _confirmed(under_way)
    except BackendError as error:
        uncertain = await _abandon(under_way)
        raise EnqueueManyError(
            f"stopped: the first {accepted:,} jobs are stored; {uncertain:,} after them may or may not be. {error}",
            accepted=accepted,
            uncertain=uncertain,
        ) from error
    finally:
        for task, _ in under_way:
            task.cancel()
        if under_way:
            await asyncio.wait([task for task, _ in under_way])
    if source is not None:
        raise EnqueueManyError(
            f"stopped after {accepted:,} {'job' if accepted == 1 else 'jobs'}: {source}", accepted=accepted
        ) from source
    return accepted


async def _confirmed(under_way: deque[tuple[asyncio.Task[None], int]]) -> int:
    """Wait for the oldest push. Its size, once the store has confirmed it."""
    task, size = under_way[0]
    await task
    under_way.popleft()
    return size


async def _abandon(under_way: deque[tuple[asyncio.Task[None], int]]) -> int:
    """End the pushes under way; how many jobs of them may be stored."""
    uncertain = 0
    for task, size in under_way:
        await asyncio.wait([task])
        error = None if task.cancelled() else task.exception()
        if error is None or isinstance(error, EnqueueUncertain):
            uncertain += size
    under_way.clear()
    return uncertain


class Chunk:
    """The entries of one push to be: runs of calls of one shape each."""

    __slots__ = ("_of", "runs")

    def __init__(self) -> None:
        self.runs: list[Likes] = []
        self._of: Shape | None = None  # the last run

    def add(self, call: Call) -> int:
        """One more; how many bytes it takes. ConfigError for what is no call."""
        if not isinstance(call, Call):
            raise ConfigError(f"enqueue_many takes prepared calls, f.prepare(…), got {type(call).__name__}")
        if call.shape is not self._of:
            self._of = call.shape
            self.runs.append(call.shape.template.likes())
        envelope = call.shape.template.envelope(call.payload)
        self.runs[-1].envelopes.append(envelope)
        return len(envelope)

    def entries(self) -> Sequence[Entry]:
        """All, in order."""
        return self.runs[0] if len(self.runs) == 1 else [entry for run in self.runs for entry in run]


async def _chunks(calls: Iterable[Call] | AsyncIterable[Call]) -> AsyncGenerator[Sequence[Entry], None]:
    """Entries of *calls*, at most `BATCH` jobs or about `BATCH_BYTES` bytes at a time, also what came before an error."""
    chunk, count, size = Chunk(), 0, 0
    try:
        if isinstance(calls, AsyncIterable):
            async for call in calls:
                size += chunk.add(call)
                count += 1
                if count >= BATCH or size >= BATCH_BYTES:
                    yield chunk.entries()
                    chunk, count, size = Chunk(), 0, 0
        else:
            shape: Shape | None = None
            run: list[bytes] = []
            for call in calls:
                if isinstance(call, Call) and call.shape is shape:  # as `add`, whose call costs 0.05 µs a job
                    envelope = shape.template.envelope(call.payload)
                    run.append(envelope)
                    size += len(envelope)
                else:
                    size += chunk.add(call)
                    shape, run = call.shape, chunk.runs[-1].envelopes
                count += 1
                if count >= BATCH or size >= BATCH_BYTES:
                    yield chunk.entries()
                    chunk, count, size, shape = Chunk(), 0, 0, None
    except Exception as error:
        if count:
            yield chunk.entries()
        raise _SourceFailed from error
    finally:
        if isinstance(calls, AsyncGenerator):  # it may hold a cursor; nobody else has it to close it
            await calls.aclose()
    if count:
        yield chunk.entries()
