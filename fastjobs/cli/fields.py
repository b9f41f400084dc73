"""Options of the command line made from option dataclasses: one list of fields, their types, limits and words."""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import re
import textwrap
import types
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import click
from click.core import ParameterSource

from fastjobs.errors import ConfigError

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")

SHORT: Final = {"workers": "-n"}
"""Fields that also have a letter."""

PLURALS: Final = {"queues": "--queue"}
"""Fields that hold several values: the option is given once for each."""

ENVIRONMENT: Final = "FASTJOBS_"
"""Before an option's name in capitals: the environment variable that sets it."""


class FieldOption(click.Option):
    """An option for a dataclass field. Its help is the comment beside the field, read when somebody asks for help."""

    def __init__(self, *declarations: str, owner: type, field: str, **attributes: Any) -> None:
        super().__init__([*declarations], **attributes)
        self._owner = owner
        self._field = field

    def get_error_hint(self, ctx: click.Context | None) -> str:
        """The environment variable, where that is what was wrong."""
        if ctx is not None and ctx.get_parameter_source(str(self.name)) is ParameterSource.ENVIRONMENT:
            return f"{self.envvar} (for {self.opts[-1]})"
        return super().get_error_hint(ctx)

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        self.help = field_help(self._owner, self._field)
        return super().get_help_record(ctx)


def field_options(
    owner: type, *, skip: Collection[str] = (), environment: bool = False, names: Mapping[str, str] = {}
) -> Callable[[F], F]:
    """A decorator that gives a command one option per field of the dataclass *owner*, but for those in *skip*.

    Unset options are None, so that what the app says stays. With *environment* each may be set by ``FASTJOBS_<OPTION>`` too.
    *names* gives an option another name than its field's.
    """
    hints = _hints(owner)

    def decorate(command: F) -> F:
        for field in reversed(dataclasses.fields(owner)):
            if field.name not in skip:
                name = names.get(field.name) or field.name
                option = _option(owner, field, hints[field.name], name, environment)
                command.__dict__.setdefault("__click_params__", []).append(option)
        return command

    return decorate


def given(owner: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """Those of *values* that are fields of *owner* and were said on the command line or in the environment."""
    fields = {field.name for field in dataclasses.fields(owner)}
    return {name: value for name, value in values.items() if name in fields and value is not None and value != ()}


def build(make: Callable[[], T]) -> T:
    """What *make* returns; a ConfigError of its names the option as it is typed: ``--max-attempts``, not max_attempts."""
    try:
        return make()
    except ConfigError as error:
        message = re.sub(r"^(?:\w+\()?([a-z_]+)\)?(?=: )", _as_typed, str(error))
        raise ConfigError(message) from error


def verbose_option(command: F) -> F:
    """``-v``: tracebacks with errors, and more in the log."""

    def note(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
        if wanted:
            ctx.meta["verbose"] = True

    return click.option(
        "-v", "--verbose", is_flag=True, expose_value=False, callback=note, help="Tracebacks with errors, more in the log."
    )(command)


def _option(owner: type, field: dataclasses.Field[Any], hint: Any, name: str, environment: bool) -> FieldOption:
    flag = f"--{name.replace('_', '-')}"
    kinds = _members(hint)
    attributes: dict[str, Any] = {"default": None}
    if bool in kinds:
        flag = f"{flag}/--no-{flag[2:]}"
    elif any(get_origin(kind) is Sequence for kind in kinds):
        flag = PLURALS[name]
        attributes |= {"multiple": True, "metavar": "NAME"}
    elif literal := next((kind for kind in kinds if get_origin(kind) is Literal), None):
        attributes["type"] = click.Choice(get_args(literal))
    elif float in kinds and str in kinds:
        attributes |= {"type": str, "metavar": "DURATION"}
    elif int in kinds or float in kinds:
        attributes["type"] = float if float in kinds else int
    elif datetime in kinds:
        attributes |= {"type": AwareTime(), "metavar": "TIME"}
    else:
        attributes["type"] = str
    if environment:
        attributes["envvar"] = f"{ENVIRONMENT}{name.upper()}"
    letters = (SHORT[field.name],) if field.name in SHORT else ()
    return FieldOption(*letters, flag, field.name, owner=owner, field=field.name, **attributes)


if TYPE_CHECKING:
    _TimeType = click.ParamType[datetime]
else:
    _TimeType = click.ParamType  # which is generic from click 8.4 on


class AwareTime(_TimeType):
    """An ISO 8601 time with its offset."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        if isinstance(value, datetime):
            return value
        try:
            time = datetime.fromisoformat(value)
        except ValueError:
            self.fail(f"{value!r} is not a time; write it as 2030-12-31T18:00:00Z", param, ctx)
        if time.utcoffset() is None:
            whole = value if len(value) > len("2030-12-31") else f"{value}T00:00"
            self.fail(f"{value!r} has no time zone; write {whole}Z for UTC, or {whole}+02:00", param, ctx)
        return time


def _members(hint: Any) -> tuple[Any, ...]:
    """The types of a union; of another type, itself."""
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


@functools.cache
def _hints(owner: type) -> dict[str, Any]:
    return get_type_hints(owner)


def field_help(owner: type, field: str) -> str:
    """The ``#:`` comment beside *field*, its default after it."""
    comment = comments(owner).get(field, "")
    default = next(each for each in dataclasses.fields(owner) if each.name == field).default
    shown = None if default is None or isinstance(default, bool) or default is dataclasses.MISSING else default
    if shown is None or "default" in comment:
        return comment
    return f"{comment}  [default: {shown}]".strip()


@functools.cache
def comments(owner: type) -> dict[str, str]:
    """The ``#:`` comments of the fields of *owner*; none where there is no source to read."""
    try:
        source = textwrap.dedent(inspect.getsource(owner))
    except OSError:
        return {}
    lines = source.splitlines()
    [tree] = ast.parse(source).body
    assert isinstance(tree, ast.ClassDef)
    found = {}
    for node in tree.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            text = "\n".join(lines[node.lineno - 1 : node.end_lineno])
            if comment := re.search(r"#: *(.*)", text):
                found[node.target.id] = comment[1].strip()
    return found


def _as_typed(match: re.Match[str]) -> str:
    return PLURALS.get(match[1]) or f"--{match[1].replace('_', '-')}"
