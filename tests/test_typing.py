"""mypy --strict and pyright on tests/typing: good.py passes, bad.py fails in exactly the lines that say so.

pyright runs as basedpyright in its "standard" mode: the same checker, but its wheel has all it needs, where pyright's downloads
itself and Node.js at its first run.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parent
EXPECTED = re.compile(r"#\s*E:\s*([\w-]+)\s*\|\s*(\w+)\s*$")

Errors = dict[tuple[str, int], set[str]]


def run_mypy(cache: Path) -> Errors:
    """The error codes by file and line."""
    command = [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", "--output", "json", "--cache-dir", str(cache)]
    command += ["--follow-imports", "silent"]  # fastjobs itself is checked elsewhere, and orjson may not be installed
    done = subprocess.run(
        [*command, "--config-file", os.devnull, "tests/typing/good.py", "tests/typing/bad.py"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "MYPYPATH": str(ROOT)},
        timeout=100,
        check=False,
    )
    assert done.returncode in (0, 1), done.stderr + done.stdout
    found: Errors = defaultdict(set)
    for line in done.stdout.splitlines():
        error = json.loads(line)
        if error["severity"] == "error":
            found[Path(error["file"]).name, error["line"]].add(error["code"])
    return found


def run_pyright() -> Errors:
    """The rules by file and line."""
    command = [
        sys.executable,
        "-m",
        "basedpyright",
        "--pythonpath",
        sys.executable,
        "--outputjson",
        "--project",
        str(HERE / "typing"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=100, check=False)
    try:
        report = json.loads(done.stdout)
    except ValueError:
        pytest.fail(f"pyright cannot run\n{done.stdout}{done.stderr}")
    assert report["summary"]["filesAnalyzed"] == 2
    found: Errors = defaultdict(set)
    for error in report["generalDiagnostics"]:
        if error["severity"] == "error":
            found[Path(error["file"]).name, error["range"]["start"]["line"] + 1].add(error.get("rule", error["message"]))
    return found


def expected(column: int) -> Errors:
    """What bad.py says of itself: its comments name mypy's code first, pyright's rule second."""
    found: Errors = {}
    for number, line in enumerate((HERE / "typing" / "bad.py").read_text().splitlines(), 1):
        if match := EXPECTED.search(line):
            found["bad.py", number] = {match[column]}
    return found


def check(found: Errors, wanted: Errors) -> None:
    """Every expected error is there, and there is no other."""
    unexpected = {place: codes for place, codes in found.items() if place not in wanted}
    missing = {place: codes for place, codes in wanted.items() if not codes & found.get(place, set())}
    assert (unexpected, missing) == ({}, {}), {place: found.get(place) for place in missing}


def test_the_snippets_say_what_is_wrong_with_them() -> None:
    assert len(expected(1)) == len(expected(2)) >= 50


def test_mypy_sees_what_is_right_and_what_is_wrong(tmp_path: Path) -> None:
    check(run_mypy(tmp_path), expected(1))


def test_pyright_sees_what_is_right_and_what_is_wrong() -> None:
    check(run_pyright(), expected(2))


def test_the_good_snippets_also_run() -> None:
    """So that what is shown to type checkers is what works."""
    subprocess.run(
        [sys.executable, "-c", "import tests.typing.good as good; good.jobs.load(); print(len(good.jobs.registry))"],
        check=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=60,
        capture_output=True,
    )
