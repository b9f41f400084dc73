"""What a function says of itself: which functions can be handlers, their parameters, their resolved annotations."""

from __future__ import annotations

import inspect
import os
import typing
from collections.abc import Callable, Iterator
from typing import Any, Final

from fastjobs.context import JobContext
from fastjobs.errors import ConfigError
from fastjobs.payload_types import type_name

POSITIONAL: Final = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
EMPTY: Final = inspect.Parameter.empty


def place_of(function: Callable[..., Any]) -> str:
    """Where *function* is defined: `shop.py:12`, relative to the working directory if below it."""
    code = inspect.unwrap(function).__code__
    path: str = code.co_filename
    directory = os.getcwd() + os.sep
    return f"{path.removeprefix(directory)}:{code.co_firstlineno}"


def check_function(function: Any) -> None:
    """ConfigError unless *function* is a plain or async function that can be a handler (its parameters apart)."""
    if isinstance(function, type):
        raise ConfigError(f"job: {function.__qualname__} is a class; decorate a function, or use register_job for a Job class")
    inner = inspect.unwrap(function) if callable(function) else function
    if inspect.ismethod(inner):
        raise ConfigError(f"job: {inner.__qualname__} is a method, which would need its object in the worker; use a function")
    if not hasattr(inner, "__code__") or not hasattr(inner, "__globals__"):
        raise ConfigError(f"job: {function!r:.200} is no function; wrap it in one: def …")
    where = f"{inner.__name__} at {place_of(function)}"
    if inspect.isgeneratorfunction(inner) or inspect.isasyncgenfunction(inner):
        raise ConfigError(f"{where} is a generator, which a job cannot run; use a function without yield")
    first = next(iter(inspect.signature(function).parameters), "")
    if "." in inner.__qualname__.rpartition("<locals>.")[2] and first in ("self", "cls"):
        raise ConfigError(f"{where} is a method of {inner.__qualname__.rpartition('.')[0]}; use a function, or a staticmethod")


def wraps_coroutine(function: Callable[..., Any]) -> bool:
    """Whether *function* is a plain wrapper, as decorators make them, around an async function.

    It may hand on that function's coroutine, or run it by itself: only its result tells.
    """
    return not inspect.iscoroutinefunction(function) and inspect.iscoroutinefunction(inspect.unwrap(function))


def parameters_of(function: Callable[..., Any], name: str) -> list[inspect.Parameter]:
    """The parameters of *function*, annotations as written. ConfigError for `*args`, `**kwargs` and names like `__x`."""
    parameters = list(inspect.signature(function).parameters.values())
    for parameter in parameters:
        if parameter.name.startswith("__") and not parameter.name.endswith("__"):
            raise ConfigError(
                f"{name}({parameter}) at {place_of(function)}: a stored argument's name cannot begin with two underscores, "
                f"as Python changes such names in classes"
            )
        if parameter.kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD):
            raise ConfigError(
                f"{name}({parameter}) at {place_of(function)}: a job's arguments are stored by name and checked, "
                f"so each needs a parameter of its own"
            )
    return parameters


def resolve_annotation(function: Callable[..., Any], annotation: Any) -> Any:
    """*annotation* of *function* with all strings in it evaluated; Any for none. Raises what evaluating it raises."""
    if annotation is EMPTY:
        return Any
    inner: Any = inspect.unwrap(function)
    local: dict[str, Any] = {parameter.__name__: parameter for parameter in getattr(inner, "__type_params__", ())}
    for free, cell in zip(inner.__code__.co_freevars, inner.__closure__ or (), strict=False):
        try:
            local[free] = cell.cell_contents
        except ValueError:  # a variable that has no value yet
            continue
    holder = type("Annotated", (), {})()
    holder.__annotations__ = {"it": annotation}
    return typing.get_type_hints(holder, inner.__globals__, local, include_extras=True)["it"]


def resolve_all(function: Callable[..., Any], name: str, parameters: list[inspect.Parameter]) -> dict[str, Any]:
    """Resolved annotations by parameter. ConfigError, with file and line, names all that cannot be resolved."""
    kinds, failed = {}, []
    for parameter in parameters:
        try:
            kinds[parameter.name] = resolve_annotation(function, parameter.annotation)
        except Exception as error:
            if _names_context(function, parameter.annotation):
                kinds[parameter.name] = JobContext
                continue
            failed.append(f"{parameter.name}: {type_name(parameter.annotation)} ({error})")
    if failed:
        raise ConfigError(
            f"{name}({', '.join(failed)}) at {place_of(function)}: annotations cannot be resolved; import or define such "
            f"types at module level, outside `if TYPE_CHECKING`"
        )
    return kinds


def _names_context(function: Callable[..., Any], annotation: Any) -> bool:
    """Whether *annotation* is `JobContext[X]` with an X that only type checkers import."""
    if not isinstance(annotation, str) or "[" not in annotation:
        return False
    try:
        return _is_context(resolve_annotation(function, annotation.strip("'\"").partition("[")[0]))
    except Exception:
        return False


def _parts(kind: Any) -> Iterator[Any]:
    """*kind* and all it is made of, aliases and Annotated unwrapped."""
    kind = getattr(kind, "__value__", kind)  # type X = …
    yield kind
    for part in typing.get_args(kind):
        yield from _parts(part)


def _is_context(kind: Any) -> bool:
    kind = getattr(kind, "__value__", kind)
    if typing.get_origin(kind) is typing.Annotated:
        kind = typing.get_args(kind)[0]
    return kind is JobContext or typing.get_origin(kind) is JobContext


def context_parameter(
    function: Callable[..., Any], name: str, parameters: list[inspect.Parameter], kinds: dict[str, Any], ctx: bool | None
) -> str | None:
    """The name of the parameter that takes the JobContext, if there is one.

    It is the first positional one, annotated JobContext, without a default; *ctx* True takes the first one if it has no
    annotation, False none. *kinds* may lack annotations that cannot be resolved yet. ConfigError for a context elsewhere.
    """
    first = parameters[0] if parameters and parameters[0].kind in POSITIONAL else None
    found = None
    for parameter in parameters:
        kind = kinds.get(parameter.name)
        if not any(_is_context(part) for part in _parts(kind)):
            continue
        if ctx is False or parameter is not first or not _is_context(kind) or parameter.default is not EMPTY:
            why = "ctx=False says there is none" if ctx is False else "not optional and without a default"
            raise ConfigError(
                f"{name}({parameter.name}: {type_name(parameter.annotation)}) at {place_of(function)}: the JobContext is the "
                f"first positional parameter, {why}"
            )
        found = parameter.name
    if ctx and found is None:
        if first is None or kinds.get(first.name) not in (Any, object) or first.default is not EMPTY:
            raise ConfigError(f"{name} at {place_of(function)}: ctx=True, but its first parameter is none for a JobContext")
        found = first.name
    return found
