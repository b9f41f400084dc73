"""Threads for sync handlers: on demand, kept while idle, and stoppable at a time limit.

A handler that must stop gets an exception raised in its thread (CPython's `PyThreadState_SetAsyncExc`, which acts between two
bytecodes: a thread that sits in a C call stops when that call returns). A thread that was ever targeted so is not used again:
the exception may still be pending when its job has ended.
"""

from __future__ import annotations

import asyncio
import contextvars
import ctypes
import os
import queue
import threading
from collections.abc import Callable
from typing import Any

from fastjobs.forks import end_copy


class _Work:
    """One call: what to run, in which context, and the future that waits for it."""

    __slots__ = ("context", "function", "future", "loop")

    def __init__(self, function: Callable[[], Any], loop: asyncio.AbstractEventLoop) -> None:
        self.function = function
        self.context = contextvars.copy_context()
        self.loop = loop
        self.future: asyncio.Future[Any] = loop.create_future()


class JobThread:
    """One thread that runs one call at a time."""

    def __init__(self, pool: ThreadPool) -> None:
        self._pool = pool
        self._inbox: queue.SimpleQueue[_Work | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._work: _Work | None = None  # the last one submitted
        self._ended = True  # its call has, as far as `interrupt` is concerned
        self.targeted = False
        self._thread = threading.Thread(target=self._main, name="fastjobs-job", daemon=True)
        self._thread.start()

    def submit(self, work: _Work) -> None:
        """Run *work*; its future gets the result."""
        self._work = work
        self._ended = False
        self._inbox.put(work)

    def interrupt(self, future: asyncio.Future[Any], error: type[BaseException]) -> bool:
        """Raise *error* in the thread if it still runs the call that *future* waits for. False if that has ended.

        Once per thread at most.
        """
        with self._lock:
            # Under the lock the call cannot end and the next one begin: the exception hits this job or none.
            if self._ended or self.targeted or self._work is None or self._work.future is not future:
                return False
            self.targeted = True
            assert self._thread.ident is not None
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(self._thread.ident), ctypes.py_object(error))
            return True

    def stop(self) -> None:
        """End after the current call. Never waits."""
        self._inbox.put(None)

    def _main(self) -> None:
        try:
            while not self.targeted and (work := self._inbox.get()) is not None:
                self._hand_over(self._run(work))
            for _ in range(1000 if self.targeted else 0):
                pass  # an interrupt that is still to come hits here, not in the thread's own end
        except BaseException as error:
            # An interrupt that hit outside the handler: before it began (the thread had yet to get the GIL) or after it ended.
            # There is only one, so nothing else happens from here on.
            if not self.targeted:
                raise
            if self._work is not None:
                self._hand_over((False, error))

    def _hand_over(self, outcome: tuple[bool, Any]) -> None:
        with self._lock:
            self._ended = True
        assert self._work is not None
        # `_work` stays: from here on the loop may submit the next call. Should an interrupt hit before that, the outcome is
        # handed over again, and ignored if it had arrived.
        self._pool.finished(self, self._work, outcome)

    @staticmethod
    def _run(work: _Work) -> tuple[bool, Any]:
        pid = os.getpid()
        try:
            return True, work.context.run(work.function)
        except BaseException as error:
            return False, error
        finally:
            if os.getpid() != pid:
                end_copy("a handler")


class ThreadPool:
    """Threads of one worker: as many as jobs run at once, made when needed. Use from one event loop."""

    def __init__(self) -> None:
        self._idle: list[JobThread] = []
        self._closed = False
        self.busy = 0

    def start(self, function: Callable[[], Any]) -> tuple[JobThread, asyncio.Future[Any]]:
        """Run *function* in a thread, in a copy of the caller's context. The future must be awaited to its end."""
        thread = self._idle.pop() if self._idle else JobThread(self)
        work = _Work(function, asyncio.get_running_loop())
        self.busy += 1
        thread.submit(work)
        return thread, work.future

    def finished(self, thread: JobThread, work: _Work, outcome: tuple[bool, Any]) -> None:
        """Called in the thread when its call has ended."""
        try:
            work.loop.call_soon_threadsafe(self._deliver, thread, work, outcome)
        except RuntimeError:  # the loop is closed: the worker has gone, nobody waits
            thread.stop()

    def _deliver(self, thread: JobThread, work: _Work, outcome: tuple[bool, Any]) -> None:
        if work.future.done():
            return
        self.busy -= 1
        if self._closed:
            thread.stop()
        elif not thread.targeted:
            self._idle.append(thread)
        done, value = outcome
        if done:
            work.future.set_result(value)
        elif isinstance(value, StopIteration):  # a future cannot carry it
            work.future.set_exception(RuntimeError(f"handler raised StopIteration: {value.value!r}"))
        else:
            work.future.set_exception(value)

    def close(self) -> None:
        """Let idle threads end. Threads that still run a job end after it: they are daemons, never joined."""
        self._closed = True
        for thread in self._idle:
            thread.stop()
        self._idle.clear()
