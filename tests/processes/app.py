"""The app that the supervised workers of the tests run. Its handlers say what they do on the test's event socket."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import subprocess
import sys
import threading

from fastjobs import JobContext, JobQueue, runners
from tests.processes.events import say

jobs = JobQueue()

if stuck_s := os.environ.get("TEST_STUCK_S"):
    runners.STUCK_AFTER_S = float(stuck_s)  # type: ignore[misc]

if os.environ.get("TEST_APP_THREAD"):
    threading.Thread(target=threading.Event().wait, name="tracing", daemon=True).start()


@jobs.job
async def count(n: int) -> None:
    """A job that does nothing."""


@jobs.job
async def tell(ctx: JobContext, n: int) -> None:
    say("ran", job=n, attempt=ctx.attempt, losses=ctx.losses)


@jobs.job
async def hold(ctx: JobContext, n: int) -> None:
    """Runs until its worker stops it."""
    say("started", job=n, attempt=ctx.attempt, losses=ctx.losses)
    await asyncio.Event().wait()


@jobs.job
async def hold_once(ctx: JobContext, n: int) -> None:
    """Holds until its first worker is killed; then ends."""
    say("started", job=n, attempt=ctx.attempt, losses=ctx.losses)
    if not ctx.losses:
        await asyncio.Event().wait()


@jobs.job
async def hold_until(n: int, path: str) -> None:
    """Runs until somebody writes to the FIFO *path*."""
    say("started", job=n)
    await asyncio.get_running_loop().run_in_executor(None, _read, path)
    say("ran", job=n)


@jobs.job
async def block(n: int) -> None:
    """Holds the event loop, for ever."""
    say("started", job=n)
    threading.Event().wait()


@jobs.job(timeout=0.05, max_attempts=1)
def stubborn(n: int) -> None:
    """A thread that no time limit stops: it sits in a call."""
    say("started", job=n)
    threading.Event().wait()


@jobs.job
async def kill_worker(ctx: JobContext) -> None:
    say("started", job=0, attempt=ctx.attempt, losses=ctx.losses)
    os.kill(os.getpid(), signal.SIGKILL)


@jobs.job
async def exit_beside(ctx: JobContext) -> None:
    """Starts a task that ends the process: nobody awaits it, so it raises out of the worker's event loop."""

    async def leave() -> None:
        sys.exit(5)

    say("started", job=0, attempt=ctx.attempt, losses=ctx.losses)
    task = asyncio.create_task(leave())
    await asyncio.Event().wait()
    await task


@jobs.job
async def leave_child(n: int, *, hold: bool) -> None:
    """Starts a process that goes on after the handler has ended; with *hold* it does not end."""
    code = "import signal; signal.alarm(60); print(flush=True); signal.pause()"  # should nobody end it
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.readline()
    say("started", job=n, child=child.pid)
    if hold:
        await asyncio.Event().wait()


@jobs.job
async def orphan() -> None:
    """Leaves behind a process without a parent, which ends when this handler's pipe does."""
    read_end, write_end = os.pipe()
    middle = os.fork()
    if not middle:
        leaf = os.fork()
        if not leaf:
            os.close(write_end)
            os.read(read_end, 1)
        os._exit(0)
    os.waitpid(middle, 0)
    os.close(read_end)
    os.close(write_end)
    say("ran", job=0)


@jobs.job
async def fork_and_look() -> None:
    """Whether a process forked by a handler still has our shared mapping."""
    pid = os.fork()
    if not pid:
        with open("/proc/self/maps") as maps:
            say("ran", mapped="fastjobs-slots" in maps.read())
        os._exit(0)
    os.waitpid(pid, 0)


@jobs.job
def use_a_pool() -> None:
    """Processes that multiprocessing forks, works with, and ends by SIGTERM."""
    with multiprocessing.get_context("fork").Pool(2) as pool:
        doubled = pool.map(str, range(10))
    say("ran", job=len(doubled), pid_of_worker=os.getpid())


@jobs.job
def come_back_from_a_thread() -> None:
    """A forked process that returns from the handler instead of ending."""
    _fork_and_come_back()


@jobs.job
async def come_back_from_the_loop(*, fail: bool) -> None:
    if _fork_and_come_back() and fail:
        raise RuntimeError("in the copy")


def _fork_and_come_back() -> bool:
    """True in the copy."""
    pid = os.fork()
    if pid:
        _, status = os.waitpid(pid, 0)
        say("ran", ended=os.waitstatus_to_exitcode(status))
    return not pid


@jobs.job
async def fork_and_look_at_sockets() -> None:
    """Which sockets but the tests' own a process forked by a handler still has."""
    pid = os.fork()
    if not pid:
        links = [
            os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if os.path.lexists(f"/proc/self/fd/{fd}")
        ]
        say("ran", sockets=sum(link.startswith("socket:") for link in links))
        os._exit(0)
    os.waitpid(pid, 0)


@jobs.job
async def cancel_everything(ctx: JobContext) -> None:
    """Cancels all tasks of its event loop, the worker's among them."""
    say("started", job=0, attempt=ctx.attempt, losses=ctx.losses)
    for task in asyncio.all_tasks():
        task.cancel()
    await asyncio.Event().wait()


@jobs.job
async def grow(mib: int) -> None:
    """Takes memory and keeps it."""
    kept.append(b"x" * (mib << 20))


kept: list[bytes] = []


@jobs.job
async def speak(text: str) -> None:
    print(text)


def _read(path: str) -> None:
    with open(path) as fifo:
        fifo.read()
