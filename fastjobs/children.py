"""What the supervisor's children run: worker, maintenance, broker, and the throwaway one that tries an import.

Each gets one `ChildTask`, runs `run_child`, and ends in `leave`.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import faulthandler
import gc
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Coroutine
from typing import Any, Final, NoReturn

import msgspec
import uvloop

from fastjobs.app import find_spec, load_app, other_threads, user_traceback
from fastjobs.backends import mask_password, scheme_of
from fastjobs.backends.broker import serve
from fastjobs.bequest import take
from fastjobs.childtask import (
    EXIT_FAILED,
    EXIT_IMPORT,
    EXIT_REFUSED,
    EXIT_UNFINISHED,
    TASK_VARIABLE,
    AppFacts,
    ChildTask,
    Described,
    plain_options,
    read_options,
)
from fastjobs.errors import BackendError, FastjobsError
from fastjobs.forks import Guard
from fastjobs.maintenance import Maintenance
from fastjobs.queue import JobQueue
from fastjobs.signals import ENDING, STACKS
from fastjobs.slots import Slots
from fastjobs.streams import flush_standard, sturdy
from fastjobs.terms import Terms
from fastjobs.worker import Worker

log = logging.getLogger("fastjobs.supervisor")

PR_SET_PDEATHSIG: Final = 1
PR_SET_NAME: Final = 15


def facts_of(jobs: JobQueue, spec: str, threads: list[str]) -> AppFacts:
    """The facts about an imported app. ConfigError if its URL cannot be that of a store."""
    scheme = scheme_of(jobs.url)
    if scheme != "memory":
        jobs.store()  # checks the URL, and loads the store's library once for all children; nothing is opened
    return AppFacts(
        spec=spec,
        app_id=jobs.app_id,
        scheme=scheme,
        url=mask_password(jobs.url),
        jobs={handler.name: handler.queue for handler in jobs.registry.handlers()},
        queues=list(jobs.queues()),
        options=plain_options(jobs.worker_options),
        threads=threads,
    )


def main() -> NoReturn:
    """A fresh interpreter's entry."""
    task = msgspec.json.decode(take(TASK_VARIABLE) or b"", type=ChildTask)
    code = EXIT_FAILED
    try:
        for fd in task.descriptors():
            os.set_inheritable(fd, False)
        code = run_child(task, None, None)
    except FastjobsError as error:
        print(f"error: {error}", file=sys.stderr)
        code = EXIT_IMPORT
    except BaseException:
        log.exception("%s process failed", task.role)
    leave(code)


def leave(code: int) -> NoReturn:
    """End this process now: no thread is joined, no exit handler of the supervisor's runs."""
    with contextlib.suppress(Exception):
        logging.shutdown()
    flush_standard()
    os._exit(code)


# -- in the child -----------------------------------------------------------------------------------------------------


def run_child(task: ChildTask, jobs: JobQueue | None, slots: Slots | None) -> int:
    """Do *task*, return the exit code."""
    end_with(task.supervisor, task.life_fd)
    _show_role(task.role)
    _connect_streams(task)
    faulthandler.enable(file=2)
    faulthandler.register(signal.SIGUSR1, file=2, all_threads=True)
    if task.role == "worker" and task.pipe_fd >= 0:
        faulthandler.register(signal.SIGUSR2, file=task.pipe_fd, all_threads=True)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STACKS)
    if task.role == "broker":
        return _run_loop(_serve(task))
    if task.directory:
        os.chdir(task.directory)
    if task.role == "describe":
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
        return _describe(task)
    if jobs is None:
        jobs = load_app(task.spec, task.app_dir)
        if task.log is not None:
            task.log.apply()
        gc.freeze()
    if slots is None:
        slots = Slots.attach(task.slots_fd)
    if task.backend is not None:
        jobs.use(task.backend)
    work = _work if task.role == "worker" else _maintain
    return _run_loop(work(task, jobs, slots))


def end_with(supervisor: int, life_fd: int) -> None:
    """See to it that this process does not outlive the supervisor: a worker without one would keep its jobs for ever."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    elif life_fd >= 0:
        threading.Thread(target=_watch_life, args=(life_fd,), name="fastjobs-life", daemon=True).start()
    if os.getppid() != supervisor:  # it died before we asked
        os._exit(EXIT_FAILED)


def _show_role(role: str) -> None:
    """Name the process in `ps` and `top`: fj-worker, fj-maintenance, fj-broker (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_NAME, f"fj-{role}".encode(), 0, 0, 0)


def _watch_life(life_fd: int) -> None:
    os.read(life_fd, 1)  # nobody writes: it returns when the last writer, the supervisor, is gone
    os.kill(os.getpid(), signal.SIGKILL)


def _connect_streams(task: ChildTask) -> None:
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)  # another process group's terminal would stop us on the first read
    os.close(null)
    if task.out_fd >= 0:
        os.dup2(task.out_fd, 1)
        os.dup2(task.err_fd, 2)
    sys.stdout, sys.stderr = sturdy(sys.stdout, 1), sturdy(sys.stderr, 2)


def _run_loop(work: Coroutine[Any, Any, int]) -> int:
    """The result of *work* on a fresh loop.

    Not by `uvloop.run`: a task that a handler left behind can raise SystemExit out of the loop, and the clean-up of that would
    cancel everything and look like an orderly end. So this process ends as if killed there: what ran counts a loss.
    """
    loop = uvloop.new_event_loop()
    asyncio.set_event_loop(loop)
    try:
        return loop.run_until_complete(work)
    except (SystemExit, KeyboardInterrupt) as error:
        log.critical("%s was raised in a task that nobody awaits, and ended this process", type(error).__name__, exc_info=error)
        leave(error.code if isinstance(error, SystemExit) and isinstance(error.code, int) and error.code else EXIT_FAILED)


async def _work(task: ChildTask, jobs: JobQueue, slots: Slots) -> int:
    """A worker: drain on SIGTERM. Whoever wants it to end at once sends SIGKILL, as the supervisor does.

    A second SIGTERM means nothing: systemd sends one to every process of a unit, and the supervisor another to its workers.
    """
    options = read_options(task.options)
    slot = slots.slots[task.slot]
    worker = Worker(jobs.store(), jobs, options, lease=task.lease, slot=slot, die=_die)
    told = False

    def stop() -> None:
        nonlocal told
        if not told:
            told = True
            worker.drain()

    _on_signals(stop)
    try:
        with Guard(slots.close, (*ENDING, *STACKS)):
            await worker.run()
    except BackendError as error:
        log.error("%s", error)
        leave(0 if told else EXIT_REFUSED)
    except Exception as error:
        log.error("worker failed: %s: %s\n%s", type(error).__name__, error, user_traceback(error))
        leave(EXIT_FAILED)
    # Not through the loop's end: that would wait for tasks and threads that would not stop.
    leave(EXIT_UNFINISHED if worker.unfinished else 0)


def _die(why: str) -> NoReturn:
    log.critical("this worker ends at once: %s", why)
    leave(EXIT_FAILED)


async def _maintain(task: ChildTask, jobs: JobQueue, slots: Slots) -> int:
    maintenance = Maintenance(
        jobs.store(),
        lease=task.lease,
        slots=slots,
        options=read_options(task.options),
        terms=Terms(jobs.registry, jobs.queue_options),
        queues=task.queues,
        observe=task.observe,
        burst=task.burst,
    )
    stop = asyncio.Event()
    _on_signals(stop.set)

    def woken() -> None:
        os.read(task.pipe_fd, 4096)
        maintenance.wake()

    asyncio.get_running_loop().add_reader(task.pipe_fd, woken)
    await maintenance.run(stop)
    leave(0)


async def _serve(task: ChildTask) -> int:
    serving = asyncio.ensure_future(_until_cancelled(serve(task.socket, started=lambda: os.write(task.pipe_fd, b"1"))))
    _on_signals(serving.cancel)
    try:
        await asyncio.wait([serving])
        return serving.result()
    except BackendError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_REFUSED


async def _until_cancelled(work: Coroutine[Any, Any, None]) -> int:
    with contextlib.suppress(asyncio.CancelledError):
        await work
    return 0


def _on_signals(action: Callable[[], object]) -> None:
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, action)
    loop.add_signal_handler(signal.SIGINT, action)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)


def _describe(task: ChildTask) -> int:
    """Import the app, say what it is, or what is wrong with it."""
    try:
        jobs = load_app(task.spec, task.app_dir)
        if task.backend is not None:
            jobs.use(task.backend)
        described = Described(facts_of(jobs, str(find_spec(task.spec)), other_threads()))
    except FastjobsError as error:
        described = Described(error=str(error))
    with open(task.pipe_fd, "wb") as pipe:
        pipe.write(msgspec.json.encode(described))
    return 0 if described.facts else EXIT_IMPORT
