"""Children of a supervisor, from their first moment."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest
import uvloop

from fastjobs import children, launch
from fastjobs.childtask import ChildTask

GRACEFUL = 7


def told_early(*_: object) -> int:
    """A child that gets SIGTERM before it has its handlers."""
    os.kill(os.getpid(), signal.SIGTERM)

    async def work() -> int:
        stop = asyncio.Event()
        children._on_signals(stop.set)
        await stop.wait()
        return GRACEFUL

    return uvloop.run(work())


def test_a_child_told_to_end_before_it_has_its_handlers_still_ends_by_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would leave its jobs leased, or those of others that it was to give back."""
    monkeypatch.setattr(launch, "run_child", told_early)
    task = ChildTask(role="maintenance", supervisor=os.getpid())
    _, status = os.waitpid(launch.fork_child(task, None, None, lambda: None), 0)  # type: ignore[arg-type]
    assert os.waitstatus_to_exitcode(status) == GRACEFUL
