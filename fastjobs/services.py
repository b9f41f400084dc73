"""The supervisor's other children: the maintenance process, and for ``memory://`` the broker that holds the jobs."""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
from collections.abc import Callable, Iterator
from typing import Final

from fastjobs import clock
from fastjobs.adoption import describe_exit
from fastjobs.crew import FIRST_DELAY_S, LONGEST_DELAY_S, NO_FORK_S, YOUNG_S, Attention, kill_group
from fastjobs.durations import duration_text
from fastjobs.errors import StoreUnavailable
from fastjobs.maintenance import FINAL_S
from fastjobs.reload import Helper
from fastjobs.slots import Head

log = logging.getLogger("fastjobs.supervisor")

LEAST_SILENCE_S: Final = 2.0
"""Maintenance shows that it is alive four times a second; a machine under load may delay that by more than a short lease."""

START_S: Final = 30.0
"""Until a fresh maintenance process that imports the app first shows itself, and until a broker serves."""

FORK_S: Final = 5.0
"""Until a forked maintenance process shows itself; it takes some 20 ms."""

STOP_S: Final = 2.0


class MaintenanceProcess:
    """Keeps one running, and watches it: a silent one is killed and replaced, for the leases of all workers hang on it."""

    def __init__(self, start: Callable[[int], int], head: memoryview, *, silence_s: float, start_s: float) -> None:
        self.process: Helper | None = None
        self._start = start  # takes the read end of its pipe, returns the pid
        self._head = head
        self._silence_s = max(silence_s, LEAST_SILENCE_S)
        self._start_s = start_s
        self._attention = Attention()
        self._failures = 0
        self._start_at = 0.0  # clock.monotonic

    def wake(self) -> None:
        """A slot became DEAD."""
        if self.process is not None and self.process.pipe_fd >= 0:
            with contextlib.suppress(OSError):  # full: it will wake anyway; broken: it is dead, its successor looks by itself
                os.write(self.process.pipe_fd, b"1")

    def tend(self, now: float) -> None:
        """Start it if it is missing; kill it if it is silent or will not end."""
        process, looking_since = self.process, self._attention.since(now)
        if process is None:
            if now >= self._start_at:
                self._begin(now)
            return
        shown = self._head[Head.ALIVE_NS] / 1e9
        limit_s = self._silence_s if shown > process.born else self._start_s
        silent_s = now - max(shown, process.born, looking_since)
        if not process.leaving and silent_s > limit_s:
            log.error("maintenance (process %d) has been silent for %.1f s and is replaced", process.pid, silent_s)
            self._kill(process)
        elif process.kill_at is not None and now >= process.kill_at:
            self._kill(process)

    def _begin(self, now: float) -> None:
        try:
            read_end, write_end = os.pipe()
        except OSError as error:
            self._cannot_start(error, now)
            return
        os.set_blocking(write_end, False)
        try:
            self.process = Helper(self._start(read_end), write_end, now)
        except OSError as error:
            os.close(write_end)
            self._cannot_start(error, now)
        finally:
            os.close(read_end)

    def _cannot_start(self, error: OSError, now: float) -> None:
        log.error("maintenance cannot be started, the next try is in %s: %s", duration_text(NO_FORK_S), error)
        self._start_at = now + NO_FORK_S

    @staticmethod
    def _kill(process: Helper) -> None:
        process.leaving = True
        process.kill_at = None
        kill_group(process.pid)

    def dismiss(self) -> None:
        """Let it settle what is left, and end; `tend` kills it if that takes too long, and starts another."""
        if self.process is not None and not self.process.leaving:
            self.process.leaving = True
            self.process.kill_at = clock.monotonic() + FINAL_S + STOP_S
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.process.pid, signal.SIGTERM)

    def finish(self, now: float) -> None:
        """The workers have gone: as `dismiss`, but if none runs, which was killed and waits for its turn, start one for it."""
        fresh = self.process is None
        if fresh:
            self._begin(now)
        self.dismiss()
        if fresh and self.process is not None and self.process.kill_at is not None:
            self.process.kill_at += self._start_s

    def kill(self) -> None:
        """End it now."""
        if self.process is not None:
            self._kill(self.process)

    def ended(self, status: int, now: float) -> None:
        """It was reaped."""
        process, self.process = self.process, None
        assert process is not None
        os.close(process.pipe_fd)
        if process.leaving:
            self._failures = 0
            return
        self._failures = self._failures + 1 if now - process.born < YOUNG_S else 1
        delay_s = min(FIRST_DELAY_S * 2.0 ** (self._failures - 1), LONGEST_DELAY_S)
        self._start_at = now + delay_s
        _, how = describe_exit(status)
        log.error("maintenance (process %d) %s; the next one starts in %s", process.pid, how, duration_text(delay_s))

    def deadlines(self) -> Iterator[float]:
        """Moments at which `tend` has something to do (clock.monotonic)."""
        if self.process is None:
            yield self._start_at
        elif self.process.kill_at is not None:
            yield self.process.kill_at


class BrokerProcess:
    """Holds the jobs of ``memory://``. It is started once: its death is the store's."""

    def __init__(self, process: Helper | None) -> None:
        self.process = process
        self.died = ""  #: how, if it was not told to

    def start(self, start: Callable[[int], int]) -> None:
        """Start it and wait until it serves. *start* takes the end of its pipe. StoreUnavailable if it does not come up."""
        read_end, write_end = os.pipe()
        try:
            pid = start(write_end)
            os.close(write_end)
            ready, _, _ = select.select([read_end], [], [], START_S)
            if not ready or not os.read(read_end, 1):
                kill_group(pid)
                os.waitpid(pid, 0)
                raise StoreUnavailable("the process that is to hold the jobs of memory:// does not come up")
        finally:
            os.close(read_end)
        self.process = Helper(pid, -1, clock.monotonic())

    def tend(self, now: float) -> None:
        """Kill it if it will not end."""
        if self.process is not None and self.process.kill_at is not None and now >= self.process.kill_at:
            kill_group(self.process.pid)

    def dismiss(self) -> None:
        """Let it end; its jobs end with it."""
        if self.process is not None and not self.process.leaving:
            self.process.leaving = True
            self.process.kill_at = clock.monotonic() + STOP_S
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.process.pid, signal.SIGTERM)

    def ended(self, status: int) -> None:
        """It was reaped."""
        assert self.process is not None
        if not self.process.leaving:
            _, self.died = describe_exit(status)
        self.process = None
