"""README is true: every snippet and every command in it is run, and its tables are those of the code."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.readme import README, commands, files, with_tables
from tests.stores import Place

SET_UP = "python3 -m venv"


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """A directory with README's files in it."""
    for name, text in files().items():
        (tmp_path / name).write_text(text)
    return tmp_path


def run(command: str, directory: Path, **variables: str) -> str:
    """The output of *command*, which must end well."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    project = str(README.parent)
    env = {**os.environ, "PATH": path, "PYTHONPATH": project, "PYTHONUNBUFFERED": "1", **variables}
    command = re.sub(r"^((?:\w+=\S+ )*)fastjobs ", r"\1python -m fastjobs ", command)
    command = re.sub(r"^((?:\w+=\S+ )*)python ", rf"\1{sys.executable} ", command)
    done = subprocess.run(command, shell=True, cwd=directory, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


def test_the_tables_of_options_are_those_of_the_classes() -> None:
    assert README.read_text() == with_tables(README.read_text()), "run: python -m tests.readme"


def test_the_quick_start_prints_what_it_says(shop: Path) -> None:
    printed = run("python shop.py", shop, FASTJOBS_URL="")
    assert "accepted" in printed
    assert "resized a.png to 400" in printed


def test_the_longer_example_runs_to_its_end(shop: Path) -> None:
    printed = run("python mail.py", shop, FASTJOBS_URL="")
    assert "30 enqueued" in printed
    assert "mail to a@example.com" in printed
    assert "report of 2026-11-30" in printed


def test_the_supervisor_of_the_quick_start_ends_by_itself(shop: Path) -> None:
    assert "done" in run("fastjobs supervise -n 8 --burst shop:jobs", shop, FASTJOBS_URL="")


@pytest.mark.parametrize("store_kind", ["redis", "postgres"])
async def test_the_commands_for_other_stores_run(shop: Path, place: Place, store_kind: str) -> None:
    scheme = "redis" if store_kind == "redis" else "postgresql"
    found = [command for command in commands() if command.startswith(f"FASTJOBS_URL={scheme}://")]
    assert len(found) >= 2
    for command in found:
        run(re.sub(r"^FASTJOBS_URL=\S+ ", "", command), shop, FASTJOBS_URL=place.url())


def test_every_command_of_readme_is_tried_by_some_test() -> None:
    """The two commands that set everything up are tried in a fresh clone by hand and by .ci/run."""
    known = ("python shop.py", "fastjobs ", "FASTJOBS_URL=", SET_UP)
    assert [command for command in commands() if not command.startswith(known)] == []
    assert sum(command.startswith(SET_UP) for command in commands()) == 2
