"""How a worker that found nothing in the store waits: for the next jobs themselves, or while it runs some, to be woken."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Final

from fastjobs.backends.base import Backend
from fastjobs.errors import BackendError, StaleCall
from fastjobs.model import Exchanged

IDLE_WAIT_S: Final = 2.0
"""Longest wait: a wake-up is a hint and may get lost, so an idle worker asks so often (8 of them: 12 calls a second)."""

PAUSE_S: Final = 0.2
"""After a wait that the store has refused or could not answer; the next exchange will tell what is wrong."""


class Woken:
    """What a wait has brought: the number of its call and the answer, or nothing but the end of the wait.

    *lost*: the call may have been made, and its reply did not come.
    """

    __slots__ = ("answer", "lost", "n")

    def __init__(self, n: int, answer: Exchanged | None, *, lost: bool = False) -> None:
        self.n = n
        self.answer = answer
        self.lost = lost


class WakeUp:
    """The one wait that a worker may have under way. *on_end* is called when it has ended."""

    n = 0  #: number of the call by which it claims; 0: it does not, or was taken

    def __init__(self, backend: Backend, queues: Sequence[str], on_end: Callable[[], None]) -> None:
        self._backend = backend
        self._queues = queues
        self._on_end = on_end
        self._task: asyncio.Task[Woken] | None = None

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
            if n:
                return Woken(n, await self._backend.claim_when_ready(worker, n, self._queues, limit, timeout_s))
            await self._backend.wait(self._queues, timeout_s)
        except StaleCall:  # a later call has passed it: a wake-up and no more
            pass
        except BackendError:
            await asyncio.sleep(min(timeout_s, PAUSE_S))
            return Woken(n, None, lost=n > 0)
        return Woken(n, None)
