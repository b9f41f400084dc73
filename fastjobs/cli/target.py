"""Which app and store a command talks to: the options that all but the supervisor share."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from fastjobs.app import NO_APP, load_app
from fastjobs.backends import scheme_of
from fastjobs.backends.broker import socket_path
from fastjobs.backends.remote import URL_SCHEME
from fastjobs.cli.fields import verbose_option
from fastjobs.errors import ConfigError, StoreUnavailable
from fastjobs.local import broker_answers
from fastjobs.queue import JobQueue

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")


NO_TARGET: Final = """no app, and so no store
  Name the app:   --app shop:jobs
  or set it:      FASTJOBS_APP=shop:jobs, or [tool.fastjobs] app = "shop:jobs" in pyproject.toml
  or the store:   --backend redis://localhost"""


def target_options(command: F) -> F:
    """``--app``, ``--app-dir``, ``--backend`` and ``-v``; the command gets the first three for `run`."""
    command = verbose_option(command)
    command = backend_option(command)
    command = app_dir_option(command)
    return click.option("--app", metavar="MODULE:NAME", help="The app; default: FASTJOBS_APP or pyproject.toml.")(command)


def backend_option(command: F) -> F:
    """``--backend URL``."""
    return click.option(
        "--backend",
        metavar="URL",
        help="Where the jobs are stored; default: as the app says, or FASTJOBS_URL, which `ps` does not show to others.",
    )(command)


def app_dir_option(command: F) -> F:
    """``--app-dir DIR``."""
    return click.option(
        "--app-dir",
        type=click.Path(file_okay=False, exists=True, path_type=Path),
        help="Where to import the app from; default: the working directory.",
    )(command)


def open_app(app: str | None, app_dir: Path | None, backend: str | None, *, create: bool = False) -> JobQueue:
    """The app, on *backend* if one is given; with a backend and no app anywhere, one without handlers.

    Unless told to *create*, it makes no schema: a typing mistake in a URL would look like an empty store. An app on
    ``memory://`` is reached in its running supervisor. StoreUnavailable if none runs.
    """
    if backend is not None:
        scheme_of(backend)
    try:
        jobs = load_app(app, app_dir)
    except ConfigError as error:
        if str(error) != NO_APP:
            raise
        if backend is None or scheme_of(backend) == "memory":
            raise ConfigError(NO_TARGET) from error
        return _only_looking(JobQueue(backend), create)
    if backend is not None:
        jobs.use(backend)
    if jobs.url.startswith("memory://"):
        if not broker_answers(jobs.app_id):
            raise StoreUnavailable(
                f"the jobs of {jobs.module} are in memory (memory://) and no supervisor of it runs here; "
                f"start one: fastjobs supervise, or name a store: --backend redis://localhost, or FASTJOBS_URL"
            )
        jobs.use(f"{URL_SCHEME}{socket_path(jobs.app_id)}")
    return _only_looking(jobs, create)


def _only_looking(jobs: JobQueue, create: bool) -> JobQueue:
    if not create and jobs.url.startswith("postgres"):
        jobs.use(jobs.store(create=False))
    return jobs


def run(jobs: JobQueue, work: Callable[[], Awaitable[T]]) -> T:
    """What *work* returns, run with the connection of *jobs* open and closed after it. KeyboardInterrupt at a SIGINT."""
    return asyncio.run(_opened(jobs, work))


async def _opened(jobs: JobQueue, work: Callable[[], Awaitable[T]]) -> T:
    interrupted = asyncio.Event()
    main = asyncio.current_task()
    assert main is not None

    def interrupt() -> None:
        interrupted.set()
        main.cancel()

    # By the loop's own hand: asyncio.run would cancel us between any two bytecodes, also of a protocol that has just found
    # its caller waiting.
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGINT, interrupt)
    try:
        async with jobs:
            return await work()
    except asyncio.CancelledError:
        if interrupted.is_set():
            raise KeyboardInterrupt from None
        raise
    finally:
        loop.remove_signal_handler(signal.SIGINT)
