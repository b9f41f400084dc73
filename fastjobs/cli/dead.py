"""``fastjobs dead``: list, show, requeue and delete dead letters."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypedDict, TypeVar, Unpack

import click
import msgspec

from fastjobs import clock
from fastjobs.cli.fields import build
from fastjobs.cli.target import open_app, run, target_options
from fastjobs.cli.terminal import columns_of, confirm_deletion, plural, printable, table
from fastjobs.dead import DeadJob, Handled
from fastjobs.durations import duration_text
from fastjobs.errors import ConfigError, SerializationError
from fastjobs.model import Failure

F = TypeVar("F", bound=Callable[..., Any])

EXIT_NOT_ALL = 1
"""Some of the ids named were no dead letters, or are unreadable; the others are done."""


class Target(TypedDict):
    """What `target_options` gives a command."""

    app: str | None
    app_dir: Path | None
    backend: str | None


class Filters(TypedDict):
    """Which dead letters are meant."""

    name: str | None
    queue: str | None
    since: str | None


def filter_options(command: F) -> F:
    """``--name``, ``--queue``, ``--since``."""
    command = click.option("--since", metavar="DURATION", help='Died at most so long ago: "90s", "1h", "2d".')(command)
    command = click.option("--queue", metavar="NAME", help="Of this queue.")(command)
    return click.option("--name", metavar="NAME", help="Of this job.")(command)


@click.group("dead")
def command() -> None:
    """Dead letters: jobs that will not run again by themselves."""


@command.command("list")
@filter_options
@click.option("--limit", type=click.IntRange(1), default=100, show_default=True, help="Most letters shown, the newest.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@target_options
def list_command(
    name: str | None, queue: str | None, since: str | None, limit: int, as_json: bool, **target: Unpack[Target]
) -> None:
    """List dead letters, newest first."""
    jobs = open_app(**target)
    letters = build(lambda: run(jobs, lambda: jobs.dead.list(name=name, queue=queue, since=since, limit=limit)))
    if as_json:
        for letter in letters:
            click.echo(msgspec.json.encode(_fields(letter)))
        return
    if not letters:
        click.echo("no dead letters" + (" that fit" if name or queue or since else ""))
        return
    now = clock.wall()
    rows = [(letter.id, letter.name, letter.queue, _ago(now, letter), letter.attempts, letter.reason) for letter in letters]
    columns = columns_of(sys.stdout) if sys.stdout.isatty() else None
    for line in table(("id", "job", "queue", "died", "attempts", "reason"), rows, columns=columns):
        click.echo(line)
    if len(letters) == limit:
        click.echo(f"the newest {limit}; for more: --limit {10 * limit}", err=True)


@command.command("show")
@click.argument("id")
@click.option("--json", "as_json", is_flag=True, help="As one JSON object.")
@target_options
def show_command(id: str, as_json: bool, **target: Unpack[Target]) -> None:
    """Show one dead letter: payload, every attempt with its error and traceback, how its workers died."""
    jobs = open_app(**target)
    letter = run(jobs, lambda: jobs.dead.get(id))
    if as_json:
        click.echo(msgspec.json.encode(_fields(letter)))
        return
    for line in _description(letter):
        click.echo(line)


@command.command("requeue")
@click.argument("ids", nargs=-1, metavar="[ID]...")
@click.option("--all", "everything", is_flag=True, help="All, or all that fit the filters.")
@filter_options
@target_options
def requeue_command(
    ids: tuple[str, ...], everything: bool, name: str | None, queue: str | None, since: str | None, **target: Unpack[Target]
) -> None:
    """Send dead letters back to work, their attempts and losses counted anew."""
    filters = Filters(name=name, queue=queue, since=since)
    _check_choice(ids, everything, filters)
    jobs = open_app(**target)
    named = dict.fromkeys(ids)
    handled = build(lambda: run(jobs, lambda: jobs.dead.requeue_all(**filters) if everything else jobs.dead.requeue(*named)))
    _report("requeued", handled)


@command.command("delete")
@click.argument("ids", nargs=-1, metavar="[ID]...")
@click.option("--all", "everything", is_flag=True, help="All, or all that fit the filters; asks first.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@filter_options
@target_options
def delete_command(
    ids: tuple[str, ...],
    everything: bool,
    yes: bool,
    name: str | None,
    queue: str | None,
    since: str | None,
    **target: Unpack[Target],
) -> None:
    """Delete dead letters for good."""
    filters = Filters(name=name, queue=queue, since=since)
    _check_choice(ids, everything, filters)
    jobs = open_app(**target)
    if everything and not yes:
        _confirm(filters)
    named = dict.fromkeys(ids)
    handled = build(lambda: run(jobs, lambda: jobs.dead.delete_all(**filters) if everything else jobs.dead.delete(*named)))
    _report("deleted", handled)


def _check_choice(ids: tuple[str, ...], everything: bool, filters: Filters) -> None:
    """ConfigError unless either ids or --all are given, filters with --all only."""
    if ids and (everything or any(filters.values())):
        raise ConfigError("give ids, or --all with filters, not both")
    if not ids and not everything:
        hint = "add --all to take all that fit the filters" if any(filters.values()) else "give ids, or --all"
        raise ConfigError(f"no dead letters named: {hint}")


def _confirm(filters: Filters) -> None:
    fit = " and ".join(f"{field} {value}" for field, value in filters.items() if value)
    confirm_deletion(f"Delete all dead letters{f' of {fit}' if fit else ''} for good?")


def _report(done: str, handled: Handled) -> None:
    """What was done on stdout, what was not on stderr. Ends with 1 if anything was not."""
    click.echo(f"{plural(handled.done, 'dead letter')} {done}")
    for id in handled.gone:
        click.echo(f"no dead letter {id}: it never died, or was requeued or deleted", err=True)
    for id in handled.unreadable:
        click.echo(f"left as it is: {id} cannot be read, so it cannot run", err=True)
    if handled.gone or handled.unreadable:
        raise click.exceptions.Exit(EXIT_NOT_ALL)


def _ago(now: float, letter: DeadJob) -> str:
    return f"{duration_text(max(0.0, now - letter.died_at.timestamp()))} ago"


def _description(letter: DeadJob) -> Iterator[str]:
    """*letter* for people."""
    yield f"id        {letter.id}"
    yield f"job       {printable(letter.name)}"
    yield f"queue     {printable(letter.queue)}, priority {letter.priority}"
    yield f"created   {letter.created_at:%Y-%m-%d %H:%M:%S} UTC"
    yield f"died      {letter.died_at:%Y-%m-%d %H:%M:%S} UTC"
    of = f" of {letter.max_attempts}" if letter.max_attempts else ""
    yield f"attempts  {letter.attempts}{of}" + (
        f", and was running when {plural(letter.losses, 'worker')} died" if letter.losses else ""
    )
    yield f"reason    {printable(letter.reason)}"
    yield f"payload   {_payload_text(letter)}"
    for failure in letter.history:
        yield ""
        yield from _failure(failure, "✗" if failure is letter.history[-1] else "↻")


def _failure(failure: Failure, sign: str) -> Iterator[str]:
    at = clock.as_datetime(failure.at)
    message = f": {printable(failure.message)}" if failure.message else ""
    yield f"{sign} attempt {failure.attempt}, {failure.kind} at {at:%Y-%m-%d %H:%M:%S} UTC on worker {failure.worker}"
    yield f"  {printable(failure.error)}{message}"
    for line in failure.traceback.splitlines():
        yield f"  {printable(line)}"


def _payload_text(letter: DeadJob) -> str:
    """The payload as one line of JSON; what is none, as Python would write the bytes."""
    try:
        letter.data  # noqa: B018 - raises if it is none
        return printable(letter.payload.decode())
    except (SerializationError, UnicodeDecodeError):
        return repr(letter.payload)


def _fields(letter: DeadJob) -> dict[str, object]:
    """*letter* for programs: `data` is the payload; of one that is no JSON, `payload` has the bytes in base64."""
    fields: dict[str, object] = {
        "id": letter.id,
        "name": letter.name,
        "queue": letter.queue,
        "priority": letter.priority,
        "attempts": letter.attempts,
        "max_attempts": letter.max_attempts,
        "losses": letter.losses,
        "created_at": letter.created_at,
        "died_at": letter.died_at,
        "reason": letter.reason,
    }
    try:
        letter.data  # noqa: B018 - raises if it is none
        fields["data"] = msgspec.Raw(letter.payload)
    except SerializationError:
        fields["payload"] = letter.payload
    fields["history"] = [msgspec.structs.asdict(failure) | {"at": clock.as_datetime(failure.at)} for failure in letter.history]
    return fields
