"""A function's signature → its compiled form: arguments to payload, payload to arguments, and the call.

`inspect.Signature.bind` costs 4 to 5 µs a call. Here each handler gets a function of its own whose parameters are those of the
user's function, so that Python itself binds, defaults are told apart from what was given, and wrong calls fail in Python's own
words. Binding, encoding and checking three simple fields together takes 0.7 µs (bench/test_micro.py).
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

import msgspec

from fastjobs.codec import PayloadCodec
from fastjobs.errors import ConfigError, SerializationError
from fastjobs.options import HandlerOptions, check_name
from fastjobs.payload import Payload
from fastjobs.payload_types import Hook, NotStorable, Traits, type_name
from fastjobs.payload_values import ABSENT
from fastjobs.registry import Compiled, Finish, Handler
from fastjobs.signatures import (
    EMPTY,
    check_function,
    context_parameter,
    parameters_of,
    place_of,
    resolve_all,
    resolve_annotation,
    wraps_coroutine,
)

CodecSource = PayloadCodec | Callable[[], PayloadCodec]
"""A codec, or a function that gives it when the first handler is resolved."""

_UNCHANGED: Final = (type(None), bool, int, float, str, bytes)


def compile_handler(
    function: Callable[..., Any], options: HandlerOptions, codec: CodecSource, types: Mapping[type, Hook] | None = None
) -> Handler:
    """*function* as a handler; its annotations are resolved later. ConfigError, with file and line, for what cannot be one.

    *types*: codec hooks beyond those of *codec*.
    """
    check_function(function)
    inner: Any = inspect.unwrap(function)
    place = place_of(function)
    if options.name is None and inner.__name__ == "<lambda>":
        raise ConfigError(f"the lambda at {place} has no name that others could enqueue it by: give it one, job(name=…)")
    name = options.name or check_name(inner.__name__, "job(name)")
    parameters = parameters_of(function, name)
    _check_context_early(function, name, parameters, options.ctx)
    return Handler(
        name,
        function,
        options,
        lambda: _compile_function(function, name, parameters, options, _codec_of(codec, types)),
        place=place,
        module=inner.__module__ or "",
        qualname=inner.__qualname__,
        is_async=inspect.iscoroutinefunction(function),
        gives_coroutine=wraps_coroutine(function),
    )


def compile_job(
    instance: Any, data_type: Any, options: HandlerOptions, codec: CodecSource, types: Mapping[type, Hook] | None = None
) -> Handler:
    """A `Job` class's *instance* as a handler: its payload is one value of *data_type*, at top level.

    Its `bind` takes that value as the only argument. ConfigError if `execute` cannot be called with a context and data.
    """
    cls, execute = type(instance), instance.execute
    name = check_name(options.name or getattr(instance, "name", None) or cls.__name__, "job(name)")
    place = place_of(execute.__func__ if inspect.ismethod(execute) else execute)
    try:
        inspect.signature(execute).bind(None, None)
    except TypeError as error:
        raise ConfigError(f"{cls.__qualname__}.execute at {place} must take (self, ctx, data): {error}") from error
    return Handler(
        name,
        execute,
        options,
        lambda: _compile_value(execute, name, place, data_type, options, _codec_of(codec, types)),
        place=place,
        module=cls.__module__,
        qualname=cls.__qualname__,
        is_async=inspect.iscoroutinefunction(execute),
        gives_coroutine=wraps_coroutine(execute),
        data_is_arguments=False,
    )


def _codec_of(codec: CodecSource, types: Mapping[type, Hook] | None) -> PayloadCodec:
    return (codec if isinstance(codec, PayloadCodec) else codec()).with_types(types)


def _check_context_early(
    function: Callable[..., Any], name: str, parameters: list[inspect.Parameter], ctx: bool | None
) -> None:
    """A misplaced JobContext is refused at the decoration, as far as annotations can be resolved by then."""
    kinds = {}
    for parameter in parameters:
        try:
            kinds[parameter.name] = resolve_annotation(function, parameter.annotation)
        except Exception:  # nosec B112  # noqa: S112 - it may be defined further down; `resolve` says so if it is not
            continue
    if len(kinds) == len(parameters):
        context_parameter(function, name, parameters, kinds, ctx)


def _examined(name: str, place: str, label: str, kind: Any, codec: PayloadCodec) -> Traits:
    try:
        return codec.examine(kind)
    except NotStorable as error:
        raise ConfigError(f"{name}{label} at {place}: {error}") from error


def _payload(
    name: str, place: str, codec: PayloadCodec, kind: Any, takes: tuple[str, ...] | None, traits: dict[str, Traits]
) -> Payload:
    try:
        return Payload(name, codec, kind, takes, traits)
    except (TypeError, ValueError, NameError) as error:
        raise ConfigError(f"{name} at {place}: its payload cannot be read back: {error}") from error


def _compile_value(
    execute: Callable[..., Any], name: str, place: str, kind: Any, options: HandlerOptions, codec: PayloadCodec
) -> Compiled:
    traits = _examined(name, place, f"[{type_name(kind)}]", kind, codec)
    payload = _payload(name, place, codec, kind, None, {"": traits})

    def bind(*args: Any, **kwargs: Any) -> bytes:
        if len(args) != 1 or kwargs:
            raise TypeError(f"{name} takes its data as the only argument, got {len(args) + len(kwargs)}")
        stored = payload.encode(args[0])
        if options.check:
            if not traits.bounded:
                payload.check_depth(stored)
            try:
                arrived = payload.read(stored)
                same = traits.exact and arrived == args[0]
            except Exception as error:
                raise payload.explain(error, args[0]) from error
            if not same:
                payload.compare_value(args[0], arrived)
        return stored

    def bind_into(finish: Finish) -> Callable[..., Any]:
        def finished(*args: Any, **kwargs: Any) -> Any:
            stored = bind(*args, **kwargs)
            return finish.make(finish.of, stored) if len(stored) <= finish.limit else finish.refuse(stored)

        return finished

    return Compiled(
        True, bind, bind_into, lambda data: payload.encode_checked(data, None), payload.read, payload.decode, execute
    )


def _compile_function(
    function: Callable[..., Any],
    name: str,
    parameters: list[inspect.Parameter],
    options: HandlerOptions,
    codec: PayloadCodec,
) -> Compiled:
    kinds = resolve_all(function, name, parameters)
    ctx = context_parameter(function, name, parameters, kinds, options.ctx)
    stored = [parameter for parameter in parameters if parameter.name != ctx]
    place = place_of(function)
    traits = {
        parameter.name: _examined(name, place, f"({_written(parameter)})", kinds[parameter.name], codec) for parameter in stored
    }
    takes = tuple(traits)
    payload = _payload(name, place, codec, _arguments_type(name, place, stored, kinds), takes, traits)
    bind_into = partial(_binder, name, stored, payload, options.check)

    def encode_data(data: Any) -> bytes:
        if not isinstance(data, Mapping) or not all(isinstance(key, str) for key in data):
            raise SerializationError(f"{name}: its data are the arguments by name, as {{'path': 'a.png'}}, got {data!r:.100}")
        return payload.encode_checked(dict(data), data)

    return Compiled(
        ctx is not None,
        bind_into(None),
        bind_into,
        encode_data,
        payload.read,
        payload.decode,
        _caller(function, stored, ctx is not None),
    )


def _written(parameter: inspect.Parameter) -> str:
    return f"{parameter.name}: {type_name(parameter.annotation)}"


def _arguments_type(name: str, place: str, stored: list[inspect.Parameter], kinds: dict[str, Any]) -> type[msgspec.Struct]:
    """The struct that a payload is decoded into. Absent fields are the function's own defaults, the very objects."""
    fields: list[Any] = []
    for parameter in stored:
        kind, default = kinds[parameter.name], parameter.default
        if default is EMPTY:
            fields.append((parameter.name, kind))
        elif isinstance(default, _UNCHANGED):
            fields.append((parameter.name, kind, default))
        else:  # msgspec copies or refuses defaults that can change
            fields.append((parameter.name, kind, msgspec.field(default_factory=partial(_itself, default))))
    try:
        return msgspec.defstruct("Arguments", fields, kw_only=True, forbid_unknown_fields=True, gc=False)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{name} at {place}: its parameters cannot be stored: {error}") from error


def _itself(default: Any) -> Any:
    return default


def _unused_prefix(names: set[str]) -> str:
    """A prefix for our own names in generated code that no parameter begins with."""
    return next(p for p in ("_" * n for n in itertools.count(1)) if not any(name.startswith(p) for name in names))


def _binder(
    name: str, stored: list[inspect.Parameter], payload: Payload, check: bool, finish: Finish | None
) -> Callable[..., Any]:
    """The function with the parameters of the user's (without the context) that returns the payload of such a call.

    With *finish*: what that makes of it.
    """
    p = _unused_prefix({parameter.name for parameter in stored})
    required = [parameter.name for parameter in stored if parameter.default is EMPTY]
    optional = [parameter.name for parameter in stored if parameter.default is not EMPTY]
    lines = [f"def {p}bind({_header(stored, f'{p}absent')}):"]
    lines.append(f"    {p}data = {{{', '.join(f'{key!r}: {key}' for key in required)}}}")
    lines += [f"    if {key} is not {p}absent: {p}data[{key!r}] = {key}" for key in optional]
    plain = _plainness(p, stored, payload.traits) if check else "True"
    dumps = f"{p}dumps" if plain == "False" or not check else f"({p}dumps_plain if {p}plain else {p}dumps)"
    lines += [f"    {p}plain = {plain}", f"    try: {p}raw = {dumps}({p}data)"]
    lines.append(f"    except Exception: {p}raw, {p}plain = {p}encode({p}data), False")
    if check:
        lines.append(f"    if not {p}plain:")  # a third of the time of the whole for three simple fields
        if not payload.bounded:
            lines.append(f"        {p}check_depth({p}raw)")
        lines += [
            "        try:",
            f"            {p}got = {p}read({p}raw)",
            f"            {p}same = {_equality(p, required, optional, payload.traits)}",
            f"        except Exception as {p}error: raise {p}explain({p}error, {p}data) from {p}error",
            f"        if not {p}same: {p}compare({p}data, {p}got)",
        ]
    if finish is not None:
        lines += [f"    if {p}len({p}raw) > {p}limit: {p}refuse({p}raw)", f"    return {p}make({p}of, {p}raw)"]
    lines.append(f"    return {p}raw")
    attributes = ("dumps", "dumps_plain", "encode", "read", "check_depth", "explain", "compare")
    names = {f"{p}{key}": getattr(payload, key) for key in attributes}
    names |= {f"{p}{key}": value for key, value in (finish._asdict() if finish is not None else {}).items()}
    builtins = {f"{p}{kind.__name__}": kind for kind in (type, str, int, bool, len)}  # a parameter may be called `type`
    return _function(f"{p}bind", lines, {**names, **builtins, f"{p}absent": ABSENT}, name)


def _plainness(p: str, stored: list[inspect.Parameter], traits: dict[str, Traits]) -> str:
    """The source of the test that every value given is of a plain type that arrives as it is, see `Traits.quick`."""
    tests = []
    for parameter in stored:
        quick = traits[parameter.name].quick
        if not quick:
            return "False"
        absent = "" if parameter.default is EMPTY else f"{parameter.name} is {p}absent or "
        tests.append(f"({absent}{quick.replace('{}', parameter.name).replace('{p}', p)})")
    return " and ".join(tests) or "True"


def _equality(p: str, required: list[str], optional: list[str], traits: dict[str, Traits]) -> str:
    """The source of the test that what was read is what was given; false where `==` would be no proof."""
    tests = [f"{p}got.{key} == {key}" if traits[key].exact else "False" for key in required]
    tests += [
        f"({key} is {p}absent or {p}got.{key} == {key})" if traits[key].exact else f"{key} is {p}absent" for key in optional
    ]
    return " and ".join(tests) or "True"


def _header(stored: list[inspect.Parameter], absent: str) -> str:
    """The parameter list; defaults are replaced by a mark that tells them from what was given."""
    parts: list[str] = []
    kinds = [parameter.kind for parameter in stored]
    for index, parameter in enumerate(stored):
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY and inspect.Parameter.KEYWORD_ONLY not in kinds[:index]:
            parts.append("*")
        parts.append(parameter.name if parameter.default is EMPTY else f"{parameter.name}={absent}")
        if parameter.kind is inspect.Parameter.POSITIONAL_ONLY and kinds[index + 1 : index + 2] != [parameter.kind]:
            parts.append("/")
    return ", ".join(parts)


def _caller(function: Callable[..., Any], stored: list[inspect.Parameter], wants_ctx: bool) -> Callable[[Any, Any], Any]:
    """The function (context, arguments) that calls the user's."""
    given = ["ctx"] if wants_ctx else []
    for parameter in stored:
        keyword = f"{parameter.name}=" if parameter.kind is inspect.Parameter.KEYWORD_ONLY else ""
        given.append(f"{keyword}arguments.{parameter.name}")
    lines = ["def call(ctx, arguments):", f"    return function({', '.join(given)})"]
    return _function("call", lines, {"function": function}, getattr(function, "__name__", "call"))


def _function(key: str, lines: list[str], names: dict[str, Any], shown: str) -> Callable[..., Any]:
    """The function *key* that *lines* define, called *shown* in tracebacks and in Python's messages about wrong calls."""
    space = dict(names)
    # Made of parameter names alone, which Python has accepted as identifiers before.
    exec(compile("\n".join(lines), "<fastjobs: arguments>", "exec"), space)  # nosec B102  # noqa: S102
    function: Callable[..., Any] = space[key]
    function.__name__ = function.__qualname__ = shown
    return function
