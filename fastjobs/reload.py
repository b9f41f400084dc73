"""New code without a stop: try the import in a throwaway process, then re-execute the supervisor around its living children.

The process id, the children, the shared mapping and the pipes stay; everything Python knows is new. What the new image must
know of the old one is left to it as JSON, see `bequest`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import sys
from collections.abc import Collection
from typing import Final, NamedTuple

import msgspec

from fastjobs.bequest import leave, take
from fastjobs.childtask import AppFacts, ChildTask, Described
from fastjobs.crew import WorkerProcess, kill_group
from fastjobs.errors import AppImportError
from fastjobs.launch import spawn_child
from fastjobs.progress import Totals
from fastjobs.signals import HANDLED
from fastjobs.streams import flush_standard

log = logging.getLogger("fastjobs.supervisor")

VARIABLE: Final = "FASTJOBS_HANDOVER"


class Helper(msgspec.Struct):
    """The maintenance or broker process."""

    pid: int
    pipe_fd: int  #: our end of its pipe, -1 if it has none any more
    born: float  #: clock.monotonic
    leaving: bool = False
    kill_at: float | None = None  #: clock.monotonic


class Handover(msgspec.Struct, kw_only=True):
    """What one image of a supervisor leaves to the next."""

    pid: int
    facts: AppFacts  #: of the app that the children run
    slots_fd: int
    lease: str
    started: float  #: clock.monotonic
    next_number: int
    code: int  #: generation of the code of the image that left
    count: int  #: workers wanted
    totals: Totals
    workers: list[WorkerProcess]
    maintenance: Helper | None
    broker: Helper | None
    socket: str
    pipes: list[int]  #: of the relayed output: read and write ends
    life: list[int]  #: of the pipe whose end tells children that the supervisor is dead
    had_terminal: bool
    hangup_ignored: bool

    def descriptors(self) -> set[int]:
        """All that the new image needs."""
        helpers = [helper.pipe_fd for helper in (self.maintenance, self.broker) if helper is not None]
        stacks = [worker.stacks_fd for worker in self.workers]
        return {self.slots_fd, *helpers, *stacks, *self.pipes, *self.life} - {-1}


class Place(NamedTuple):
    """Where and with what this process was started: what a reload goes back to, whatever the app has changed since."""

    directory: str
    environment: dict[str, str]


def this_place() -> Place:
    """As it is now."""
    return Place(os.getcwd(), dict(os.environ))


class Trial:
    """A throwaway process that imports the app afresh and says what it is. OSError if the system has no room for it."""

    def __init__(self, spec: str | None, app_dir: str | None, backend: str | None, place: Place) -> None:
        self.fd, write_end = os.pipe()  #: to read from, nonblocking
        os.set_blocking(self.fd, False)
        task = ChildTask(
            role="describe",
            supervisor=os.getpid(),
            directory=place.directory,
            spec=spec,
            app_dir=app_dir,
            backend=backend,
            pipe_fd=write_end,
        )
        try:
            self.pid = spawn_child(task, place.environment)
        except OSError:
            os.close(self.fd)
            raise
        finally:
            os.close(write_end)
        self._data = b""
        self._over = False

    def read(self) -> None:
        """Take what has come. A large app's facts are more than a pipe holds."""
        with contextlib.suppress(BlockingIOError):
            while not self._over:
                data = os.read(self.fd, 65_536)
                self._over = not data
                self._data += data

    def abandon(self) -> None:
        """End it; nobody wants to know any more. It is still to be reaped."""
        kill_group(self.pid)
        os.close(self.fd)

    def ended(self) -> bool:
        """Whether it has said all it will."""
        return self._over

    def result(self) -> AppFacts:
        """What it found; once it has ended. AppImportError."""
        self.read()
        os.close(self.fd)
        try:
            described = msgspec.json.decode(self._data, type=Described)
        except msgspec.DecodeError:
            raise AppImportError("the process that was to import the app ended without a word; see above") from None
        if described.facts is None:
            raise AppImportError(described.error)
        return described.facts


def describe(spec: str | None, app_dir: str | None, backend: str | None) -> AppFacts:
    """The facts about an app that this process is not to import itself. AppImportError."""
    trial = Trial(spec, app_dir, backend, this_place())
    while not trial.ended():
        select.select([trial.fd], [], [])
        trial.read()
    os.waitpid(trial.pid, 0)
    return trial.result()


def take_over() -> Handover | None:
    """What the image before this one left, if this process is one that re-executed itself."""
    text = take(VARIABLE)
    if text is None:
        return None
    # The throwaway process of the new code has confirmed that it reads this (`AppFacts.versions`).
    handover = msgspec.json.decode(text, type=Handover)
    if handover.pid != os.getpid():
        return None
    for fd in handover.descriptors():
        os.set_inheritable(fd, False)
    return handover


def reexecute(handover: Handover, place: Place) -> None:
    """Replace this process's image by a fresh one, as it was started: at *place*.

    Returns only if the system refuses (OSError is logged). Signals stay blocked until the new image has its handlers.
    """
    descriptors = handover.descriptors()
    _set_inheritable(descriptors, True)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED)
    flush_standard()
    bequest = leave(msgspec.json.encode(handover))
    try:
        os.chdir(place.directory)
        variables = {**place.environment, VARIABLE: str(bequest)}
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], variables)  # nosec B606  # noqa: S606 - no shell is meant
    except OSError as error:
        log.error("the supervisor cannot be re-executed, the old code stays: %s", error)
    os.close(bequest)
    _set_inheritable(descriptors, False)
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _set_inheritable(descriptors: Collection[int], inheritable: bool) -> None:
    for fd in descriptors:
        os.set_inheritable(fd, inheritable)
