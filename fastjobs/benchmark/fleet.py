"""The worker processes of a measurement: a real supervisor in a process of its own, which tells its progress line by line.

``python -m fastjobs.benchmark.fleet``, told `Options` as JSON. Each line of its stdout is a `Look`.
"""

from __future__ import annotations

import os
import resource
import sys
from typing import Final

import msgspec

from fastjobs import clock
from fastjobs.benchmark.place import TOLD
from fastjobs.benchmark.usage import children_of, name_of, private_bytes
from fastjobs.bequest import take
from fastjobs.children import end_with
from fastjobs.progress import Progress
from fastjobs.supervisor import Launch, SuperviseOptions, supervise

LOOK_S: Final = 0.005
"""Between two looks at the counts. They cost the fleet nothing: they are read from the shared mapping."""

APP: Final = "fastjobs.benchmark.app:jobs"


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What to run."""

    backend: str
    workers: int
    concurrency: int = 100
    look_s: float = LOOK_S


class Look(msgspec.Struct, frozen=True):
    """How far the fleet has come at one moment."""

    at: float  #: clock.monotonic, the same in all processes of a machine
    done: int
    retried: int
    running: int
    busy: int  #: workers that run jobs
    final: bool = False
    cpu_s: float = 0.0  #: of all children; in the final one
    private_bytes: int = 0  #: of the largest worker, at its largest look; in the final one


class Watch:
    """Writes looks."""

    def __init__(self) -> None:
        self.largest = 0
        self._weighed_at = 0.0

    def started(self, _: Launch) -> None:
        self._tell(Look(clock.monotonic(), 0, 0, 0, 0))

    def report(self, progress: Progress) -> None:
        now = clock.monotonic()
        if now - self._weighed_at > 0.25 and progress.done:
            self._weighed_at = now
            workers = [pid for pid in children_of(os.getpid()) if name_of(pid) == "fj-worker"]
            self.largest = max(self.largest, *map(private_bytes, workers), 0)
        look = Look(now, progress.done, progress.retried, progress.running, progress.busy, progress.final)
        if progress.final:
            used = resource.getrusage(resource.RUSAGE_CHILDREN)
            look = msgspec.structs.replace(look, cpu_s=used.ru_utime + used.ru_stime, private_bytes=self.largest)
        self._tell(look)

    @staticmethod
    def _tell(look: Look) -> None:
        sys.stdout.buffer.write(msgspec.json.encode(look) + b"\n")
        sys.stdout.buffer.flush()


def main() -> int:
    """The entry of the process."""
    end_with(os.getppid(), 0)
    options = msgspec.json.decode(take(TOLD) or b"", type=Options)
    watch = Watch()
    return supervise(
        APP,
        SuperviseOptions(workers=options.workers),
        watch.report,
        worker={"concurrency": options.concurrency},
        backend=options.backend,
        report_s=options.look_s,
        started=watch.started,
    )


if __name__ == "__main__":
    sys.exit(main())
