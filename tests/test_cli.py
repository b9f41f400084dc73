"""The command line: what it prints, what it refuses and how it exits."""

from __future__ import annotations

import asyncio
import io
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner, Result

import fastjobs
from fastjobs.backends.memory import MemoryBackend
from fastjobs.backends.memory_core import MemoryStore
from fastjobs.backends.remote import URL_SCHEME
from fastjobs.cli import SUMMARIES, main
from fastjobs.cli.lines import CHUNK_BYTES, Line, Lines
from fastjobs.cli.terminal import LiveLine, cut, printable, table
from fastjobs.envelope import decode_job
from fastjobs.ids import id_text, new_id, parse_id
from fastjobs.model import Failure, Job
from tests.stores import BrokerThread
from tests.test_dead import a_job, bury, bury_raw

SHOP = """
from fastjobs.queue import JobQueue

jobs = JobQueue(max_payload_bytes=2000, enqueue_timeout=0.1)

@jobs.job
async def resize(path: str, width: int = 800) -> None: ...

@jobs.job(queue="mail", priority=7)
def send_mail(to: str) -> None: ...
"""

Run = Callable[..., Result]


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory with an app in it, in which the commands run."""
    (tmp_path / "shop.py").write_text(SHOP)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(fastjobs.__file__).parents[1]))
    monkeypatch.setenv("FASTJOBS_APP", "shop:jobs")
    monkeypatch.delenv("FASTJOBS_URL", raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setattr(sys, "path", [*sys.path])
    modules = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - modules:
        if not name.startswith("fastjobs"):
            del sys.modules[name]


@pytest.fixture
def core(shop: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MemoryStore]:
    """The store that the commands reach through FASTJOBS_URL, looked into from here."""
    core = MemoryStore()
    broker = BrokerThread(core)
    monkeypatch.setenv("FASTJOBS_URL", f"{URL_SCHEME}{broker.path}")
    yield core
    broker.stop()


@pytest.fixture
def run() -> Run:
    """Run ``fastjobs`` with these arguments."""

    def invoke(*args: str, **options: Any) -> Result:
        return CliRunner().invoke(main, [*args], **options)

    return invoke


def stored(core: MemoryStore, queue: str = "default") -> list[Job]:
    return [decode_job(envelope) for envelope in core.peek(queue, 10_000_000)]


def in_store(core: MemoryStore, work: Callable[[MemoryBackend], Coroutine[Any, Any, list[str]]]) -> list[str]:
    return asyncio.run(work(MemoryBackend(core)))


# -- help and versions ------------------------------------------------------------------------------------------------


def test_the_help_opens_with_three_examples_and_names_every_command(run: Run) -> None:
    result = run("--help")
    assert result.exit_code == 0
    assert result.output.startswith("Examples:\n  fastjobs supervise -n 8")
    assert result.output.count("\n  fastjobs ") == 3
    for name in SUMMARIES:
        assert f"\n  {name} " in result.output


@pytest.mark.parametrize("name", SUMMARIES)
def test_every_command_explains_itself(run: Run, name: str) -> None:
    result = run(name, "--help")
    assert result.exit_code == 0
    assert f"Usage: main {name}" in result.output


def test_options_are_explained_by_the_comments_beside_their_fields(run: Run) -> None:
    shown = " ".join(run("enqueue", "--help").output.split())
    assert "--priority INTEGER 9 first, 0 last; default: the handler's, the queue's, or 5" in shown
    assert "--max-losses" in shown
    assert "--retry" not in shown


def test_the_version_lists_what_a_bug_report_needs(run: Run) -> None:
    lines = run("--version").output.splitlines()
    assert lines[0].startswith("fastjobs ")
    assert [line.split()[0] for line in lines[1:8]] == [
        "Python",
        "uvloop",
        "redis-py",
        "hiredis",
        "asyncpg",
        "orjson",
        "msgspec",
    ]


def test_a_command_imports_no_library_of_a_store_it_does_not_use(core: MemoryStore) -> None:
    script = (
        "import sys\nfrom fastjobs.cli import main\nmain(['stats'], standalone_mode=False)\n"
        "print(sorted({'redis', 'asyncpg'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "[]"


# -- enqueue ----------------------------------------------------------------------------------------------------------


def test_enqueue_stores_a_job_and_prints_its_id(run: Run, core: MemoryStore) -> None:
    result = run("enqueue", "resize", '{"path": "a.png"}', "--priority", "9", "--max-attempts", "3", "--timeout", "1m30s")
    assert result.exit_code == 0
    [job] = stored(core)
    assert result.output == f"{id_text(job.id)}\n"
    assert (job.name, job.queue, job.priority, job.max_attempts, job.timeout_s) == ("resize", "default", 9, 3, 90.0)
    assert msgspec.json.decode(job.payload) == {"path": "a.png"}


def test_what_the_command_line_leaves_out_the_handler_says(run: Run, core: MemoryStore) -> None:
    run("enqueue", "send_mail", '{"to": "you"}')
    [job] = stored(core, "mail")
    assert (job.priority, job.max_attempts, job.timeout_s) == (7, None, None)


@pytest.mark.parametrize("option", [("--delay", "5m"), ("--run-at", "2099-12-31T18:00:00+02:00")])
def test_a_delayed_job_is_not_ready(run: Run, core: MemoryStore, option: tuple[str, str]) -> None:
    assert run("enqueue", "resize", '{"path": "a.png"}', *option).exit_code == 0
    [queue] = core.stats().queues
    assert (queue.ready, queue.delayed) == (0, 1)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["resiz", "{}"], "shop has no job 'resiz'; did you mean resize?"),
        (["upload", "{}"], "shop has no job 'upload'; it has: resize, send_mail"),
        (["resize", '{"path": 1}'], "path"),
        (["resize", '{"pth": "x"}'], "resize(pth): unknown field; resize takes path, width"),
        (["resize", "{path: 1}"], "no valid JSON: "),
        (
            ["resize", b'{"path": "\xff"}'.decode("utf-8", "surrogateescape")],
            "no valid UTF-8: invalid start byte 0xff (byte 10)",
        ),
        (["resize", "[1]"], "arguments by name"),
        (["resize", '{"path": "x"}', "--max-attempts", "0"], "--max-attempts: must be from 1"),
        (["resize", '{"path": "x"}', "--priority", "11"], "--priority: must be from 0 to 9, got 11"),
        (["resize", '{"path": "x"}', "--delay", "soon"], "--delay: 'soon' is not a duration"),
        (["resize", '{"path": "x"}', "--run-at", "2099-01-01"], "has no time zone; write 2099-01-01T00:00Z for UTC"),
        (["resize", '{"path": "x"}', "--run-at", "tomorrow"], "'tomorrow' is not a time"),
        (["resize", '{"path": "x"}', "--run-at", "2099-01-01T00:00Z", "--delay", "1s"], "cannot stand beside a delay"),
        (["resize", '{"path": "x"}', "--jsonl", "-"], "not both"),
        (["resize", f'{{"path": "{"x" * 2000}"}}'], "over the limit of 2,000"),
        (["resize", "--jsonl", "nothing.jsonl"], "nothing.jsonl"),
    ],
)
def test_bad_input_is_refused_with_one_sentence_and_exit_code_2(
    run: Run, core: MemoryStore, args: list[str], said: str
) -> None:
    result = run("enqueue", *args)
    assert said in result.stderr
    assert result.exit_code == 2
    assert "Traceback" not in result.stderr
    assert result.stdout == ""
    assert not core.stats().queues


def test_verbose_shows_the_traceback_too(run: Run, core: MemoryStore) -> None:
    for args in (("-v", "enqueue", "resize", "{"), ("enqueue", "resize", "{", "-v")):
        result = run(*args)
        assert "Traceback" in result.stderr
        assert result.stderr.splitlines()[-1].startswith("error: no valid JSON")


# -- enqueue --jsonl --------------------------------------------------------------------------------------------------


def test_each_line_of_a_file_becomes_a_job_in_order(run: Run, core: MemoryStore, shop: Path) -> None:
    (shop / "paths.jsonl").write_bytes(b"\xef\xbb\xbf" + b'{"path": "0"}\r\n\n' + b'{"path": "1"}\n  \n{"path": "2"}')
    result = run("enqueue", "resize", "--jsonl", "paths.jsonl", "--priority", "8")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("3 jobs stored · ")
    assert [(msgspec.json.decode(job.payload)["path"], job.priority) for job in stored(core)] == [("0", 8), ("1", 8), ("2", 8)]


def test_refused_lines_are_told_with_number_and_reason_and_the_others_stored(run: Run, core: MemoryStore) -> None:
    lines = [b'{"path": "a"}', b"{", b'{"path": 1}', b'{"path": "\xff"}', b'{"path": "' + b"x" * 5000 + b'"}', b'{"path": "b"}']
    result = run("enqueue", "resize", "--jsonl", "-", input=b"\n".join(lines))
    assert result.exit_code == 1
    assert result.stdout.startswith("2 jobs stored · 4 lines refused · ")
    told = result.stderr.splitlines()
    assert [line.split(":")[0] for line in told] == [f"line {number} refused" for number in (2, 3, 4, 5)]
    assert "no valid JSON" in told[0]
    assert "resize(path)" in told[1]
    assert "no valid UTF-8" in told[2]
    assert "longer than the payload limit of 2,000 bytes" in told[3]
    assert [msgspec.json.decode(job.payload)["path"] for job in stored(core)] == ["a", "b"]


def test_a_hundred_thousand_lines_all_arrive(run: Run, core: MemoryStore) -> None:
    result = run("enqueue", "resize", "--jsonl", "-", input=b"".join(b'{"path": "%d"}\n' % number for number in range(100_000)))
    assert result.exit_code == 0
    assert [int(msgspec.json.decode(job.payload)["path"]) for job in stored(core)] == list(range(100_000))


def test_lines_of_a_slow_pipe_are_stored_as_they_come(core: MemoryStore) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "fastjobs", "enqueue", "resize", "--jsonl", "-"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b'{"path": "first"}\n{"path": ')
        process.stdin.flush()
        arrived = threading.Event()
        wait_for_ready(core, 1, arrived)
        assert arrived.wait(10)
        process.stdin.write(b'"second"}\n')
        process.stdin.close()
        assert process.stdout.read().startswith(b"2 jobs stored")
    assert process.returncode == 0
    assert len(stored(core)) == 2


def wait_for_ready(core: MemoryStore, count: int, arrived: threading.Event) -> None:
    """Set *arrived* once *count* jobs are ready in the default queue."""

    async def watch() -> None:
        backend = MemoryBackend(core)
        while len(core.peek("default", count)) < count:
            await backend.wait(["default"], 1.0)
        arrived.set()

    threading.Thread(target=lambda: asyncio.run(watch()), daemon=True).start()


@pytest.mark.parametrize(
    ("error", "said"),
    [
        ("BackendError", "full\n  2,000 jobs stored; once the store is back, go on from line 2001: "),
        (
            "StoreUnavailable",
            "2,000 jobs stored (the next 1,000 may or may not be); once the store is back, go on from line 2001: ",
        ),
    ],
)
def test_a_store_that_fails_half_way_tells_after_which_line_to_go_on(run: Run, shop: Path, error: str, said: str) -> None:
    text = SHOP.replace("from fastjobs.queue import JobQueue", FAILING_STORE).replace("JobQueue(", "JobQueue(store, ")
    (shop / "full.py").write_text(text.replace("BackendError", error))
    lines = b"".join(b'{"path": "%d"}\n' % number for number in range(3000))
    result = run("enqueue", "resize", "--jsonl", "-", "--app", "full:jobs", input=lines)
    assert result.exit_code == 4
    assert f"{said}tail -n +2001 FILE | fastjobs enqueue resize --jsonl -" in result.stderr


def test_an_interrupt_tells_what_is_stored(core: MemoryStore) -> None:
    command = [sys.executable, "-m", "fastjobs", "enqueue", "resize", "--jsonl", "-"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stderr is not None
        process.stdin.write(b'{"path": "first"}\n')
        process.stdin.flush()
        arrived = threading.Event()
        wait_for_ready(core, 1, arrived)
        assert arrived.wait(10)
        process.send_signal(signal.SIGINT)
        told = process.stderr.read().decode()
        process.stdin.close()
    assert process.returncode == 130
    assert told.startswith("interrupted: ")
    assert "Traceback" not in told


FAILING_STORE = """
from fastjobs.backends.memory import MemoryBackend
from fastjobs.errors import BackendError
from fastjobs.queue import JobQueue

class Full(MemoryBackend):
    pushes = 0

    def clone(self):
        return Full(self._core)

    async def push(self, producer, seq, acked, entries):
        Full.pushes += 1
        if Full.pushes > 2:
            raise BackendError("the store is full")
        await super().push(producer, seq, acked, entries)

store = Full()
store.url = "test://"
"""


class Trickle(io.BytesIO):
    """A pipe that gives a few bytes at a time."""

    def read1(self, size: int | None = -1, /) -> bytes:
        return super().read1(3)


@pytest.mark.parametrize("kind", [io.BytesIO, Trickle])
@pytest.mark.parametrize(
    ("text", "found"),
    [
        (b"", []),
        (b"\n", [b""]),
        (b"a\nbb", [b"a", b"bb"]),
        (b"a\nbb\n", [b"a", b"bb"]),
        (b"12345678\n123456789\n12", [b"12345678", None, b"12"]),
        (b"x" * 100, [None]),
        (b"x" * 100 + b"\nok\n", [None, b"ok"]),
    ],
)
def test_lines_are_cut_whatever_the_stream_gives_at_once(
    kind: type[io.BytesIO], text: bytes, found: list[bytes | None]
) -> None:
    lines = Lines(kind(text), limit_bytes=8)
    read: list[Line] = []
    while not lines.ended:
        read += lines.next()
    assert read == [Line(number, each) for number, each in enumerate(found, 1)]
    assert lines.read_bytes == len(text)


def test_a_line_without_end_is_not_kept_in_memory() -> None:
    lines = Lines(io.BytesIO(b"x" * (5 * CHUNK_BYTES)), limit_bytes=100)
    while not lines.ended:
        lines.next()
        assert len(lines._rest) <= CHUNK_BYTES


# -- stats, purge, migrate --------------------------------------------------------------------------------------------


def test_stats_counts_by_queue(run: Run, core: MemoryStore) -> None:
    run("enqueue", "resize", "--jsonl", "-", input=b'{"path": "a"}\n' * 1200)
    run("enqueue", "send_mail", '{"to": "you"}', "--delay", "1h")
    assert run("stats").output.splitlines() == [
        "queue    ready  delayed  dead",
        "default  1,200        0     0",
        "mail         0        1     0",
        "running  0",
    ]
    assert msgspec.json.decode(run("stats", "--json").output) == {
        "queues": [
            {"queue": "default", "ready": 1200, "delayed": 0, "dead": 0},
            {"queue": "mail", "ready": 0, "delayed": 1, "dead": 0},
        ],
        "running": 0,
    }


def test_purge_empties_one_queue(run: Run, core: MemoryStore) -> None:
    run("enqueue", "resize", '{"path": "a"}')
    run("enqueue", "send_mail", '{"to": "you"}')
    unasked = run("purge", "mail")
    assert (unasked.exit_code, len(stored(core, "mail"))) == (2, 1)
    assert unasked.stderr == "error: nothing was deleted: there is no terminal to ask at; add --yes\n"
    assert run("purge", "mail", "--yes").output == "1 job of queue mail deleted\n"
    assert len(stored(core)) == 1
    assert stored(core, "mail") == []


def test_migrate_says_when_there_is_nothing_to_do(run: Run, core: MemoryStore) -> None:
    assert run("migrate").output == "nothing to do: the schema is up to date\n"


def test_a_store_can_be_named_without_an_app(run: Run, core: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    url = os.environ["FASTJOBS_URL"]
    monkeypatch.delenv("FASTJOBS_APP")
    monkeypatch.delenv("FASTJOBS_URL")
    assert run("enqueue", "anything", '{"a": 1}', "--backend", url).exit_code == 0
    assert "default      1" in run("stats", "--backend", url).output
    assert [job.name for job in stored(core)] == ["anything"]


# -- dead letters -----------------------------------------------------------------------------------------------------


def test_dead_letters_are_listed_newest_first(run: Run, core: MemoryStore) -> None:
    ids = in_store(core, lambda store: bury(store, a_job("resize"))) + in_store(
        core, lambda store: bury(store, a_job("send", "mail"))
    )
    lines = run("dead", "list").output.splitlines()
    assert lines[0].split() == ["id", "job", "queue", "died", "attempts", "reason"]
    assert [line.split()[0] for line in lines[1:]] == ids[::-1]
    assert lines[1].split()[1:3] == ["send", "mail"]
    assert lines[1].endswith("3  ValueError: no such colour")
    assert ids[0] not in run("dead", "list", "--queue", "mail", "--since", "1h").output
    assert run("dead", "list", "--name", "nobody").output == "no dead letters that fit\n"
    assert ids[0] not in run("dead", "list", "--limit", "1").stdout


def test_dead_letters_as_json_lines(run: Run, core: MemoryStore) -> None:
    [id] = in_store(core, lambda store: bury(store, a_job()))
    [line] = run("dead", "list", "--json").stdout.splitlines()
    letter = msgspec.json.decode(line)
    assert (letter["id"], letter["data"], letter["history"][0]["error"]) == (id, {"path": "a.png"}, "ValueError")
    assert msgspec.json.decode(run("dead", "show", id, "--json").stdout) == letter


def test_show_tells_payload_every_attempt_and_how_workers_died(run: Run, core: MemoryStore) -> None:
    lost = Failure(1_700_000_100.0, 4, "lost", "killed by SIGKILL", "peak memory 3.1 GiB", "", "worker-2")
    traced = Failure(1_700_000_000.0, 3, "failed", "ValueError", "no", "Traceback:\n  line 1\n  line 2", "worker-1")
    [id] = in_store(core, lambda store: bury(store, a_job(history=[traced, lost])))
    shown = run("dead", "show", id).output
    assert 'payload   {"path":"a.png"}' in shown
    assert "attempts  3 of 3, and was running when 2 workers died" in shown
    assert (
        "↻ attempt 3, failed at 2023-11-14 22:13:20 UTC on worker worker-1\n  ValueError: no\n  Traceback:\n    line 1" in shown
    )
    assert "✗ attempt 4, lost at 2023-11-14 22:15:00 UTC on worker worker-2\n  killed by SIGKILL: peak memory 3.1 GiB" in shown


def test_what_a_job_says_cannot_reach_the_terminals_controls(run: Run, core: MemoryStore) -> None:
    evil = Failure(1_700_000_000.0, 1, "failed", "E", "\x1b[2Jgone\r\n\x07", "\x1b]0;x\x07", "w")
    [id] = in_store(core, lambda store: bury(store, a_job(history=[evil], payload=b'"\\u001b[2J"')))
    for args in (("dead", "list"), ("dead", "show", id)):
        assert not set(run(*args).output) & set("\x1b\x07\r")


def test_requeue_and_delete_by_id_exit_1_if_some_were_gone(run: Run, core: MemoryStore) -> None:
    ids = in_store(core, lambda store: bury(store, a_job(), a_job(), a_job()))
    nobody = id_text(new_id())
    result = run("dead", "requeue", ids[0], nobody)
    assert (result.exit_code, result.stdout) == (1, "1 dead letter requeued\n")
    assert f"no dead letter {nobody}" in result.stderr
    result = run("dead", "delete", ids[1], ids[2])
    assert (result.exit_code, result.output) == (0, "2 dead letters deleted\n")
    [job] = stored(core)
    assert (id_text(job.id), job.attempts) == (ids[0], 0)


def test_requeue_all_takes_what_fits_and_leaves_the_unreadable(run: Run, core: MemoryStore) -> None:
    in_store(core, lambda store: bury(store, a_job("a"), a_job("b")))
    assert run("dead", "requeue", "--all", "--name", "a").output == "1 dead letter requeued\n"
    bad = asyncio.run(bury_raw_in(core))
    result = run("dead", "requeue", "--all")
    assert (result.exit_code, result.stdout) == (1, "1 dead letter requeued\n")
    assert f"left as it is: {bad} cannot be read" in result.stderr


async def bury_raw_in(core: MemoryStore) -> str:
    return await bury_raw(MemoryBackend(core), b"\xff")


def test_deleting_all_must_be_confirmed(run: Run, core: MemoryStore) -> None:
    [id] = in_store(core, lambda store: bury(store, a_job()))
    refused = run("dead", "delete", "--all", input="y\n")
    assert refused.exit_code == 2
    assert "nothing was deleted" in refused.stderr
    assert core.dead_get(parse_id(id)) is not None
    assert run("dead", "delete", "--all", "--yes").output == "1 dead letter deleted\n"


def test_a_dead_letter_that_is_not_there_is_no_wrong_usage(run: Run, core: MemoryStore) -> None:
    for command in ("show", "requeue", "delete"):
        result = run("dead", command, id := "01920000-0000-7000-8000-000000000000")
        assert (result.exit_code, result.stderr.count(f"no dead letter {id}")) == (1, 1)
        assert run("dead", command, id, *([id] if command != "show" else [])).stderr.count("no dead letter") == 1


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["requeue"], "no dead letters named: give ids, or --all"),
        (["delete", "--name", "a"], "add --all to take all that fit the filters"),
        (["requeue", "--all", "x"], "not both"),
        (["requeue", "x"], "'x' is not a job id"),
        (["list", "--since", "long"], "--since: 'long' is not a duration"),
    ],
)
def test_what_dead_cannot_do_it_says(run: Run, core: MemoryStore, args: list[str], said: str) -> None:
    result = run("dead", *args)
    assert (result.exit_code, result.stdout) == (2, "")
    assert said in result.stderr


# -- apps and stores that are not there -------------------------------------------------------------------------------


def test_no_app_shows_the_ways_to_name_one(run: Run, shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FASTJOBS_APP")
    result = run("stats")
    assert result.exit_code == 2
    for way in ("--app shop:jobs", "FASTJOBS_APP=shop:jobs", "[tool.fastjobs]", "--backend redis://localhost"):
        assert way in result.stderr


def test_an_import_error_of_the_user_shows_the_users_frames_only(run: Run, shop: Path) -> None:
    (shop / "broken.py").write_text("def load():\n    return 1 / 0\n\nload()\n")
    result = run("stats", "--app", "broken:jobs")
    assert result.exit_code == 3
    assert "ZeroDivisionError" in result.stderr
    assert "line 2, in load" in result.stderr
    assert "importlib" not in result.stderr
    assert "fastjobs/app.py" not in result.stderr


def test_a_memory_app_without_a_running_supervisor_exits_4(run: Run, shop: Path) -> None:
    result = run("stats")
    assert result.exit_code == 4
    assert "no supervisor of it runs here" in result.stderr


@pytest.mark.parametrize("url", ["postgresql://me:hunter2@127.0.0.1:1/db", "redis://me:hunter2@127.0.0.1:1/0"])
def test_a_store_that_is_away_exits_4_and_shows_no_password(run: Run, shop: Path, url: str) -> None:
    result = run("stats", "--backend", url)
    assert result.exit_code == 4, result.output
    assert "127.0.0.1:1" in result.stderr
    assert "hunter2" not in result.output


def test_a_url_of_no_store_exits_2(run: Run, shop: Path) -> None:
    result = run("stats", "--backend", "mysql://me:hunter2@host")
    assert result.exit_code == 2
    assert "names no store" in result.stderr
    assert "hunter2" not in result.output


def test_a_bug_shows_itself_whole_and_exits_70(run: Run, shop: Path) -> None:
    (shop / "odd.py").write_text(
        "from fastjobs.backends.memory import MemoryBackend\nfrom fastjobs.queue import JobQueue\n"
        "class Odd(MemoryBackend):\n    url = 'odd://'\n    def __init__(self): pass\n    time_shift_s = 0.0\n"
        "    def clone(self): return self\n    async def stats(self): raise KeyError('surprise')\n"
        "jobs = JobQueue(Odd())\n"
    )
    result = run("stats", "--app", "odd:jobs")
    assert result.exit_code == 70
    assert "KeyError: 'surprise'" in result.stderr
    assert "a bug of fastjobs" in result.stderr


# -- what is printed --------------------------------------------------------------------------------------------------


def test_text_is_cut_by_columns() -> None:
    assert cut("abcdef", 6) == "abcdef"
    assert cut("abcdef", 5) == "abcd…"
    assert cut("日本語", 5) == "日本…"
    assert printable("a\tb\x1b[0m\nc") == "a b?[0m c"


def test_a_table_lines_up_numbers_to_the_right() -> None:
    assert table(("name", "n"), [("日本", 1234), ("b", 5)]) == ["name      n", "日本  1,234", "b         5"]
    assert table(("name", "n"), []) == ["name  n"]
    assert table(("name",), [("abcdefgh",)], columns=4) == ["name", "abc…"]


def test_the_live_line_is_drawn_at_most_four_times_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    moment = [100.0]
    monkeypatch.setattr("fastjobs.clock.monotonic", lambda: moment[0])
    monkeypatch.setenv("COLUMNS", "11")
    stream = io.StringIO()
    line = LiveLine(stream)
    for text in ("one", "two"):
        line.draw(text)
    moment[0] += 0.25
    line.draw("three is too long")
    line.print("news")
    assert stream.getvalue() == "\r\x1b[2Kone\r\r\x1b[2Kthree is …\r\r\x1b[2Knews\n"
