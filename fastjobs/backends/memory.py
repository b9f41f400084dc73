"""The memory backend inside one process: its jobs live, and end, with it. For other processes see broker.py."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from functools import partial

from fastjobs import clock
from fastjobs.backends.base import WaitsThenClaims
from fastjobs.backends.bundles import bundle
from fastjobs.backends.memory_core import MemoryStore, Waiter
from fastjobs.errors import BackendError
from fastjobs.model import Adopted, DeadLetter, Entry, Exchanged, Settlement, Stats


async def wait_for_jobs(store: MemoryStore, queues: Sequence[str], timeout_s: float, time_shift_s: float) -> bool:
    """`Backend.wait` on a core, from any event loop. Nothing polls: pushes wake it, and a timer when a delayed job is due."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_s
    while True:
        news = asyncio.Event()
        waiter = Waiter(queues, partial(loop.call_soon_threadsafe, news.set))
        due_s = store.watch(waiter, clock.wall() + time_shift_s)
        if due_s == 0.0:
            return True
        left_s = deadline - loop.time()
        looking = False
        try:
            async with asyncio.timeout(left_s if due_s is None else min(left_s, due_s)):
                await news.wait()
            looking = True
        except TimeoutError:
            if loop.time() >= deadline:
                return False
        finally:
            if not looking:
                store.unwatch(waiter)


class MemoryBackend(WaitsThenClaims):
    """The memory store inside this process, for any of its threads and event loops. Its jobs end with the process."""

    def __init__(self, store: MemoryStore | None = None) -> None:
        self.url = "memory://"
        self.time_shift_s = 0.0
        self._core = MemoryStore() if store is None else store

    @property
    def _store(self) -> MemoryStore:
        # A forked child has a copy of the jobs: it would run them a second time, and what it pushed would reach nobody.
        if self._core.pid != os.getpid():
            raise BackendError(
                f"memory:// holds its jobs in process {self._core.pid}, which this one was forked from;"
                " use fastjobs supervise or another store to share jobs between processes"
            )
        return self._core

    @property
    def _now(self) -> float:
        return clock.wall() + self.time_shift_s

    def pending(self) -> int:
        """Jobs that end undone if this process ends now; 0 in a forked child, which owns none."""
        return self._core.pending() if self._core.pid == os.getpid() else 0

    async def open(self) -> list[str]:
        return []

    async def close(self) -> None:
        return None

    def clone(self) -> MemoryBackend:
        """Another face of the same store, for a thread or event loop of this process."""
        return MemoryBackend(self._core)

    async def push(self, producer: str, seq: int, acked: int, entries: Sequence[Entry]) -> None:
        bundles, later = bundle(entries)
        self._store.push(producer, seq, acked, bundles, later, self._now)

    async def register(self, worker: str) -> None:
        self._store.register(worker)

    async def exchange(
        self, worker: str, n: int, settlements: Sequence[Settlement], queues: Sequence[str], limit: int
    ) -> Exchanged:
        return self._store.exchange(worker, n, settlements, queues, limit, self._now)

    async def wait(self, queues: Sequence[str], timeout_s: float) -> bool:
        return await wait_for_jobs(self._store, queues, timeout_s, self.time_shift_s)

    async def renew(self, lease: str) -> bool:
        return self._store.renew(lease)

    async def leases(self) -> dict[str, int]:
        return self._store.leases()

    async def workers(self, lease: str) -> dict[str, list[int]]:
        return self._store.workers(lease)

    async def adopt(self, into: str, n: int, worker: str, claims: Sequence[int] | None, limit: int) -> Adopted:
        return self._store.adopt(into, n, worker, claims, limit)

    async def retire(self, worker: str) -> bool:
        return self._store.retire(worker)

    async def housekeep(self) -> None:
        self._store.housekeep(self._now)

    async def stats(self) -> Stats:
        return self._store.stats()

    async def peek(self, queue: str, limit: int) -> list[bytes]:
        return self._store.peek(queue, limit)

    async def dead_list(self, queue: str | None, before: tuple[float, bytes] | None, limit: int) -> list[DeadLetter]:
        return self._store.dead_list(queue, before, limit)

    async def dead_get(self, id: bytes) -> DeadLetter | None:
        return self._store.dead_get(id)

    async def dead_requeue(self, entries: Sequence[Entry]) -> list[bool]:
        return self._store.dead_requeue(entries, self._now)

    async def dead_delete(self, ids: Sequence[bytes]) -> list[bool]:
        return self._store.dead_delete(ids)

    async def purge(self, queue: str) -> int:
        return self._store.purge(queue)

    async def migrate(self) -> list[str]:
        return []
