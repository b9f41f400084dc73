"""`jobs.sync`: enqueue from plain code, scripts, Flask or Django, without an event loop."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Coroutine, Iterable, Mapping
from typing import Any, Protocol, TypeVar, Unpack, overload

from fastjobs.calls import Call, EnqueueKeywords, JobFunction, JobHandle, JobName
from fastjobs.errors import ConfigError
from fastjobs.joblike import Data, Job
from fastjobs.model import Stats
from fastjobs.options import EnqueueOptions

T = TypeVar("T")


class Jobs(Protocol):
    """What the door needs of its JobQueue."""

    def make_call(
        self,
        job: JobName | Call,
        data: Any,
        options: EnqueueOptions | None,
        rest: tuple[object, ...],
        keywords: EnqueueKeywords,
    ) -> Call: ...
    async def enqueue_call(self, call: Call) -> JobHandle: ...
    async def enqueue_many(self, calls: Iterable[Call]) -> int: ...
    async def stats(self) -> Stats: ...
    async def close(self) -> None: ...


class SyncDoor:
    """The same calls as on the JobQueue, blocking. One thread with an event loop serves them, started at first use per process.

    ConfigError when called inside a running event loop: there the async calls are at hand.
    """

    def __init__(self, jobs: Jobs) -> None:
        self._jobs = jobs
        self._lock = threading.Lock()
        self._pid = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    @overload
    def enqueue(self, job: Call) -> JobHandle: ...
    @overload
    def enqueue(
        self,
        job: str | JobFunction[Any, Any, Any],
        data: Mapping[str, Any] | None = None,
        options: EnqueueOptions | None = None,
        **keywords: Unpack[EnqueueKeywords],
    ) -> JobHandle: ...
    @overload
    def enqueue(
        self,
        job: type[Job[Data]] | Job[Data],
        data: Data,
        options: EnqueueOptions | None = None,
        **keywords: Unpack[EnqueueKeywords],
    ) -> JobHandle: ...
    def enqueue(
        self,
        job: JobName | Call,
        data: Any = None,
        options: EnqueueOptions | None = None,
        *rest: object,
        **keywords: Unpack[EnqueueKeywords],
    ) -> JobHandle:
        """As `JobQueue.enqueue`."""
        return self._run(self._jobs.enqueue_call(self._jobs.make_call(job, data, options, rest, keywords)))

    def enqueue_many(self, calls: Iterable[Call]) -> int:
        """As `JobQueue.enqueue_many`. The iterable is read in the door's thread."""
        return self._run(self._jobs.enqueue_many(calls))

    def stats(self) -> Stats:
        """As `JobQueue.stats`."""
        return self._run(self._jobs.stats())

    def close(self) -> None:
        """Close the connections and end the thread. Idempotent; the next call starts anew."""
        with self._lock:
            loop, thread = self._loop, self._thread
            self._loop = self._thread = None
        if loop is not None and thread is not None and self._pid == os.getpid():
            asyncio.run_coroutine_threadsafe(self._jobs.close(), loop).result()
            loop.call_soon_threadsafe(loop.stop)
            thread.join()

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return asyncio.run_coroutine_threadsafe(work, self._started()).result()
        work.close()
        raise ConfigError("jobs.sync blocks, and an event loop runs here: use `await jobs.enqueue(…)` instead")

    def _started(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None or self._pid != os.getpid():
                self._pid = os.getpid()
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(target=self._serve, args=(self._loop,), name="fastjobs-sync", daemon=True)
                self._thread.start()
            return self._loop

    @staticmethod
    def _serve(loop: asyncio.AbstractEventLoop) -> None:
        asyncio.set_event_loop(loop)
        try:
            loop.run_forever()
        finally:
            loop.close()
