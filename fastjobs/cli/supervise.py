"""``fastjobs supervise``: run an app's jobs in worker processes."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeVar

import click

from fastjobs.childtask import LogSetup
from fastjobs.cli.fields import build, field_options, given, verbose_option
from fastjobs.cli.screen import Screen
from fastjobs.cli.target import app_dir_option, backend_option
from fastjobs.options import WorkerOptions
from fastjobs.streams import outlive_readers
from fastjobs.supervisor import LIVE_REPORT_S, REPORT_S, SuperviseOptions, supervise

F = TypeVar("F", bound=Callable[..., Any])

EPILOG = """Each option can be set by FASTJOBS_<OPTION> in the environment too: FASTJOBS_CONCURRENCY=500. Signals: TERM and INT
drain, a second one stops at once; HUP loads new code; TTIN and TTOU add and remove a worker; USR1 shows all stacks."""


def common_options(command: F) -> F:
    """What `supervise` and `worker` share."""
    command = verbose_option(command)
    command = click.option(
        "--log", "style", type=click.Choice(["text", "json"]), default="text", envvar="FASTJOBS_LOG", help="Form of log lines."
    )(command)
    command = field_options(WorkerOptions, environment=True)(command)
    command = backend_option(command)
    command = app_dir_option(command)
    return click.argument("app", required=False, metavar="[MODULE:NAME]")(command)


@click.command("supervise", epilog=EPILOG)
@common_options
@field_options(SuperviseOptions, environment=True)
def command(**values: Any) -> None:
    """Run the jobs of the app in worker processes, until told to stop (or, with --burst, until nothing is left to do)."""
    options = build(lambda: SuperviseOptions(**given(SuperviseOptions, values)))
    raise click.exceptions.Exit(run_app(options, values))


def run_app(options: SuperviseOptions, values: dict[str, Any]) -> int:
    """Supervise as *options* and what the command line gave in *values* say. Returns the exit code."""
    style: Literal["text", "json"] = values["style"]
    worker = given(WorkerOptions, values)
    build(lambda: WorkerOptions(**worker))
    verbose = bool(click.get_current_context().meta.get("verbose"))
    app_dir: Path | None = values["app_dir"]
    outlive_readers()
    screen = Screen(style, sys.stderr)
    return supervise(
        values["app"],
        options,
        screen.report,
        worker=worker,
        app_dir=app_dir,
        backend=values["backend"],
        report_s=LIVE_REPORT_S if screen.live else REPORT_S,
        logging=LogSetup(style=style, verbose=verbose, over_live_line=screen.live),
        started=screen.started,
        output=screen.output if screen.live else None,
    )
