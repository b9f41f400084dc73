"""``fastjobs worker``: ``supervise -n 1``."""

from __future__ import annotations

from typing import Any

import click

from fastjobs.cli.fields import build, field_options, given
from fastjobs.cli.supervise import EPILOG, common_options, run_app
from fastjobs.supervisor import SuperviseOptions


@click.command("worker", epilog=EPILOG)
@common_options
@field_options(SuperviseOptions, skip=("workers",), environment=True)
def command(**values: Any) -> None:
    """Run the jobs of the app in one worker process, supervised like many."""
    options = build(lambda: SuperviseOptions(**given(SuperviseOptions, values), workers=1))
    raise click.exceptions.Exit(run_app(options, values))
