"""What is said to be machines: supervisors with their workers, and the producer. Real processes, by the command line itself."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Final

import psutil

from tests.chaos.app import LEDGER, MACHINE
from tests.processes.driver import ROOT

LEASE_S: Final = 4.0
"""Short, so that machines can be lost often."""

GRACE_S: Final = 8.0
"""Longer than any job of the app."""


MOST_RSS_MB: Final = 160
"""A worker has some 40 at first; handlers that leak give it more."""


ENDING_WITH_PARENT: Final = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG; survives the exec
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""
"""Not by a `preexec_fn`: the driver has threads, and a fork that runs Python code beside them may not come back."""


def interpreter(*arguments: str) -> list[str]:
    """The command line of a Python that the kernel kills when the thread that starts it ends."""
    return [sys.executable, "-c", ENDING_WITH_PARENT, *arguments]


class Process:
    """One that is started again and again, with its output in a file."""

    def __init__(self, name: str, url: str, directory: Path) -> None:
        self.name = name
        self.log = directory / f"{name}.log"
        self.process: subprocess.Popen[bytes] | None = None
        self._directory = directory
        self._env = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "XDG_RUNTIME_DIR": str(directory),
            "FASTJOBS_URL": url,
            LEDGER: str(directory / "ledger"),
            MACHINE: name,
        }

    @property
    def is_up(self) -> bool:
        """Started and not ended."""
        return self.process is not None and self.process.poll() is None

    def _start(self, *command: str, piped: bool = False) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                interpreter(*command),
                cwd=ROOT,
                env=self._env,
                stdin=subprocess.PIPE if piped else subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def send(self, number: int) -> None:
        """A signal, if it is there to get it."""
        if self.is_up:
            assert self.process is not None
            self.process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL, and wait for its end."""
        self.send(signal.SIGKILL)
        if self.process is not None:
            self.process.wait()


class Machine(Process):
    """A supervisor."""

    def __init__(self, name: str, url: str, directory: Path, workers: int) -> None:
        super().__init__(name, url, directory)
        self._workers = workers

    def start(self) -> None:
        """Run a supervisor."""
        options = ["--lease-ttl", str(LEASE_S), "--grace", str(GRACE_S), "--max-rss-mb", str(MOST_RSS_MB)]
        self._start("-m", "fastjobs", "supervise", "-n", str(self._workers), *options, "tests.chaos.app:jobs")

    def children(self, role: str = "") -> list[int]:
        """Its processes now, of one role: "worker", "maintenance"."""
        if not self.is_up:
            return []
        assert self.process is not None
        found = []
        with contextlib.suppress(psutil.NoSuchProcess):
            for child in psutil.Process(self.process.pid).children():
                with contextlib.suppress(psutil.NoSuchProcess):
                    if child.status() != psutil.STATUS_ZOMBIE and (not role or child.name() == f"fj-{role}"):
                        found.append(child.pid)
        return found

    def everything(self) -> list[int]:
        """The supervisor and its processes."""
        children = self.children()
        return [*([self.process.pid] if self.is_up and self.process else []), *children]

    def dies(self) -> list[int]:
        """All of it is killed at once. Returns the processes that were its."""
        pids = self.everything()
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.kill()
        return pids


class ProducerProcess(Process):
    """Enqueues as many jobs as it is allowed to."""

    def start(self, first: int, seed: int, only: str) -> None:
        """Run one whose jobs are numbered from *first* on. *only*: kinds that do harm with this in their words."""
        self._start("-m", "tests.chaos.producer", str(first), str(seed), only, piped=True)

    def allow(self, limit: int) -> None:
        """Jobs with numbers below *limit* may be offered."""
        if self.is_up and self.process is not None and self.process.stdin is not None:
            with contextlib.suppress(OSError):  # it is being killed
                self.process.stdin.write(f"{limit}\n".encode())
                self.process.stdin.flush()

    def finish(self, timeout_s: float) -> bool:
        """Let it end. False if it has to be killed."""
        if self.process is None:
            return True
        with contextlib.suppress(OSError):
            assert self.process.stdin is not None
            self.process.stdin.close()
        try:
            return self.process.wait(timeout_s) == 0
        except subprocess.TimeoutExpired:
            self.kill()
            return False
