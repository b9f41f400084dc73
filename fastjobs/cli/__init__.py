"""The command line: ``fastjobs COMMAND``. One file per command; a command's module is imported when it is asked for."""

from __future__ import annotations

import errno
import importlib
import os
import sys
import traceback
from typing import IO, Any, Final

import click

from fastjobs.cli.fields import verbose_option
from fastjobs.errors import AppImportError, BackendError, ConfigError, FastjobsError, NotFoundError, WorkerError
from fastjobs.streams import open_missing, turn_to_nowhere

SUMMARIES: Final = {
    "supervise": "Run the app's jobs in worker processes.",
    "worker": "The same with one worker process.",
    "enqueue": "Store one job, or one per line of a file.",
    "stats": "Count what is ready, delayed, running and dead.",
    "dead": "Look at dead letters; send them back to work or delete them.",
    "purge": "Delete the ready and delayed jobs of a queue.",
    "migrate": "Bring the store's schema up to date.",
    "bench": "Measure a store and this machine with real workers.",
    "demo": "See it work: count the lines of Python's own library.",
}
"""The commands, in the order of the help, each with its line there. Kept here so that the help imports none of them."""

EXAMPLES: Final = (
    ("fastjobs supervise -n 8 shop:jobs", "run the handlers of shop.py"),
    ('fastjobs enqueue resize \'{"path": "a.png"}\'', "store one job"),
    ("fastjobs dead requeue --all --name resize", "run again what died"),
)

EXIT_BUG: Final = 70
"""A bug of fastjobs: sysexits.h's EX_SOFTWARE, which no other outcome has."""

EXIT_INTERRUPTED: Final = 130

NO_ROOM: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Failed(click.ClickException):
    """An error that the user sees as a sentence; with -v as a traceback before it."""

    def __init__(self, error: FastjobsError, *, verbose: bool) -> None:
        super().__init__(str(error))
        self.exit_code = exit_code(error)  # type: ignore[misc]  # click reads the instance's
        self._verbose = verbose

    def show(self, file: IO[Any] | None = None) -> None:
        stream = file or sys.stderr
        if self._verbose and self.__cause__ is not None:
            traceback.print_exception(self.__cause__, file=stream)
        click.echo(f"error: {self.message}", file=stream)


class Usage(click.ClickException):
    """A wrong option or argument, in the form of all other errors."""

    exit_code = 2

    def __init__(self, error: click.UsageError) -> None:
        message = error.format_message().rstrip(".")
        super().__init__(message[:1].lower() + message[1:])
        self._help = f"{error.ctx.command_path} --help" if error.ctx is not None else "fastjobs --help"

    def show(self, file: IO[Any] | None = None) -> None:
        click.echo(f"error: {self.message}\n  see: {self._help}", file=file or sys.stderr)


class Bug(click.ClickException):
    """An exception that is none of ours: shown whole, for a report."""

    exit_code = EXIT_BUG

    def show(self, file: IO[Any] | None = None) -> None:
        stream = file or sys.stderr
        assert self.__cause__ is not None
        traceback.print_exception(self.__cause__, file=stream)
        click.echo("error: a bug of fastjobs; please report it with the lines above and `fastjobs --version`", file=stream)


def exit_code(error: FastjobsError) -> int:
    """2 for what the user gave, 3 for an app that cannot be imported, 4 for the store, 1 for what is not there or ended."""
    if isinstance(error, AppImportError):
        return 3
    if isinstance(error, BackendError):
        return 4
    return 1 if isinstance(error, (WorkerError, NotFoundError)) else 2


def _check_directory() -> None:
    """ConfigError in a directory that was deleted: half of what a command does would fail there."""
    try:
        os.getcwd()
    except FileNotFoundError:
        raise ConfigError("the working directory has been deleted: change to another") from None


class Commands(click.Group):
    """Imports a command's module when it is run, and turns exceptions into sentences and exit codes."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(SUMMARIES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in SUMMARIES:
            return None
        command: click.Command = importlib.import_module(f"fastjobs.cli.{cmd_name}").command
        return command

    def main(self, *args: Any, **extra: Any) -> Any:
        open_missing()
        return super().main(*args, **extra)

    def make_context(self, *args: Any, **extra: Any) -> click.Context:
        try:
            return super().make_context(*args, **extra)
        except click.UsageError as error:
            raise Usage(error) from error

    def invoke(self, ctx: click.Context) -> Any:
        try:
            _check_directory()
            return super().invoke(ctx)
        except FastjobsError as error:
            raise Failed(error, verbose=bool(ctx.meta.get("verbose"))) from error
        except KeyboardInterrupt:
            raise click.exceptions.Exit(EXIT_INTERRUPTED) from None
        except click.UsageError as error:
            raise Usage(error) from error
        except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):  # the last: `… | head`
            raise
        except OSError as error:
            if error.errno in NO_ROOM:
                turn_to_nowhere(1)
                raise click.ClickException(f"the output cannot be written: {error.strerror}") from error
            raise Bug("") from error
        except Exception as error:
            raise Bug("") from error

    def format_usage(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Examples"):
            formatter.write_dl(EXAMPLES, col_max=48)
        formatter.write_paragraph()
        super().format_usage(ctx, formatter)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(tuple(SUMMARIES.items()))


def _print_version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        for line in importlib.import_module("fastjobs.cli.version").lines():
            click.echo(line)
        ctx.exit()


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_print_version, help="Versions, for bug reports."
)
@verbose_option
def main() -> None:
    """Background jobs: fast, never lost.

    The app is named as MODULE:NAME, by FASTJOBS_APP, or in pyproject.toml: [tool.fastjobs] app = "shop:jobs".
    Exit codes: 0 fine, 1 jobs died (--burst) or lines were refused (--jsonl), 2 usage, 3 the app cannot be imported,
    4 the store cannot be reached, 130 or 143 a drain was cut short.
    """
