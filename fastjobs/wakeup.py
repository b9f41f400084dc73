"""How a worker that found nothing in the store waits: to be woken, or where the store can do that, for the jobs themselves."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from fastjobs.backends.base import Backend
from fastjobs.errors import BackendError, StaleCall
from fastjobs.model import Exchanged

IDLE_WAIT_S: Final = 2.0
"""Longest wait: a wake-up is a hint and may get lost, so an idle worker asks so often (8 of them: 12 calls a second)."""

PAUSE_S: Final = 0.2
"""After a wait that the store has refused or could not answer; the next exchange will tell what is wrong."""


class ClaimWhenReady(Protocol):
    """What a store has that can wait and claim in one call. See `RedisBackend.claim_when_ready`."""

    async def __call__(self, worker: str, n: int, queues: Sequence[str], limit: int, timeout_s: float, /) -> Exchanged: ...


class Woken:
    """What a wait has brought: the number of its call and the answer, or nothing but the end of the wait."""

    __slots__ = ("answer", "n")

    def __init__(self, n: int, answer: Exchanged | None) -> None:
        self.n = n
        self.answer = answer


class WakeUp:
    """The one wait that a worker may have under way. *on_end* is called when it has ended."""

    n = 0  #: number of the call by which it claims; 0: it does not, or was taken

    def __init__(self, backend: Backend, queues: Sequence[str], on_end: Callable[[], None]) -> None:
        self._backend = backend
        self._queues = queues
        self._on_end = on_end
        self._task: asyncio.Task[Woken] | None = None
        self._claim: ClaimWhenReady | None = getattr(backend, "claim_when_ready", None)

    @property
    def claims(self) -> bool:
        """Whether the store can claim at the end of a wait."""
        return self._claim is not None

    @property
    def is_under_way(self) -> bool:
        """It has not been taken yet."""
        return self._task is not None

    def start(self, next_due_s: float | None, worker: str, n: int = 0, limit: int = 0) -> None:
        """Wait for `IDLE_WAIT_S`, or until the next delayed job is due in *next_due_s* s; with *n* claim as that call."""
        timeout_s = IDLE_WAIT_S if next_due_s is None else min(IDLE_WAIT_S, max(next_due_s, 0.001))
        self.n = n
        self._task = asyncio.create_task(self._wait(timeout_s, worker, n, limit), name="fastjobs-wait")
        self._task.add_done_callback(lambda _: self._on_end())

    def take(self) -> Woken | None:
        """What it has brought, once, when it has ended."""
        if self._task is None or not self._task.done():
            return None
        task, self._task, self.n = self._task, None, 0
        return task.result()

    async def cancel(self) -> None:
        """Wait no longer."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _wait(self, timeout_s: float, worker: str, n: int, limit: int) -> Woken:
        try:
            if n and self._claim is not None:
                return Woken(n, await self._claim(worker, n, self._queues, limit, timeout_s))
            await self._backend.wait(self._queues, timeout_s)
        except StaleCall:  # a later call has passed it: a wake-up and no more
            pass
        except BackendError:
            # Should the claim have been made and its reply be lost, maintenance finds it: no worker knows of it.
            await asyncio.sleep(min(timeout_s, PAUSE_S))
        return Woken(n, None)
