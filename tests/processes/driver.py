"""Starts a supervisor as a process of its own and waits for what it and its children say. Nothing here sleeps."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import queue
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import termios
import threading
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

from fastjobs import clock
from tests.processes.events import VARIABLE

ROOT = Path(__file__).parents[2]

SOON_S = 20.0
"""Everything a test waits for happens at once; a machine under load gets so long."""

Event = dict[str, Any]


class Supervised:
    """One supervisor. `expect` waits for events; at the end everything it started must be gone."""

    def __init__(
        self,
        url: str,
        spec: str = "tests.processes.app:jobs",
        *,
        env: dict[str, str] | None = None,
        cwd: Path = ROOT,
        terminal: int | None = None,
        **options: Any,
    ) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="fjt-", dir="/tmp"))
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        self._socket.bind(str(self.directory / "events"))
        self.seen: list[Event] = []  #: all so far, in order
        self._waiting: list[Event] = []
        self._events: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, name="events", daemon=True)
        self._reader.start()
        options["worker"] = {"grace": 5, "lease_ttl": 6, **options.get("worker", {})}
        self.env = {
            **os.environ,
            "PYTHONPATH": f"{ROOT}{os.pathsep}{cwd}",
            "XDG_RUNTIME_DIR": str(self.directory),
            "FASTJOBS_URL": url,
            VARIABLE: str(self.directory / "events"),
            **(env or {}),
        }
        self._errors = (self.directory / "stderr").open("wb")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.processes.run", spec, json.dumps(options)],
            cwd=cwd,
            env=self.env,
            stdin=subprocess.DEVNULL if terminal is None else terminal,
            stdout=self._errors,
            stderr=self._errors,
            start_new_session=True,  # no terminal: a SIGHUP is a reload
            preexec_fn=None if terminal is None else _take_terminal,
        )

    def __enter__(self) -> Self:
        self.expect("up")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if self.process.poll() is None:
                children = psutil.Process(self.process.pid).children(recursive=True)
                self.process.kill()
                psutil.wait_procs(children, timeout=SOON_S)
            self.process.wait(SOON_S)
            if error is not None:
                print(self.stderr(), file=sys.stderr)
        finally:
            self._errors.close()
            if self._reader.is_alive():
                self._stop_reading()
            self._socket.close()
            shutil.rmtree(self.directory, ignore_errors=True)

    # -- events

    def expect(self, what: str, timeout_s: float = SOON_S, *, part: str = "", **details: Any) -> Event:
        """The first event of that kind with these details that no earlier call has taken. *part*: of a log message."""
        deadline = clock.monotonic() + timeout_s

        def fits(event: Event) -> bool:
            wanted = all(event.get(key) == value for key, value in details.items())
            return event["what"] == what and wanted and part in event.get("message", "")

        while (found := next((event for event in self._waiting if fits(event)), None)) is None:
            self._next(deadline, f"{what} {details} {part}")
        self._waiting.remove(found)
        return found

    def log(self, part: str, timeout_s: float = SOON_S) -> str:
        """A log line that contains *part*."""
        return str(self.expect("log", timeout_s, part=part)["message"])

    def progress(self, timeout_s: float = SOON_S, **details: Any) -> Event:
        """The next progress from now on with these details."""
        while not self._events.empty():
            self._next(clock.monotonic() + timeout_s, "event")
        self._waiting = [event for event in self._waiting if event["what"] != "progress"]
        return self.expect("progress", timeout_s, **details)

    def _next(self, deadline: float, what: str) -> None:
        try:
            event = self._events.get(timeout=max(deadline - clock.monotonic(), 0.001))
        except queue.Empty:
            event = None
        if event is None:
            seen = "\n".join(str(event) for event in self.seen if event["what"] != "progress")
            raise AssertionError(f"no {what}; seen:\n{seen}\n{self.stderr()}")
        self.seen.append(event)
        self._waiting.append(event)

    def _read(self) -> None:
        """Always reading: a socket holds few datagrams, and whoever tells the test must not wait for it."""
        while data := self._socket.recv(1 << 20):
            self._events.put(json.loads(data))
        self._events.put(None)

    def _stop_reading(self) -> None:
        """Take what is left; nobody speaks any more."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as speaker:
            speaker.sendto(b"", str(self.directory / "events"))
        self._reader.join(SOON_S)
        new = [event for event in iter(self._events.get_nowait, None) if event is not None]
        self.seen += new
        self._waiting += new

    def stderr(self) -> str:
        """What the supervisor and its children have printed."""
        return (self.directory / "stderr").read_text(errors="replace")

    # -- processes

    def send(self, number: int) -> None:
        """To the supervisor."""
        self.process.send_signal(number)

    def ends(self, timeout_s: float = SOON_S) -> int:
        """Wait for its end; the exit code. Nothing it started is left."""
        group = [child for child in self.children() if child.is_running()]
        code = self.process.wait(timeout_s)
        _, alive = psutil.wait_procs(group, timeout=SOON_S)
        assert not alive, f"left behind: {alive}"
        self._stop_reading()
        return code

    def children(self) -> list[psutil.Process]:
        """Its child processes."""
        with contextlib.suppress(psutil.NoSuchProcess):
            return list(psutil.Process(self.process.pid).children())
        return []

    def final(self) -> Event:
        """The last progress; once it has ended."""
        finals = [event for event in self.seen if event["what"] == "progress" and event["final"]]
        assert len(finals) == 1, self.stderr()
        return finals[0]

    def kill(self, pid: int, number: int = signal.SIGKILL) -> None:
        """Kill one of its children."""
        os.kill(pid, number)


@contextlib.contextmanager
def stopped(pids: list[int]) -> Iterator[None]:
    """These processes stand still."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def _take_terminal() -> None:
    """In the child: its stdin is its controlling terminal, whose end it is to hear of even if the tests run under nohup."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
