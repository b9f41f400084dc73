"""A directory with an app in it, where the command line is run without leaving this process."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import click

from fastjobs.backends.memory_core import MemoryStore
from tests.stores import BrokerThread

_APP = """
from fastjobs.queue import JobQueue

jobs = JobQueue(max_payload_bytes=2000, enqueue_timeout=0.1)

@jobs.job
async def resize(path: str, width: int = 800) -> None: ...

@jobs.job(queue="mail", priority=7)
def send_mail(to: str) -> None: ...
"""


@contextmanager
def shop() -> Iterator[MemoryStore]:
    """What the app's store holds. Commands that would start processes only check what they were given."""
    core = MemoryStore()
    with ExitStack() as stack:
        place = stack.enter_context(tempfile.TemporaryDirectory(prefix="fj-fuzz-"))
        Path(place, "shop.py").write_text(_APP)
        Path(place, "lines.jsonl").write_bytes(b'{"path": "a"}\n{"path": 5}\n')
        before = os.getcwd()
        os.chdir(place)
        stack.callback(os.chdir, before)
        broker = BrokerThread(core)
        stack.callback(broker.stop)
        clean = {name: value for name, value in os.environ.items() if not name.startswith("FASTJOBS_")}
        settings = {"FASTJOBS_APP": "shop:jobs", "FASTJOBS_URL": f"memory+unix://{broker.path}", "XDG_RUNTIME_DIR": place}
        stack.enter_context(mock.patch.dict(os.environ, {**clean, **settings}, clear=True))
        stack.enter_context(mock.patch.object(sys, "path", [place, *sys.path]))
        stack.callback(sys.modules.pop, "shop", None)
        # Each is tested as a process of its own (tests/test_cli_supervise.py, test_bench.py, test_demo.py).
        for start in ("fastjobs.cli.supervise.supervise", "fastjobs.cli.bench.measure", "fastjobs.cli.demo.command.callback"):
            stack.enter_context(mock.patch(start, _not_started))
        yield core


def _not_started(*given: Any, **options: Any) -> int:
    raise click.exceptions.Exit(0)
