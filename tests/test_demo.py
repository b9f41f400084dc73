"""The demonstration: what it measures, and that its count comes out right."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

import fastjobs
from fastjobs.demo import Follower, Longest, append, described, measured, python_files, report

SOURCE = b"""class A:
    def short(self): ...

    async def long(self):
        def inner():
            return 1
        return inner
"""


def test_a_file_is_measured_by_its_bytes_and_its_syntax() -> None:
    found = measured("a.py", SOURCE)
    assert (found.bytes, found.lines, found.definitions) == (len(SOURCE), 7, 4)
    assert found.sha256 == hashlib.sha256(SOURCE).hexdigest()
    assert found.longest == Longest("long", 4, 4)
    assert (found.problem, found.pid) == ("", os.getpid())


@pytest.mark.parametrize("source", [b"print 'old'", b"\0", b"# coding: nonsense\n", b"(" * 100_000, b"def f(:\n  pass"])
def test_what_is_no_valid_python_is_a_result_and_no_error(source: bytes) -> None:
    found = measured("bad.py", source)
    assert found.problem
    assert found.definitions == 0
    assert found.longest is None
    assert found.bytes == len(source)


@pytest.mark.parametrize(("source", "lines"), [(b"", 0), (b"a", 1), (b"a\n", 1), (b"a\nb", 2)])
def test_a_last_line_without_end_counts(source: bytes, lines: int) -> None:
    assert measured("a.py", source).lines == lines


def test_installed_packages_caches_and_odd_files_are_left_out(tmp_path: Path) -> None:
    for name in ("b.py", "a.py", "sub/c.py", "site-packages/x.py", "__pycache__/y.py", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    (tmp_path / "dangling.py").symlink_to(tmp_path / "nothing")
    (tmp_path / "directory.py").mkdir()
    (tmp_path / os.fsdecode(b"\xff.py")).write_text("")
    assert [os.path.relpath(path, tmp_path) for path in python_files(tmp_path)] == ["a.py", "b.py", "sub/c.py"]


def test_the_report_counts_each_file_once_and_names_what_is_missing(tmp_path: Path) -> None:
    out = tmp_path / "results.jsonl"
    for path, source in (("a.py", SOURCE), ("b.py", b"x = ("), ("a.py", SOURCE)):
        append(str(out), measured(path, source))
    found = report(["a.py", "b.py", "c.py"], out)
    assert (found.files, found.results, found.repeated, found.missing) == (3, 2, 1, ["c.py"])
    assert [msgspec.json.decode(line)["path"] for line in out.read_bytes().splitlines()] == ["a.py", "b.py"]
    assert (found.lines, found.definitions, found.unparsable) == (8, 4, 1)
    assert found.longest == [(Longest("long", 4, 4), "a.py")]
    text = "\n".join(described(found, Path("."), out, 2.0))
    assert "results      2 · missing 1 · repeated 1 · by 1 worker in 2.00 s · 1 jobs/s" in text
    assert "longest          4 lines  long  a.py:4" in text
    assert "missing      c.py" in text


def test_a_follower_sees_whole_lines_only(tmp_path: Path) -> None:
    out = tmp_path / "results.jsonl"
    line = msgspec.json.encode(measured("a.py", b"")) + b"\n"
    out.write_bytes(line + line[:5])
    follower = Follower(out)
    follower.read()
    assert follower.seen == {"a.py"}
    with out.open("ab") as file:
        file.write(line[5:].replace(b"a.py", b"b.py"))
    follower.read()
    assert follower.seen == {"a.py", "b.py"}


# -- the whole of it --------------------------------------------------------------------------------------------------


@pytest.fixture
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory for the demo's socket: it runs beside others on this machine."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", tempfile.mkdtemp(dir="/tmp"))
    monkeypatch.setenv("PYTHONPATH", str(Path(fastjobs.__file__).parents[1]))
    monkeypatch.delenv("FASTJOBS_URL", raising=False)
    yield tmp_path
    shutil.rmtree(os.environ["XDG_RUNTIME_DIR"])


def test_the_demo_measures_every_file_once_and_ends_by_itself(alone: Path) -> None:
    out = alone / "results.jsonl"
    root = Path(json.__file__).parent
    result = demo("-n", "2", "--root", str(root), "--out", str(out)).communicate(timeout=60)
    files = list(python_files(root))
    assert f"results      {len(files)} · missing 0 · repeated 0 · by " in result[0]
    lines = [msgspec.json.decode(line) for line in out.read_bytes().splitlines()]
    assert sorted(line["path"] for line in lines) == files
    [decoder] = [line for line in lines if line["path"].endswith("decoder.py")]
    assert decoder["sha256"] == hashlib.sha256(Path(decoder["path"]).read_bytes()).hexdigest()


def test_no_file_is_missing_when_workers_are_killed(alone: Path) -> None:
    source = Path(argparse.__file__).read_bytes()  # some 30 ms of work
    for number in range(150):
        (alone / f"copy{number:03}.py").write_bytes(source)
    out = alone / "results.jsonl"
    process = demo("-n", "3", "--root", str(alone), "--out", str(out))
    assert process.stderr is not None
    killed: set[int] = set()
    while len(killed) < 3:
        assert process.poll() is None, "the demo ended before three workers were killed"
        for line in out.read_bytes().splitlines() if out.exists() else ():
            if line.endswith(b"}") and (pid := msgspec.json.decode(line)["pid"]) not in killed and len(killed) < 3:
                killed.add(pid)
                os.kill(pid, signal.SIGKILL)
    told = process.communicate(timeout=60)
    assert process.returncode == 0, told[1]
    assert "results      150 · missing 0 · repeated " in told[0]


def test_results_go_to_a_new_file_only(alone: Path) -> None:
    out = alone / "results.jsonl"
    out.write_text("precious")
    process = demo("--root", str(alone), "--out", str(out))
    told = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "results go to a new file" in told[1]
    assert out.read_text() == "precious"


def demo(*args: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "fastjobs", "demo", *args]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
