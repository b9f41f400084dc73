"""``fastjobs supervise`` as a person or a container sees it: real processes, real signals, a real terminal."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import io
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

import fastjobs
from fastjobs.backends.memory_core import MemoryStore
from fastjobs.backends.remote import URL_SCHEME
from fastjobs.childtask import AppFacts
from fastjobs.cli.screen import Screen, counts, summary
from fastjobs.cli.terminal import coloured, width_of
from fastjobs.envelope import decode_job
from fastjobs.options import WorkerOptions
from fastjobs.progress import Progress
from fastjobs.supervisor import Launch
from tests.stores import BrokerThread

FASTJOBS = (sys.executable, "-m", "fastjobs")

SHOP = """
import asyncio, sys, threading
from fastjobs import JobQueue

jobs = JobQueue()

@jobs.job
async def shout(word: str) -> None:
    print(word.upper())

@jobs.job(queue="mail", max_attempts=1)
async def fail(why: str) -> None:
    raise ValueError(why)

@jobs.job
async def hang() -> None:
    print("hanging", file=sys.stderr, flush=True)
    await asyncio.shield(asyncio.Event().wait())
"""


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with an app, and an environment in which the commands find it."""
    (tmp_path / "shop.py").write_text(SHOP)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(fastjobs.__file__).parents[1]))
    monkeypatch.setenv("FASTJOBS_APP", "shop")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    for name in ("FASTJOBS_URL", "NO_COLOR", "COLUMNS", "LINES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    return tmp_path


@pytest.fixture
def core(shop: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MemoryStore]:
    """A store that outlives the supervisor."""
    core = MemoryStore()
    broker = BrokerThread(core)
    monkeypatch.setenv("FASTJOBS_URL", f"{URL_SCHEME}{broker.path}")
    yield core
    broker.stop()


def run(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*FASTJOBS, *args], capture_output=True, text=True, timeout=60, check=False)


def enqueue(name: str, data: str = "{}", *options: str) -> None:
    result = run("enqueue", name, data, *options)
    assert result.returncode == 0, result.stderr


class Supervisor:
    """A running ``fastjobs supervise`` whose stderr is read line by line."""

    def __init__(self, *args: str) -> None:
        self.process = subprocess.Popen(
            [*FASTJOBS, "supervise", *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self.told: list[str] = []

    def expect(self, text: str) -> str:
        """The next line that has *text* in it. Fails if the process ends before."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.told.append(line.rstrip("\n"))
            if text in line:
                return self.told[-1]
        raise AssertionError(f"{text!r} was never said, but:\n" + "\n".join(self.told))

    def end(self, *signals: int) -> int:
        """Send *signals*, wait for the end. The exit code."""
        for number in signals:
            self.process.send_signal(number)
        assert self.process.stderr is not None
        self.told += self.process.stderr.read().splitlines()
        return self.process.wait(60)


@contextlib.contextmanager
def supervising(*args: str) -> Iterator[Supervisor]:
    supervisor = Supervisor(*args)
    try:
        yield supervisor
    finally:
        supervisor.process.kill()
        with supervisor.process:
            pass


# -- a whole life -----------------------------------------------------------------------------------------------------


def test_a_supervisor_says_what_it_runs_and_what_it_has_done(shop: Path) -> None:
    with supervising("-n", "2", "--concurrency", "7", "--log-jobs") as supervisor:
        first = supervisor.expect("shop:jobs")
        assert re.fullmatch(
            r"fastjobs \S+ · shop:jobs · memory \(in this supervisor: jobs end with it\) · 2 workers × 7", first
        )
        assert supervisor.expect("jobs ") == "  jobs    shout · fail (mail) · hang"
        assert sorted(supervisor.expect("queues ").split()[1:]) == ["default", "mail", "·"]
        wait_until_it_answers()
        enqueue("shout", '{"word": "hello"}')
        done = supervisor.expect("✓ shout")
        assert re.match(r"\d\d:\d\d:\d\d INFO  fastjobs.job  ✓ shout [0-9a-f-]{36} in ", done)
        assert supervisor.end(signal.SIGTERM) == 0
        assert re.fullmatch(r"done 1 · retried 0 · dead 0 · released 0 · \S+ s · \d+ jobs/s", supervisor.told[-1])
        assert supervisor.process.stdout is not None
        assert supervisor.process.stdout.read() == "HELLO\n"


def test_commands_reach_the_memory_of_the_running_supervisor(shop: Path) -> None:
    with supervising("-n", "1") as supervisor:
        supervisor.expect("queues")
        wait_until_it_answers()
        enqueue("shout", '{"word": "later"}', "--delay", "1h")
        assert "default      0        1     0" in run("stats").stdout
        enqueue("fail", '{"why": "no reason"}')
        supervisor.expect("✗ fail")
        listed = run("dead", "list").stdout
        assert "ValueError: no reason" in listed
        assert supervisor.end(signal.SIGINT) == 0
    assert run("stats").returncode == 4


def wait_until_it_answers() -> None:
    for _ in range(100):
        if run("stats").returncode == 0:
            return
    raise AssertionError("the supervisor does not answer")


def test_a_burst_ends_by_itself_and_tells_whether_jobs_died(core: MemoryStore) -> None:
    enqueue("shout", '{"word": "a"}')
    enqueue("shout", '{"word": "later"}', "--delay", "1h")
    fine = run("supervise", "-n", "2", "--burst")
    assert fine.returncode == 0, fine.stderr
    assert fine.stdout == "A\n"
    assert "done 1 · retried 0 · dead 0 · released 0 · delayed left 1 · " in fine.stderr.splitlines()[-1]

    enqueue("fail", '{"why": "bad luck"}')
    bad = run("worker", "--burst")
    assert bad.returncode == 1
    assert " · 1 worker × 100" in bad.stderr
    assert "done 0 · retried 0 · dead 1" in bad.stderr
    assert bad.stderr.splitlines()[-1] == "✗ 1 job died; why: fastjobs dead list"


def test_with_json_every_line_is_a_record(core: MemoryStore) -> None:
    enqueue("fail", '{"why": "bad luck"}')
    result = run("supervise", "-n", "1", "--burst", "--log", "json")
    records = [msgspec.json.decode(line) for line in result.stderr.splitlines()]
    assert records[0]["message"].startswith("fastjobs ")
    [dead] = [record for record in records if "✗ fail" in record["message"]]
    assert (dead["logger"], dead["level"], dead["job_name"], len(dead["job_id"])) == ("fastjobs.job", "WARNING", "fail", 36)


def test_logging_that_the_app_has_set_up_stays(core: MemoryStore, shop: Path) -> None:
    text = "import logging\nlogging.basicConfig(format='mine: %(message)s', level=logging.INFO)\n"
    (shop / "shop.py").write_text(text + SHOP)
    enqueue("fail", '{"why": "bad luck"}')
    lines = run("supervise", "-n", "1", "--burst").stderr.splitlines()
    assert next(line for line in lines if "✗ fail" in line).startswith("mine: ")
    assert not any("INFO " in line for line in lines)


def test_a_drain_that_is_cut_short_exits_with_the_signal_and_keeps_the_job(core: MemoryStore) -> None:
    enqueue("hang")
    with supervising("-n", "1", "--grace", "60") as supervisor:
        supervisor.expect("hanging")
        while sum(len(core.workers(lease)) for lease in core.leases()) < 2:  # maintenance, which gives the job back, is one
            run("stats")
        supervisor.process.send_signal(signal.SIGTERM)
        assert "up to 1m 0s; again to stop at once" in supervisor.expect("draining: 1 running")
        assert supervisor.end(signal.SIGTERM) == 128 + signal.SIGTERM
    [envelope] = core.peek("default", 10)
    assert decode_job(envelope).losses == 0


# -- options ----------------------------------------------------------------------------------------------------------


def test_what_the_command_line_leaves_out_the_app_and_the_environment_say(
    core: MemoryStore, shop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = SHOP.replace("JobQueue()", "JobQueue(worker=WorkerOptions(concurrency=5))").replace(
        "JobQueue\n", "JobQueue, WorkerOptions\n"
    )
    (shop / "shop.py").write_text(text)
    assert "1 worker × 5" in run("supervise", "-n", "1", "--burst").stderr
    monkeypatch.setenv("FASTJOBS_CONCURRENCY", "6")
    monkeypatch.setenv("FASTJOBS_WORKERS", "2")
    monkeypatch.setenv("FASTJOBS_QUEUES", "mail default")
    result = run("supervise", "--burst")
    assert "2 workers × 6" in result.stderr
    assert "queues  mail · default" in result.stderr
    assert "× 7" in run("worker", "--burst", "--concurrency", "7").stderr


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--concurrency", "0"], "--concurrency: must be from 1 to 10,000, got 0"),
        (["-n", "0"], "--workers: must be from 1 to 1,000, got 0"),
        (["--grace", "soon"], "--grace: 'soon' is not a duration"),
        (["--max-rss-mb", "-1"], "--max-rss-mb: must be from 1"),
        (["--watchdog", "1"], "--watchdog: must be at least 2 s"),
        (["--queue", "a b"], "--queue: must be 1 to 200 printable characters"),
        (["--unknown", "keep"], "invalid value for '--unknown'"),
        (["./shop.py"], "did you mean shop:jobs?"),
        (["--backend", "mysql://me:hunter2@host"], "names no store"),
    ],
)
def test_bad_options_are_refused_before_anything_runs(shop: Path, args: list[str], said: str) -> None:
    result = run("supervise", *args)
    assert result.returncode == 2
    assert said in result.stderr
    assert "hunter2" not in result.stderr
    assert "Traceback" not in result.stderr


def test_an_app_that_cannot_be_imported_exits_3_with_the_users_frames(shop: Path) -> None:
    (shop / "shop.py").write_text("def load():\n    import no_such_library\n\nload()\n")
    result = run("supervise")
    assert result.returncode == 3
    assert "no_such_library" in result.stderr
    assert "line 2, in load" in result.stderr
    assert "importlib" not in result.stderr


def test_no_app_shows_the_ways_to_name_one(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FASTJOBS_APP")
    result = run("supervise")
    assert result.returncode == 2
    assert result.stderr.splitlines() == [
        "error: no app to run",
        "  Name it:      fastjobs supervise shop:jobs",
        '  or set it:    FASTJOBS_APP=shop:jobs, or [tool.fastjobs] app = "shop:jobs" in pyproject.toml',
    ]


# -- the terminal -----------------------------------------------------------------------------------------------------


class Terminal:
    """A command in a terminal of its own, *columns* wide."""

    def __init__(self, *args: str, columns: int) -> None:
        self.pid, self._fd = pty.fork()
        if not self.pid:
            fcntl.ioctl(1, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
            os.execve(args[0], args, os.environ)  # execv would pass on the COLUMNS that readline sets behind Python's back
        self.shown = ""

    def expect(self, pattern: str) -> str:
        """What *pattern* matches, once it was shown."""
        while not (found := re.search(pattern, self.shown)):
            assert self._read(), f"{pattern!r} was never shown, but:\n{self.shown!r}"
        return found[0]

    def type(self, keys: bytes) -> None:
        os.write(self._fd, keys)

    def end(self) -> int:
        """Read to the end. The exit code."""
        while self._read():
            pass
        os.close(self._fd)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def _read(self) -> bool:
        try:
            data = os.read(self._fd, 65536)
        except OSError:  # Linux says so when the other end has gone
            data = b""
        self.shown += data.decode()
        return bool(data)


def test_on_a_terminal_the_line_is_redrawn_cut_to_its_width_and_output_goes_above_it(shop: Path) -> None:
    terminal = Terminal(*FASTJOBS, "supervise", "-n", "1", columns=50)
    terminal.expect(r"queues .*\n")
    terminal.expect(r"running 0 ")
    enqueue("shout", '{"word": "hello"}')
    terminal.expect(r"\x1b\[2KHELLO\r\n\r\x1b\[2K\d\d:\d\d:\d\d  ")
    terminal.expect(r"done 1 ")
    terminal.type(b"\x03")
    terminal.expect("stopping: nothing is running")
    assert terminal.end() == 0
    drawn = re.findall(r"\x1b\[2K(\d\d:\d\d:\d\d  (?:draining · )?ready [^\r\n]*)\r", terminal.shown)
    assert drawn
    assert {width_of(line) for line in drawn} == {49}
    last = terminal.shown.replace("\r\n", "\n").splitlines()[-1]
    assert re.search(r"done 1 · retried 0 · dead 0 · released 0 · \S+ s · \d+ jobs/s$", last)


def test_colours_are_for_terminals_without_no_color(monkeypatch: pytest.MonkeyPatch) -> None:
    class Tty(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert coloured("✗", Tty(), fg="red") == "\x1b[31m✗\x1b[0m"
    assert coloured("✗", io.StringIO(), fg="red") == "✗"
    monkeypatch.setenv("TERM", "dumb")
    assert coloured("✗", Tty(), fg="red") == "✗"
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    assert coloured("✗", Tty(), fg="red") == "✗"


def a_look(**changes: Any) -> Progress:
    look = Progress(
        elapsed_s=5.0, workers=8, ready=81_200, delayed=0, running=800, done=1_204_331, retried=12, dead=0, released=3,
        rate=241_300.4, overall_rate=240_866.0,
    )  # fmt: skip
    return dataclasses.replace(look, **changes)


def test_the_counting_line_and_the_last_line() -> None:
    assert counts(a_look()) == "ready 81,200 · running 800 · done 1,204,331 · retry 12 · dead 0 · 241,300 jobs/s"
    busy = a_look(ready=None, delayed=5, store_down=True, draining=True, rate=0.0)
    assert counts(busy).startswith("draining · store away · delayed 5 · running 800 · ")
    assert counts(busy).endswith(" · 240,866 jobs/s"), "at first there is only the rate since the start"
    assert counts(a_look(elapsed_s=60.0, rate=0.0)).endswith(" · 0 jobs/s")
    assert summary(a_look()) == "done 1,204,331 · retried 12 · dead 0 · released 3 · 5.00 s · 240,866 jobs/s"
    assert " · delayed left 5 · " in summary(a_look(delayed=5))


@pytest.mark.parametrize(
    ("scheme", "said"),
    [
        ("memory", "81,205 jobs not done ended with this supervisor; to keep jobs set FASTJOBS_URL"),
        ("redis", "✗ 2 jobs died; why: fastjobs dead list"),
    ],
)
def test_the_end_tells_what_to_look_at(scheme: str, said: str) -> None:
    facts = AppFacts("shop:jobs", "shop-1", scheme, "redis://me:***@host", {}, ["default"], {}, [])
    stream = io.StringIO()
    screen = Screen("text", stream)
    screen.started(Launch(facts, WorkerOptions(), 8, reloaded=False))
    screen.report(a_look(delayed=5, dead=2, final=True))
    lines = stream.getvalue().splitlines()
    assert lines[1] == "  jobs    none"
    assert lines[-1] == said


def test_an_idle_fleet_logs_nothing(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "fastjobs")
    screen = Screen("text", io.StringIO())
    for look in (a_look(), a_look(elapsed_s=10.0, rate=0.0), a_look(elapsed_s=15.0, done=1_204_332)):
        screen.report(look)
    assert len(caplog.messages) == 2


def test_a_terminal_that_is_gone_stops_nothing() -> None:
    class Gone(io.StringIO):
        def isatty(self) -> bool:
            return True

        def write(self, text: str, /) -> int:
            raise OSError(5, "Input/output error")

    screen = Screen("text", Gone())
    screen.report(a_look())
    screen.report(a_look(final=True))
