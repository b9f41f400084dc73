"""``fastjobs stats``: what the store holds."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec

from fastjobs.cli.target import open_app, run, target_options
from fastjobs.cli.terminal import table


@click.command("stats")
@click.option("--json", "as_json", is_flag=True, help="As one JSON object.")
@target_options
def command(as_json: bool, app: str | None, app_dir: Path | None, backend: str | None) -> None:
    """Count what is ready, delayed, running and dead, by queue."""
    jobs = open_app(app, app_dir, backend)
    stats = run(jobs, jobs.stats)
    if as_json:
        click.echo(msgspec.json.encode(stats))
        return
    rows = [(queue.queue, queue.ready, queue.delayed, queue.dead) for queue in stats.queues]
    for line in table(("queue", "ready", "delayed", "dead"), rows):
        click.echo(line)
    click.echo(f"running  {stats.running:,}")
