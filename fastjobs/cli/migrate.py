"""``fastjobs migrate``: the store's schema."""

from __future__ import annotations

import asyncio
from pathlib import Path

import click

from fastjobs.cli.target import open_app, target_options
from fastjobs.queue import JobQueue


@click.command("migrate")
@target_options
def command(app: str | None, app_dir: Path | None, backend: str | None) -> None:
    """Bring the store's schema up to this version of fastjobs. Safe to repeat, and while workers run."""
    steps = asyncio.run(_migrate(open_app(app, app_dir, backend, create=True)))
    for step in steps:
        click.echo(f"✓ {step}")
    if not steps:
        click.echo("nothing to do: the schema is up to date")


async def _migrate(jobs: JobQueue) -> list[str]:
    """Without opening the store first: that refuses a schema that is not up to date."""
    try:
        return await jobs.migrate()
    finally:
        await jobs.close()
