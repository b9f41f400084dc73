"""What is typed behind ``fastjobs``, what FASTJOBS_* and pyproject.toml say: a sentence and an exit code, never a traceback."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

from click.testing import CliRunner, Result
from hypothesis import strategies as st

from fastjobs.app import find_spec
from fastjobs.backends.memory_core import MemoryStore
from fastjobs.cli import main
from fastjobs.errors import ConfigError
from tests.fuzz.shop import shop
from tests.fuzz.strategies import damaged, noise, wild_texts
from tests.fuzz.surface import Check, Surface

NAMES = ("supervise", "worker", "enqueue", "stats", "dead", "purge", "migrate", "bench", "demo")
_FLAGS = (
    *("-v", "--help", "--version", "--json", "--yes", "--all", "--burst", "--no-burst", "-n", "--workers", "--queue", "--name"),
    *("--since", "--limit", "--jsonl", "--priority", "--delay", "--run-at", "--max-attempts", "--timeout", "--max-losses"),
    *("--grace", "--lease-ttl", "--batch", "--unknown", "--log", "--log-jobs", "--max-rss-mb", "--watchdog", "--concurrency"),
    *(
        "--app",
        "--app-dir",
        "--backend",
        "--scenario",
        "--jobs",
        "--no-preload",
        "--nonsense",
        "--",
        "-",
        "-x",
        "--=",
        "--delay=",
    ),
)
_WORDS = (
    *(
        "list",
        "show",
        "requeue",
        "delete",
        "resize",
        "send_mail",
        "mail",
        "default",
        "shop:jobs",
        "shop",
        "nothing:jobs",
        "os:path",
    ),
    *('{"path": "a"}', '{"path": 5}', "[1]", "{", "null", '{"path": "a", "x": 1}', "lines.jsonl", "nothing.jsonl", "."),
    *("1", "0", "-1", "9", "10", "1e9", "99999999999999999999", "5m", "1h30m", "soon", "2030-01-01T00:00:00Z", "2030-01-01"),
    *("12345678-1234-5678-1234-567812345678", "drain", "wait", "dead", "json", "text", "memory://", "redis://h/5x", "nonsense"),
    *("0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59", "/", "/dev/null", "/dev/full", "\udcff", ""),
)
_word = st.sampled_from(_WORDS) | wild_texts.filter(lambda text: "\0" not in text and "\ud800" not in text)  # as argv is
_LINES = tuple(
    line.split(" ")
    for line in (
        *(
            'enqueue resize {"path":"a"}',
            'enqueue send_mail {"to":"a"}',
            "enqueue resize --jsonl lines.jsonl",
            "stats",
            "dead list",
        ),
        *(
            "dead requeue --all",
            "dead delete --all --yes",
            "purge mail --yes",
            "migrate",
            "supervise",
            "worker",
            "bench",
            "demo",
        ),
        *("dead show 12345678123456781234567812345678", "supervise shop:jobs", "enqueue resize {}"),
    )
)
_nearly = st.builds(
    lambda line, options: [*line, *(word for pair in options for word in pair)],
    st.sampled_from(_LINES),
    st.lists(st.tuples(st.sampled_from(_FLAGS), _word) | st.tuples(st.sampled_from(_FLAGS)), max_size=2),
)
_any = st.builds(
    lambda first, rest: [first, *rest],
    st.sampled_from(NAMES) | _word,
    st.lists(st.sampled_from(_FLAGS) | _word | st.sampled_from(_WORDS), max_size=5),
)
arguments = _nearly | _any

EXIT_CODES = (0, 1, 2, 3, 4)


@contextmanager
def _commands() -> Iterator[Check]:
    with shop() as core:
        yield lambda args: judge(args, core)


def judge(args: list[str], core: MemoryStore) -> bool:
    """The command is done, or says in one sentence why not."""
    before = core.pending()
    result = CliRunner().invoke(main, args, input="")
    _in_order(result)
    if result.exit_code > 1:
        assert core.pending() == before or args[0] != "enqueue", "it was refused and stored all the same"
    if core.pending() > 1_000:
        core.purge("default")
    return result.exit_code == 0


def _in_order(result: Result) -> None:
    assert result.exit_code in EXIT_CODES, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    # The errors that a user sees with -v are those that a sentence stands behind.
    assert result.exit_code == 0 or result.stderr.strip(), "it failed without a word"
    assert "a bug of fastjobs" not in result.stderr


_VARIABLES = (
    *("APP", "URL", "CODEC", "WORKERS", "CONCURRENCY", "QUEUES", "GRACE", "BATCH", "LEASE_TTL", "UNKNOWN", "LOG_JOBS", "LOG"),
    *("MAX_JOBS", "MAX_RSS_MB", "WATCHDOG", "BURST", "PRELOAD", "NONSENSE"),
)
environments = st.tuples(
    st.sampled_from(("supervise", "worker", "stats", "enqueue resize {}")),
    st.dictionaries(
        st.sampled_from(_VARIABLES), _word.filter(lambda text: "\0" not in text and "\ud800" not in text), max_size=3
    ),
)


@contextmanager
def _environments() -> Iterator[Check]:
    with shop():
        yield judge_environment


def judge_environment(given: tuple[str, dict[str, str]]) -> bool:
    """As `judge`, for a command without options among such variables."""
    command, variables = given
    with mock.patch.dict(os.environ, {f"FASTJOBS_{name}": value for name, value in variables.items()}):
        result = CliRunner().invoke(main, command.split())
    _in_order(result)
    return result.exit_code == 0


_FILES = (
    b'[tool.fastjobs]\napp = "shop:jobs"\n',
    b'[project]\nname = "x"\n[tool.fastjobs]\napp = "shop"\n[tool.other]\na = 1\n',
    b"[tool]\nfastjobs = 3\n",
    b"tool = 3\n",
    b"[tool.fastjobs]\napp = 5\n",
    b'[tool.fastjobs]\napp = "shop:jobs"\nqueues = ["a"]\n',
)
files = st.sampled_from(_FILES) | damaged(_FILES) | noise


@contextmanager
def _files() -> Iterator[Check]:
    with shop():
        os.environ.pop("FASTJOBS_APP")
        yield judge_file


def judge_file(text: bytes) -> bool:
    """A pyproject.toml that names an app, or an error that names the file."""
    Path("pyproject.toml").write_bytes(text)
    try:
        spec = find_spec(None)
    except ConfigError as error:
        assert "pyproject.toml" in str(error)
        return False
    return spec.module != ""


SURFACES = (
    Surface(name="command line", inputs=arguments, opened=_commands, weight=2),
    Surface(name="FASTJOBS_ variables", inputs=environments, opened=_environments, weight=2),
    Surface(name="pyproject.toml", inputs=files, opened=_files, weight=8, offspring=4),
)
