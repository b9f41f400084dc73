"""``fastjobs demo``: measure Python's own standard library, one job a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from fastjobs import demo
from fastjobs.cli.fields import build, verbose_option
from fastjobs.cli.supervise import run_app
from fastjobs.cli.target import backend_option
from fastjobs.supervisor import SuperviseOptions


@click.command("demo")
@click.option("-n", "--workers", type=int, default=8, show_default=True, help="Worker processes.")
@click.option("--root", type=click.Path(exists=True, file_okay=False, path_type=Path), help="Another tree of *.py files.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="Where to write the results; must not exist yet.")
@backend_option
@verbose_option
def command(workers: int, root: Path | None, out: Path | None, backend: str | None) -> None:
    """Measure the modules of Python's standard library in worker processes, one job a file, and count what came of it.

    Exit code 1 if the result of any file is missing.
    """
    options = build(lambda: SuperviseOptions(workers=workers))
    values: dict[str, Any] = {"app": "fastjobs.demo:jobs", "style": "text", "app_dir": None, "backend": backend}
    run = demo.Run(root, out, backend)
    code = run.beside(lambda: run_app(options, {**values, "concurrency": demo.CONCURRENCY}))
    for line in run.summary():
        click.echo(line)
    raise click.exceptions.Exit(code or (1 if run.result.missing else 0))
