"""What the supervisor tells a child, and what a throwaway child tells it: plain data that survives an exec."""

from __future__ import annotations

import dataclasses
from typing import Any, Final

import msgspec

from fastjobs.logs import Style, set_up
from fastjobs.options import WorkerOptions
from fastjobs.slots import LAYOUT

HANDOVER: Final = 2
"""Version of what a supervisor leaves to its next image, `reload.Handover`, and of `ChildTask`."""

TASK_VARIABLE: Final = "FASTJOBS_CHILD"
"""Under which a fresh interpreter gets its `ChildTask`, as JSON, see `bequest`."""

EXIT_FAILED: Final = 1
EXIT_IMPORT: Final = 3
EXIT_REFUSED: Final = 4  #: the store refuses this process; trying again would not help
EXIT_UNFINISHED: Final = 9  #: the grace time ended, jobs still run


class LogSetup(msgspec.Struct, frozen=True):
    """How the command line wants log lines, where the app has not set up logging by itself."""

    style: Style = "text"
    verbose: bool = False
    over_live_line: bool = False

    def apply(self) -> None:
        """Set logging up, once the app is imported."""
        set_up(self.style, verbose=self.verbose, over_live_line=self.over_live_line)


class ChildTask(msgspec.Struct, kw_only=True):
    """What one child is to do. Descriptors are -1 where there is none."""

    role: str  #: "worker", "maintenance", "broker" or "describe"
    supervisor: int  #: its process id
    directory: str = ""  #: to work in; "": where the supervisor is
    spec: str | None = None  #: as `load_app` takes it
    app_dir: str | None = None
    backend: str | None = None  #: URL that takes the place of the app's
    lease: str = ""
    slots_fd: int = -1
    slot: int = 0
    options: dict[str, Any] = {}
    queues: list[str] = []
    observe: bool = False
    burst: bool = False
    socket: str = ""  #: path of the broker's
    pipe_fd: int = -1  #: worker: takes its stacks; maintenance: wakes it; broker: gets a byte once it serves; describe: facts
    out_fd: int = -1  #: in place of stdout
    err_fd: int = -1  #: in place of stderr
    life_fd: int = -1  #: at its end the supervisor is dead (where the system cannot signal that)
    log: LogSetup | None = None

    def descriptors(self) -> set[int]:
        """Those that the child needs."""
        return {self.slots_fd, self.pipe_fd, self.out_fd, self.err_fd, self.life_fd} - {-1}


class AppFacts(msgspec.Struct, frozen=True):
    """What the supervisor needs to know of an app, whether or not it has imported it."""

    spec: str
    app_id: str
    scheme: str  #: of the store's URL
    url: str  #: for people: the password masked
    jobs: dict[str, str]  #: name: queue
    queues: list[str]  #: that the workers serve unless told otherwise
    options: dict[str, Any]  #: the app's own `WorkerOptions`
    threads: list[str]  #: that importing it left behind
    versions: tuple[int, int] = (HANDOVER, LAYOUT)  #: of what a supervisor of this code could take over


class Described(msgspec.Struct, frozen=True):
    """What a throwaway process says of the app: its facts, or why it cannot be imported."""

    facts: AppFacts | None = None
    error: str = ""


def plain_options(options: WorkerOptions) -> dict[str, Any]:
    """*options* as JSON can carry them; `WorkerOptions(**…)` makes them again."""
    return {**dataclasses.asdict(options), "grace": options.grace_s, "lease_ttl": options.lease_ttl_s}


def read_options(plain: dict[str, Any]) -> WorkerOptions:
    """The inverse of `plain_options`. ConfigError for values out of range."""
    queues = plain.get("queues")
    return WorkerOptions(**{**plain, "queues": tuple(queues) if queues is not None else None})
