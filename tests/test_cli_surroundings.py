"""The command line in odd surroundings: streams that are closed, full or unread, stores and directories that are not there."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import fastjobs
from fastjobs import WorkerOptions
from fastjobs.cli import exit_code
from tests.stores import Place

COMMAND = f"{sys.executable} -m fastjobs"
NOWHERE = "redis://127.0.0.1:1/0"  # no server listens on port 1

SHOP = """
from fastjobs import JobQueue
jobs = JobQueue()

@jobs.job(max_attempts=1)
async def shout(word: str) -> None:
    print(word.upper())

@jobs.job(queue="mail")
async def post() -> None: ...
"""


@pytest.fixture(autouse=True)
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "shop.py").write_text(SHOP)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(fastjobs.__file__).parents[1]))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setenv("FASTJOBS_APP", "shop")
    monkeypatch.delenv("FASTJOBS_URL", raising=False)
    return tmp_path


def sh(command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """*command* in a shell, `fastjobs` in it being this one."""
    line = re.sub(r"(?<!/)fastjobs ", f"{COMMAND} ", command)
    return subprocess.run(line, shell=True, capture_output=True, text=True, timeout=60, env={**os.environ, **variables})


@pytest.fixture
def url(place: Place) -> str:
    return place.url()


one_store = pytest.mark.parametrize("store_kind", ["redis"])


@one_store
def test_a_handler_that_prints_does_not_fail_because_nobody_reads(url: str) -> None:
    lines = "\n".join(json.dumps({"word": f"w{number}"}) for number in range(300))
    for ending in ("| head -1", "2>&1 | head -1", "2> errors | head -1", "2>&1 | :", "| :"):
        assert sh(f"printf '{lines}' | fastjobs enqueue shout --jsonl -", FASTJOBS_URL=url).returncode == 0
        sh(f"fastjobs supervise -n 1 --burst {ending}", FASTJOBS_URL=url)
        [queue] = json.loads(sh("fastjobs stats --json", FASTJOBS_URL=url).stdout)["queues"]
        assert (queue["ready"], queue["delayed"], queue["dead"]) == (0, 0, 0), ending


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", "<&- >&- 2>&-"])
@one_store
def test_a_supervisor_may_be_started_without_standard_streams(url: str, closed: str) -> None:
    assert sh("""fastjobs enqueue shout '{"word": "a"}'""", FASTJOBS_URL=url).returncode == 0
    done = sh(f"fastjobs supervise -n 1 --burst {closed}", FASTJOBS_URL=url)
    assert done.returncode == 0
    assert "Traceback" not in done.stderr
    assert json.loads(sh("fastjobs stats --json", FASTJOBS_URL=url).stdout)["queues"][0]["ready"] == 0


@one_store
def test_lines_from_a_closed_stdin_are_none(url: str) -> None:
    done = sh("fastjobs enqueue shout --jsonl - <&-", FASTJOBS_URL=url)
    assert (done.returncode, "0 jobs stored" in done.stdout) == (0, True)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no such device")
@one_store
def test_a_full_disk_behind_stdout_is_told_and_that_the_job_is_stored(url: str) -> None:
    stored = sh("""fastjobs enqueue shout '{"word": "a"}' > /dev/full""", FASTJOBS_URL=url)
    assert (stored.returncode, "the job is stored" in stored.stderr, "bug" in stored.stderr) == (1, True, False)
    shown = sh("fastjobs stats > /dev/full", FASTJOBS_URL=url)
    assert (shown.returncode, "bug" in shown.stderr) == (1, False)


def test_a_working_directory_that_was_deleted_is_said() -> None:
    script = Path(sys.executable).with_name("fastjobs")  # `python -m` does not even find the module there
    done = sh(f"mkdir gone && cd gone && rmdir ../gone && {script} stats")
    assert (done.returncode, done.stderr) == (2, "error: the working directory has been deleted: change to another\n")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b'[tool.fastjobs]\napp = "shop:jobs\xff"\n', "cannot be read"),
        (b'[tool.fastjobs]\nap = "shop:jobs"\n', "no such setting: ap; there is: app"),
        (b"[tool]\nfastjobs = 3\n", "must be a table"),
        (b"tool = 3\n", "no app"),
    ],
)
def test_a_pyproject_that_says_nothing_useful_is_named(
    shop: Path, monkeypatch: pytest.MonkeyPatch, text: bytes, said: str
) -> None:
    monkeypatch.delenv("FASTJOBS_APP")
    (shop / "pyproject.toml").write_bytes(text)
    done = sh("fastjobs supervise")
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", ["supervise --burst", "stats", "enqueue post", "purge mail --yes"])
@pytest.mark.parametrize("url", [f"{NOWHERE}?nmespace=a", "redis://h/5x", "nonsense"])
def test_a_url_that_cannot_be_one_is_refused_at_once_by_every_command(command: str, url: str) -> None:
    done = sh(f"fastjobs {command}", FASTJOBS_URL=url)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr


def test_the_environment_variable_is_named_where_it_was_wrong() -> None:
    assert sh("fastjobs stats", FASTJOBS_URL="nonsense").stderr.startswith("error: FASTJOBS_URL: 'nonsense' names no store")
    assert "FASTJOBS_CONCURRENCY" in sh("fastjobs supervise", FASTJOBS_CONCURRENCY="abc").stderr


def test_a_wrong_option_is_told_as_all_other_errors_are() -> None:
    done = sh("fastjobs supervise -n many")
    sentence = "error: invalid value for '-n' / '--workers': 'many' is not a valid integer"
    assert done.stderr == f"{sentence}\n  see: fastjobs supervise --help\n"
    assert sh("fastjobs nonsense").stderr == "error: no such command 'nonsense'\n  see: fastjobs --help\n"


def test_a_burst_whose_store_is_never_reached_ends_with_4() -> None:
    done = sh("fastjobs supervise -n 1 --burst", FASTJOBS_URL=NOWHERE)
    assert done.returncode == 4
    assert "the store cannot be reached, and a burst is not to wait for ever" in done.stderr


def test_a_burst_with_nothing_to_do_still_says_that_its_workers_cannot_work(shop: Path) -> None:
    lifespan = "def lifespan():\n    raise OSError('no database')\n"
    (shop / "shop.py").write_text(SHOP.replace("jobs = JobQueue()", f"{lifespan}jobs = JobQueue(lifespan=lifespan)"))
    done = sh("fastjobs supervise -n 1 --burst")
    assert (done.returncode, "no database" in done.stderr) == (1, True)


def test_the_demo_says_at_once_that_there_is_no_store() -> None:
    done = sh(f"fastjobs demo -n 1 --backend {NOWHERE}")
    assert (done.returncode, done.stdout) == (4, "")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("store_kind", ["postgres"])
@pytest.mark.parametrize("command", ["stats", "dead list", "purge mail --yes"])
def test_who_only_looks_makes_no_schema(place: Place, command: str) -> None:
    before, equals, name = place.url().rpartition("schema=")
    schema = f"{name}_typo"
    wrong = f"{before}{equals}{schema}"
    assert equals
    for _ in range(2):
        done = sh(f"fastjobs {command} --backend '{wrong}'")
        assert done.returncode == 4
        assert f'schema "{schema}" is missing: run `fastjobs migrate`' in done.stderr


@one_store
def test_jobs_in_queues_that_nobody_served_are_told_of(url: str) -> None:
    sh("""fastjobs enqueue shout '{"word": "a"}' --queue other""", FASTJOBS_URL=url)
    done = sh("fastjobs supervise -n 1 --burst --queue default", FASTJOBS_URL=url)
    assert "1 job in queues that were not served here: fastjobs stats" in done.stderr


@one_store
def test_an_app_without_handlers_is_told_of(shop: Path, url: str) -> None:
    (shop / "shop.py").write_text("from fastjobs import JobQueue\njobs = JobQueue()\n")
    done = sh("fastjobs supervise -n 1 --burst --queue default", FASTJOBS_URL=url)
    assert "no job is registered here" in done.stderr
    assert exit_code(fastjobs.NotFoundError("x")) == 1
    assert WorkerOptions(queues=["a", "a"]).queues == ("a",)
