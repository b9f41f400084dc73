"""``fastjobs purge``: empty a queue."""

from __future__ import annotations

from pathlib import Path

import click

from fastjobs.cli.target import open_app, run, target_options
from fastjobs.cli.terminal import confirm_deletion, plural
from fastjobs.options import check_name


@click.command("purge")
@click.argument("queue")
@click.option("--yes", is_flag=True, help="Do not ask.")
@target_options
def command(queue: str, yes: bool, app: str | None, app_dir: Path | None, backend: str | None) -> None:
    """Delete the ready and delayed jobs of QUEUE. Running jobs and dead letters stay."""
    check_name(queue, "QUEUE")
    jobs = open_app(app, app_dir, backend)
    if not yes:
        confirm_deletion(f"Delete all ready and delayed jobs of queue {queue}?")
    gone = run(jobs, lambda: jobs.purge(queue))
    click.echo(f"{plural(gone, 'job')} of queue {queue} deleted")
