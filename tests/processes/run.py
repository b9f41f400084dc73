"""``python -m tests.processes.run SPEC OPTIONS``: supervise an app, tell the test of progress and log lines."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import json
import logging
import resource
import sys
from typing import Any

from fastjobs.childtask import LogSetup
from fastjobs.progress import Progress
from fastjobs.supervisor import LIVE_REPORT_S, Launch, SuperviseOptions, supervise
from tests.processes.events import say

PR_SET_CHILD_SUBREAPER = 36


class Told(logging.Handler):
    """Log records as events."""

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(OSError):  # the test is over
            say("log", level=record.levelname, message=record.getMessage())


def report(progress: Progress) -> None:
    with contextlib.suppress(OSError):
        say("progress", **dataclasses.asdict(progress))


def started(launch: Launch) -> None:
    say("up", reloaded=launch.reloaded, preload_threads=launch.facts.threads, workers=launch.workers)


def output(stream: int, lines: bytes) -> None:
    say("output", stream=stream, text=lines.decode())


def main() -> None:
    options: dict[str, Any] = json.loads(sys.argv[2])
    worker = options.pop("worker", {})
    relayed = options.pop("relay", False)
    if files := options.pop("files", None):  # the soft limit, as a shell's ``ulimit -Sn``
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    if options.pop("subreaper", False):  # orphans below become this process's children, as PID 1's do
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    logging.getLogger("fastjobs").addHandler(Told())
    logging.getLogger("fastjobs").setLevel(logging.INFO)
    code = supervise(
        sys.argv[1],
        SuperviseOptions(**options),
        report,
        worker=worker,
        report_s=LIVE_REPORT_S,
        logging=LogSetup(),
        started=started,
        output=output if relayed else None,
    )
    sys.exit(code)


if __name__ == "__main__":
    main()
