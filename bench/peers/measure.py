"""One measurement of one peer: enqueue, start workers, count, stop them; every hang ends here and is told."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import statistics
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.tally import DONE, FIRST, LAST, PID, VARIABLE, Tally

HERE = Path(__file__).parent
LOOK_S = 0.02
SILENCE_S = 30.0
"""Workers that get no further for so long hang."""

SETTLE_S = 0.3
"""After the last job: time for one that runs twice to show."""

LIMIT_S = 300.0
"""The longest drain; it is meant to take seconds."""

STOP_S = 10.0
"""From SIGTERM to SIGKILL."""


class Trouble(Exception):
    """Why there is no figure."""


@dataclass(frozen=True, slots=True)
class Drained:
    """One round."""

    jobs: int
    enqueue_per_s: float
    drain_per_s: float  #: from the first start of a handler to the last end of one
    worker_mb: float  #: peak resident memory of the largest process that ran handlers


@dataclass(slots=True)
class Bench:
    """A peer's own interpreter, and a store."""

    python: Path
    adapter: str
    url: str
    root: Path
    directory: Path  #: for the tally and the log

    def call(self, *arguments: str, limit_s: float = 600.0) -> Any:
        """What the adapter prints for *arguments*."""
        command = [str(self.python), "-m", "harness", self.adapter, *arguments]
        try:
            done = subprocess.run(
                command, cwd=HERE, env=self._env, capture_output=True, text=True, timeout=limit_s, check=False
            )
        except subprocess.TimeoutExpired:
            raise Trouble(f"hung: {arguments[0]} took more than {limit_s:g} s") from None
        if done.returncode:
            raise Trouble(f"failed: {arguments[0]}: {_last_line(done.stderr)}")
        return json.loads(done.stdout.splitlines()[-1]) if done.stdout.strip() else None

    @contextmanager
    def workers(self, kind: str, processes: int) -> Iterator[list[subprocess.Popen[bytes]]]:
        """Running, and ended at the end."""
        commands = self.call("commands", kind, str(processes))
        with (self.directory / "workers.log").open("wb") as log:
            running = [
                subprocess.Popen(
                    command,
                    cwd=HERE,
                    env={**self._env, "PEERS_WORK": kind},
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
                for command in commands
            ]
        try:
            yield running
        finally:
            for process in running:
                _signal(process, signal.SIGTERM)
            deadline = time.monotonic() + STOP_S
            for process in running:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(max(deadline - time.monotonic(), 0.1))
                _signal(process, signal.SIGKILL)  # what is left of its children too
                process.wait()

    def drain(self, kind: str, jobs: int, processes: int, settle: Any) -> Drained:
        """Enqueue *jobs*, have them run. Trouble if any is lost, doubled or does not come."""
        tally = Tally.create(self._tally, jobs)
        self._prepare()
        enqueued = self.call("enqueue", kind, str(jobs))
        settle()
        with self.workers(kind, processes) as running:
            self._wait(tally, jobs, running)
            time.sleep(SETTLE_S)
            memory = max(_peak_mb(slot[PID]) for slot in tally.slots())
        if tally.lost() or tally.doubled():
            raise Trouble(f"of {jobs:,} jobs {tally.lost():,} were lost, {tally.doubled():,} runs were doubled")
        slots = [slot for slot in tally.slots() if slot[DONE]]
        seconds = (max(slot[LAST] for slot in slots) - min(slot[FIRST] for slot in slots)) / 1e9
        return Drained(jobs, jobs / enqueued["seconds"], jobs / max(seconds, 1e-6), memory)

    def latency(self, count: int) -> dict[str, float]:
        """Of single jobs at two idle processes."""
        Tally.create(self._tally, count + 100)
        self._prepare()
        with self.workers("noop", 2):
            found = sorted(self.call("latency", str(count))["ms"])
        return {"p50_ms": statistics.median(found), "p99_ms": found[min(int(0.99 * count), count - 1)]}

    def _prepare(self) -> None:
        if self.url.startswith("postgres"):
            self.call("prepare")

    def _wait(self, tally: Tally, jobs: int, running: list[subprocess.Popen[bytes]]) -> None:
        done, moved = 0, time.monotonic()
        limit = moved + LIMIT_S
        while (now := tally.done()) < jobs or tally.lost():
            if now != done:
                done, moved = now, time.monotonic()
            elif time.monotonic() - moved > SILENCE_S:
                raise Trouble(f"hung: {jobs - tally.lost():,} of {jobs:,} jobs ran, then {SILENCE_S:g} s of silence")
            if time.monotonic() > limit:
                raise Trouble(f"hung: {jobs - tally.lost():,} of {jobs:,} jobs ran in {LIMIT_S:g} s")
            if all(process.poll() is not None for process in running):
                raise Trouble(f"its workers ended by themselves: {self._log()}")
            time.sleep(LOOK_S)

    def _log(self) -> str:
        return _last_line((self.directory / "workers.log").read_text(errors="replace"))

    @property
    def _tally(self) -> Path:
        return self.directory / "tally"

    @property
    def _env(self) -> dict[str, str]:
        path = os.pathsep.join((str(HERE), str(self.root)))
        return {**os.environ, "PYTHONPATH": path, "PEERS_URL": self.url, VARIABLE: str(self._tally)}


def _signal(process: subprocess.Popen[bytes], number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def _peak_mb(pid: int) -> float:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmHWM")), 0.0)


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:200] if lines else "it says nothing"
