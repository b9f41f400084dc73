"""Start a child: by a fork that shares the imported app, or as a fresh interpreter that imports it by itself."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NoReturn

import msgspec

from fastjobs.bequest import leave as leave_behind
from fastjobs.children import leave, run_child
from fastjobs.childtask import EXIT_FAILED, TASK_VARIABLE, ChildTask
from fastjobs.queue import JobQueue
from fastjobs.signals import ENDING, HANDLED, STACKS, Signals, reset_in_child
from fastjobs.slots import Slots
from fastjobs.streams import flush_standard

log = logging.getLogger("fastjobs.supervisor")


class Launcher:
    """Starts the children of one supervisor. *private* gives the descriptors that no child may have."""

    def __init__(
        self,
        *,
        common: ChildTask,
        jobs: JobQueue | None,
        slots: Slots,
        private: Callable[[], Iterable[int]],
        signals: Signals,
    ) -> None:
        self.jobs = jobs  #: None: children import it by themselves
        self._common = common
        self._slots = slots
        self._private = private
        self._signals = signals

    def start(self, role: str, *, pipe_fd: int = -1, **fields: Any) -> int:
        """Start a child; *fields* are those of `ChildTask` that are its own. Returns its pid."""
        task = msgspec.structs.replace(self._common, role=role, pipe_fd=pipe_fd, **fields)
        if self.jobs is None or role == "describe":
            return spawn_child(task)
        return fork_child(task, self.jobs, self._slots, lambda: self._close_private(task))

    def _close_private(self, task: ChildTask) -> None:
        self._signals.close()
        for fd in set(self._private()) - task.descriptors():
            with contextlib.suppress(OSError):
                os.close(fd)


def fork_child(task: ChildTask, jobs: JobQueue | None, slots: Slots | None, close: Callable[[], None]) -> int:
    """Fork a child for *task*. *close* closes in it what is the supervisor's alone. Returns its pid."""
    flush_standard()
    # Blocked until the child has its own handlers: ours would record a signal where nobody looks.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED)
    try:
        pid = os.fork()
        if not pid:
            _run_forked(task, jobs, slots, close)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    with contextlib.suppress(OSError):  # the child does it too; whoever comes first
        os.setpgid(pid, pid)
    return pid


def _run_forked(task: ChildTask, jobs: JobQueue | None, slots: Slots | None, close: Callable[[], None]) -> NoReturn:
    code = EXIT_FAILED
    try:
        os.setpgid(0, 0)
        close()
        reset_in_child()
        code = run_child(task, jobs, slots)
    except BaseException:
        log.exception("%s process failed", task.role)
    leave(code)


def spawn_child(task: ChildTask, environment: Mapping[str, str] | None = None) -> int:
    """Start a fresh interpreter for *task*, with *environment* (this process's). Returns its pid."""
    bequest = leave_behind(msgspec.json.encode(task))
    variables = {**(os.environ if environment is None else environment), TASK_VARIABLE: str(bequest)}
    arguments = [sys.executable, *_interpreter_flags(), "-c", "from fastjobs.children import main; main()"]
    descriptors = task.descriptors()
    for fd in descriptors:
        os.set_inheritable(fd, True)
    try:
        return os.posix_spawn(
            sys.executable, arguments, variables, setpgroup=0, setsigmask=STACKS | ENDING, setsigdef=HANDLED | STACKS
        )
    finally:
        os.close(bequest)
        for fd in descriptors:
            os.set_inheritable(fd, False)


def _interpreter_flags() -> list[str]:
    """The flags that this interpreter was started with, up to the script, module or command."""
    flags = []
    rest = iter(sys.orig_argv[1:])
    for argument in rest:
        if not argument.startswith("-") or argument in ("-", "-c", "-m"):
            break
        flags.append(argument)
        if argument in ("-W", "-X"):
            flags.append(next(rest, ""))
    return flags
