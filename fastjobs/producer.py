"""The producer's end: pushes batches, repeats those whose reply was lost, and coalesces single enqueues.

Enqueues of one turn of the event loop travel together: a single one on an idle loop is sent at once, a thousand concurrent
ones become one push.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Sequence
from typing import Final

from fastjobs import clock
from fastjobs.backends.base import Store
from fastjobs.errors import BackendError, EnqueueUncertain, StoreUnavailable
from fastjobs.ids import fresh_name, id_text
from fastjobs.model import Entry

BATCH: Final = 1_000
"""Most jobs of one push."""

BATCH_BYTES: Final = 4 * 1024 * 1024
"""Most bytes of one push, but for a single job."""

IN_FLIGHT: Final = 4
"""Pushes of coalesced enqueues under way at once; more wait and grow into larger ones."""


def batches(entries: Sequence[Entry]) -> list[list[Entry]]:
    """*entries* in order, cut at `BATCH` jobs and `BATCH_BYTES` bytes."""
    found: list[list[Entry]] = []
    size = BATCH_BYTES
    for entry in entries:
        if size + len(entry.envelope) > BATCH_BYTES or len(found[-1]) >= BATCH:
            found.append([])
            size = 0
        found[-1].append(entry)
        size += len(entry.envelope)
    return found


class Producer:
    """Pushes to one store from one event loop."""

    def __init__(self, store: Store, *, give_up_after_s: float) -> None:
        self.store = store
        self._give_up_after_s = give_up_after_s
        self._name = fresh_name()
        self._seq = 0
        self._open: set[int] = set()  # seqs whose reply is still to come
        self._waiting: deque[tuple[Entry, asyncio.Future[None]]] = deque()
        self._scheduled = False
        self._pushes: set[asyncio.Task[None]] = set()

    async def enqueue(self, entry: Entry) -> None:
        """Store one job, together with those enqueued in the same turn of the loop. Raises as `push`."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        self._waiting.append((entry, future))
        if not self._scheduled and len(self._pushes) < IN_FLIGHT:
            self._scheduled = True
            loop.call_soon(self._send)
        await future

    async def push(self, entries: Sequence[Entry]) -> None:
        """Store *entries* in one push, repeated until the store confirms it.

        EnqueueUncertain when the store did not answer in time: they may or may not be stored. BackendError when it refused
        them: none is stored.
        """
        self._seq += 1
        seq = self._seq
        self._open.add(seq)
        give_up_at = clock.monotonic() + self._give_up_after_s
        delay_s = 0.02
        try:
            while True:
                try:
                    await self.store.push(self._name, seq, min(self._open), entries)
                    return
                except StoreUnavailable as error:
                    now = clock.monotonic()
                    if now >= give_up_at:
                        raise _uncertain(entries, self._give_up_after_s, error) from error
                    await asyncio.sleep(min(delay_s * (0.5 + random.random()), give_up_at - now))  # nosec B311  # noqa: S311
                    delay_s = min(2 * delay_s, 2.0)
        finally:
            self._open.discard(seq)

    def _send(self) -> None:
        """Push what waits, in as many batches as may be under way."""
        self._scheduled = False
        while self._waiting and len(self._pushes) < IN_FLIGHT:
            batch = [self._waiting.popleft()]
            size = len(batch[0][0].envelope)
            while self._waiting and len(batch) < BATCH and size < BATCH_BYTES:
                batch.append(self._waiting.popleft())
                size += len(batch[-1][0].envelope)
            task = asyncio.get_running_loop().create_task(self._push_batch(batch), name="fastjobs-push")
            self._pushes.add(task)
            task.add_done_callback(self._sent)

    def _sent(self, task: asyncio.Task[None]) -> None:
        self._pushes.discard(task)
        if self._waiting and not self._scheduled:
            self._scheduled = True
            task.get_loop().call_soon(self._send)

    async def _push_batch(self, batch: list[tuple[Entry, asyncio.Future[None]]]) -> None:
        """One push for all of *batch*; each caller gets its own answer."""
        try:
            await self.push([entry for entry, _ in batch])
        except BackendError as error:
            for entry, future in batch:
                if not future.done():
                    future.set_exception(_for_one(error, entry))
        except BaseException as error:
            for _, future in batch:
                if not future.done():
                    future.set_exception(error if isinstance(error, Exception) else BackendError("the enqueue was cancelled"))
            raise
        else:
            for _, future in batch:
                if not future.done():
                    future.set_result(None)

    async def close(self) -> None:
        """Wait for what is under way, then close the connections."""
        while self._waiting or self._pushes:
            if self._pushes:
                await asyncio.wait(self._pushes)
            else:
                self._send()
        await self.store.close()


def _uncertain(entries: Sequence[Entry], after_s: float, error: StoreUnavailable) -> EnqueueUncertain:
    ids = [id_text(entry.id) for entry in entries]
    what = f"job {ids[0]}" if len(ids) == 1 else f"{len(ids):,} jobs"
    return EnqueueUncertain(
        f"the store did not confirm {what} within {after_s:g} s: it may or may not be stored. Last error: {error}", job_ids=ids
    )


def _for_one(error: BackendError, entry: Entry) -> BackendError:
    """*error* for the caller of one of a batch's entries: an exception of its own, naming its own job."""
    if isinstance(error, EnqueueUncertain):
        id = id_text(entry.id)
        return EnqueueUncertain(f"job {id} may or may not be stored: {error.__cause__ or error}", job_ids=[id])
    return type(error)(*error.args)
