"""From a function's signature to its payload, its arguments and its call."""

from __future__ import annotations

import asyncio
import functools
import inspect
import os
import re
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import pytest

import fastjobs.context
from fastjobs.binding import compile_handler, compile_job
from fastjobs.codec import codec
from fastjobs.context import JobContext
from fastjobs.errors import ConfigError, SerializationError
from fastjobs.joblike import Job
from fastjobs.options import HandlerOptions
from fastjobs.registry import Handler

if TYPE_CHECKING:
    from elsewhere import Pool, Unseen  # type: ignore[import-not-found]

CODEC = codec("msgspec" if sys.modules.get("orjson", sys) is None else "orjson")
Ctx = JobContext[str]
DEFAULT_TAGS = ["a"]


def handler_of(function: Callable[..., Any], **options: Any) -> Handler:
    return compile_handler(function, HandlerOptions(**options), CODEC)


def run(handler: Handler, *args: Any, **kwargs: Any) -> Any:
    """What the function returns when the call is encoded here and decoded in a worker."""
    return handler.call("context", handler.decode(handler.bind(*args, **kwargs)))


def all_kinds(a: int, /, b: str, c: float = 1.5, *, d: bool, e: list[str] = DEFAULT_TAGS) -> Any:
    return a, b, c, d, e


def nothing() -> str:
    return "ran"


def loose(a, b=None):  # type: ignore[no-untyped-def]
    return a, b


def test_positional_and_keyword_arguments_reach_their_parameters() -> None:
    assert run(handler_of(all_kinds), 1, "b", d=True) == (1, "b", 1.5, True, ["a"])
    assert run(handler_of(all_kinds), 1, c=2.5, b="b", d=False, e=["x"]) == (1, "b", 2.5, False, ["x"])
    assert run(handler_of(nothing)) == "ran"
    assert run(handler_of(loose), {"x": [1]}, b="y") == ({"x": [1]}, "y")


def test_only_given_arguments_are_stored_by_name() -> None:
    assert handler_of(all_kinds).bind(1, "b", d=True) == b'{"a":1,"b":"b","d":true}'
    assert handler_of(loose).bind(1, None) == b'{"a":1,"b":null}'
    assert handler_of(nothing).bind() == b"{}"


def test_a_default_is_the_very_object_of_the_function() -> None:
    assert run(handler_of(all_kinds), 1, "b", d=True)[4] is DEFAULT_TAGS


def test_a_default_added_later_does_not_break_stored_jobs() -> None:
    def before(a: int) -> Any:
        return a

    def after(a: int, b: str = "new") -> Any:
        return a, b

    handler = handler_of(after)
    assert handler.call(None, handler.decode(handler_of(before).bind(1))) == (1, "new")


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        ((), {}),
        ((1,), {"d": True}),
        ((1, "b"), {}),
        ((1, "b", 1.5, True), {"d": True}),
        ((1, "b"), {"d": True, "f": 1}),
        ((1, "b"), {"b": "c", "d": True}),
        ((1, "b"), {"a": 1, "d": True}),
        ((), {"a": 1, "b": "b", "d": True}),
    ],
)
def test_a_wrong_call_fails_in_the_words_of_python(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    with pytest.raises(TypeError) as by_python:
        all_kinds(*args, **kwargs)
    with pytest.raises(TypeError) as by_us:
        handler_of(all_kinds).bind(*args, **kwargs)
    assert str(by_us.value) == str(by_python.value)


def test_a_wrong_call_names_the_job() -> None:
    with pytest.raises(TypeError, match=re.escape("mail.send() missing 1 required positional argument: 'b'")):
        handler_of(all_kinds, name="mail.send").bind(1, d=True)


def test_a_wrong_value_names_job_field_and_value() -> None:
    with pytest.raises(SerializationError) as refused:
        handler_of(all_kinds).bind(1, 2, d=True)
    assert str(refused.value) == "all_kinds(b): expected str, got int 2"
    assert refused.value.path == "$.b"


def test_without_check_values_are_only_encoded() -> None:
    handler = handler_of(all_kinds, check=False)
    assert handler.bind(1, 2, d=True) == b'{"a":1,"b":2,"d":true}'
    with pytest.raises(SerializationError, match=re.escape("all_kinds(b): expected str, got int")):
        handler.decode(b'{"a":1,"b":2,"d":true}')
    with pytest.raises(SerializationError, match="cannot be stored") as refused:
        handler.bind(1, "b", d=1j)
    assert refused.value.path == "$.d"
    with pytest.raises(TypeError, match="missing 1 required keyword-only argument: 'd'"):
        handler.bind(1, "b")


def test_data_by_name_is_checked_against_the_parameters() -> None:
    handler = handler_of(all_kinds, check=False)
    assert handler.encode_data({"a": 1, "b": "b", "d": True}) == b'{"a":1,"b":"b","d":true}'
    for data, message, path in (
        ({"a": 1, "b": "b"}, "all_kinds(d): missing", "$.d"),
        ({"a": 1, "b": "b", "d": True, "x": 1}, "all_kinds(x): unknown field; all_kinds takes a, b, c, d, e", "$.x"),
        ({"a": "1", "b": "b", "d": True}, "all_kinds(a): expected int, got str '1'", "$.a"),
        ([1], "all_kinds: its data are the arguments by name, as {'path': 'a.png'}, got [1]", ""),
        ({1: 2}, "all_kinds: its data are the arguments by name, as {'path': 'a.png'}, got {1: 2}", ""),
        (None, "all_kinds: its data are the arguments by name, as {'path': 'a.png'}, got None", ""),
    ):
        with pytest.raises(SerializationError) as refused:
            handler.encode_data(data)
        assert (str(refused.value), refused.value.path) == (message, path)


@pytest.mark.parametrize(
    ("payload", "message", "path"),
    [
        (b'{"a":1,"b":"b","d":true,"gone":1}', "unknown field; all_kinds takes", "$.gone"),
        (b'{"a":1,"d":true}', "all_kinds(b): missing", "$.b"),
        (b'{"a":1,"b":"b","d":true,"e":["x",5]}', "all_kinds(e[1]): expected str, got int", "$.e[1]"),
        (b"[]", "all_kinds: expected object, got array", "$"),
        (b"", "all_kinds: Input data was truncated".replace("Input", "input"), ""),
        (b'{"a":', "all_kinds: input data was truncated", ""),
        (b'{"a":1,"b":"\xff","d":true}', "all_kinds: ", ""),
        (b'{"e":' + b"[" * 200_000, "", None),
    ],
)
def test_a_payload_that_does_not_fit_is_refused_with_its_path(payload: bytes, message: str, path: str | None) -> None:
    with pytest.raises(SerializationError) as refused:
        handler_of(all_kinds).decode(payload)
    assert message in str(refused.value)
    assert path is None or refused.value.path == path


def test_parameter_names_do_not_clash_with_ours() -> None:
    def odd(_: int, __: str, data: int, args: int = 1, kwargs: int = 2, encode: int = 3, arguments: int = 4, é: int = 5) -> Any:
        return _, __, data, args, kwargs, encode, arguments, é

    assert run(handler_of(odd), 1, "x", data=2, encode=9, é=7) == (1, "x", 2, 1, 2, 9, 4, 7)

    async def with_ctx(context: JobContext[str], /, ctx: int, function: int) -> Any:
        return context, ctx, function

    assert asyncio.run(run(handler_of(with_ctx), 1, 2)) == ("context", 1, 2)


def test_async_functions_and_wrapped_ones_are_told_from_plain_ones() -> None:
    async def inner(a: int) -> int:
        return a

    @functools.wraps(inner)
    def plain_wrapper(*args: Any, **kwargs: Any) -> Any:
        return inner(*args, **kwargs)

    @functools.wraps(inner)
    async def async_wrapper(*args: Any, **kwargs: Any) -> Any:
        return await inner(*args, **kwargs) + 1

    class Wrapped(Job[int]):
        @functools.wraps(Job.execute)
        def execute(self, ctx: JobContext[Any], data: int) -> Any:
            return inner(data)

    handlers = [handler_of(function) for function in (nothing, inner, plain_wrapper, async_wrapper)]
    handlers.append(compile_job(Wrapped(), int, HandlerOptions(), CODEC))
    assert [handler.is_async for handler in handlers] == [False, True, False, True, False]
    assert [handler.gives_coroutine for handler in handlers] == [False, False, True, False, True]
    assert asyncio.run(run(handler_of(async_wrapper), 1)) == 2


# -- the context


async def context_plain(ctx: JobContext[Any], a: int) -> Any:
    return ctx, a


async def context_alias(ctx: Ctx, a: int) -> Any:
    return ctx, a


async def context_module(ctx: fastjobs.context.JobContext[str], a: int) -> Any:
    return ctx, a


async def context_unseen_state(ctx: JobContext[Pool], a: int) -> Any:
    return ctx, a


async def context_annotated(ctx: Annotated[JobContext[str], "doc"], a: int) -> Any:
    return ctx, a


async def context_positional_only(ctx: JobContext, /, a: int) -> Any:  # type: ignore[type-arg]
    return ctx, a


@pytest.mark.parametrize(
    "function",
    [context_plain, context_alias, context_module, context_unseen_state, context_annotated, context_positional_only],
)
def test_the_first_parameter_annotated_jobcontext_gets_the_context(function: Any) -> None:
    handler = handler_of(function)
    assert handler.bind(5) == b'{"a":5}'
    assert asyncio.run(run(handler, 5)) == ("context", 5)
    assert handler.wants_ctx


def test_without_string_annotations_too() -> None:
    def function(ctx, a):  # type: ignore[no-untyped-def]
        return ctx, a

    function.__annotations__ = {"ctx": JobContext[int], "a": int}
    assert run(handler_of(function), 5) == ("context", 5)


def test_ctx_true_takes_the_first_parameter_without_an_annotation() -> None:
    handler = handler_of(loose, ctx=True)
    assert run(handler, 2) == ("context", 2)
    assert run(handler_of(loose), 2) == (2, None)
    with pytest.raises(ConfigError, match="its first parameter is none for a JobContext"):
        handler_of(all_kinds, ctx=True)


def test_ctx_false_leaves_a_first_parameter_annotated_any_to_the_payload() -> None:
    def function(thing: Any, other: object) -> Any:
        return thing, other

    handler = handler_of(function, ctx=False)
    assert run(handler, 1, [2]) == (1, [2])
    assert not handler.wants_ctx


def second(a: int, ctx: JobContext[Any]) -> None: ...
def keyword(*, ctx: JobContext[Any]) -> None: ...
def optional(ctx: JobContext[Any] | None, a: int) -> None: ...
def defaulted(ctx: JobContext[Any] = None) -> None: ...  # type: ignore[assignment]
def inside(ctx: list[JobContext[Any]]) -> None: ...
def twice(ctx: JobContext[Any], other: JobContext[Any]) -> None: ...


@pytest.mark.parametrize("function", [second, keyword, optional, defaulted, inside, twice])
def test_a_context_anywhere_else_is_refused_at_the_decoration(function: Any) -> None:
    with pytest.raises(ConfigError, match="the JobContext is the first positional parameter, not optional") as refused:
        handler_of(function)
    assert place(function) in str(refused.value)


def test_a_context_with_ctx_false_is_refused() -> None:
    with pytest.raises(ConfigError, match="ctx=False says there is none"):
        handler_of(context_plain, ctx=False)


# -- what cannot be a handler


def place(function: Any) -> str:
    return f"test_binding.py:{inspect.unwrap(function).__code__.co_firstlineno}"


class Service:
    def method(self, a: int) -> None: ...

    @classmethod
    def of_class(cls, a: int) -> None: ...

    @staticmethod
    def static(a: int) -> int:
        return a


def generator(a: int) -> Iterator[int]:
    yield a


async def async_generator(a: int) -> AsyncIterator[int]:
    yield a


def variadic(*paths: str) -> None: ...
def keywords(a: int, **rest: str) -> None: ...


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (variadic, "a job's arguments are stored by name"),
        (keywords, "a job's arguments are stored by name"),
        (Service.method, "is a method of Service"),
        (generator, "is a generator"),
        (async_generator, "is a generator"),
    ],
)
def test_what_cannot_be_a_handler_is_refused_with_file_and_line(function: Any, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason) as refused:
        handler_of(function)
    assert place(function) in str(refused.value)


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (Service, "Service is a class"),
        (Service().method, "is a method"),
        (Service.of_class, "is a method"),
        (functools.partial(nothing), "is no function"),
        (print, "is no function"),
        (5, "is no function"),
        (lambda a: a, r"the lambda at .*test_binding.py.* has no name"),
    ],
)
def test_other_things_cannot_be_handlers(function: Any, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        handler_of(function)


def test_a_method_of_a_class_inside_a_function_is_refused() -> None:
    class Local:
        def method(self) -> None: ...

    with pytest.raises(ConfigError, match=r"is a method of .*Local"):
        handler_of(Local.method)


def test_a_function_inside_a_function_may_have_a_first_parameter_self() -> None:
    def inner(self: int) -> int:
        return self

    assert run(handler_of(inner), 3) == 3


def test_static_methods_and_named_lambdas_are_handlers() -> None:
    assert run(handler_of(Service.static), 1) == 1
    assert run(handler_of(lambda a: a, name="identity"), 1) == 1


# -- annotations


def early(a: Later) -> Any:
    return a


@dataclass
class Later:
    x: int


def unseen(a: Unseen, b: Nowhere) -> None:  # type: ignore[name-defined]  # noqa: F821
    ...


def test_annotations_may_name_what_is_defined_later() -> None:
    assert run(handler_of(early), Later(1)) == Later(1)


def test_annotations_that_cannot_be_resolved_are_all_named() -> None:
    handler = handler_of(unseen)
    message = "unseen(a: Unseen (name 'Unseen' is not defined), b: Nowhere (name 'Nowhere' is not defined)) at "
    for attempt in (handler.resolve, lambda: handler.bind(1, 2), lambda: handler.decode(b"{}")):
        with pytest.raises(ConfigError, match=re.escape(message)) as refused:
            attempt()
        assert place(unseen) in str(refused.value)


def test_annotations_may_name_variables_of_the_enclosing_function() -> None:
    Kind = dict[str, int]  # noqa: N806

    def inner(a: Kind) -> Any:
        return a, Kind

    assert run(handler_of(inner), {"x": 1})[0] == {"x": 1}


def test_the_place_is_relative_to_the_working_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    line = nothing.__code__.co_firstlineno
    monkeypatch.chdir(os.path.dirname(__file__))
    assert handler_of(nothing).place == f"test_binding.py:{line}"
    monkeypatch.chdir("/")
    assert handler_of(nothing).place.endswith(f"/test_binding.py:{line}".lstrip("/"))


def test_a_codec_is_asked_for_only_when_the_handler_is_resolved() -> None:
    asked = []

    def give() -> Any:
        asked.append(1)
        return CODEC

    handler = compile_handler(nothing, HandlerOptions(), give)
    assert asked == []
    handler.resolve()
    handler.resolve()
    assert asked == [1]


# -- Job classes


class Echo:
    name = "echo"

    async def execute(self, ctx: Any, data: Any) -> Any:
        return ctx, data


class Wrong:
    async def execute(self, data: Any) -> None: ...


def test_a_job_class_runs_with_context_and_data() -> None:
    handler = compile_job(Echo(), list[int], HandlerOptions(), CODEC)
    assert (handler.name, handler.is_async, handler.data_is_arguments) == ("echo", True, False)
    assert handler.bind([1, 2]) == b"[1,2]"
    assert asyncio.run(run(handler, [1, 2])) == ("context", [1, 2])
    assert handler.wants_ctx
    with pytest.raises(SerializationError, match=re.escape("echo([1]): expected int, got str 'a'")):
        handler.bind([1, "a"])
    with pytest.raises(TypeError, match="takes its data as the only argument, got 2"):
        handler.bind(1, b=2)


def test_a_job_class_whose_data_cannot_be_stored_is_refused() -> None:
    with pytest.raises(ConfigError, match=re.escape("echo[Service] at ")):
        compile_job(Echo(), Service, HandlerOptions(), CODEC).resolve()


def test_a_job_class_with_a_wrong_execute_is_refused() -> None:
    with pytest.raises(ConfigError, match=re.escape("Wrong.execute at ")) as refused:
        compile_job(Wrong(), int, HandlerOptions(), CODEC)
    assert "(self, ctx, data)" in str(refused.value)


def test_a_parameter_that_python_would_rename_is_refused_with_its_place() -> None:
    def odd(a: int, __y=1) -> None: ...  # type: ignore[no-untyped-def]

    with pytest.raises(ConfigError, match=r"odd\(__y=1\) at tests/test_binding.py:\d+: .* two underscores"):
        handler_of(odd)


def test_a_quoted_context_whose_state_only_type_checkers_import_is_a_context() -> None:
    async def quoted(ctx: "JobContext[Pool]", number: int) -> None: ...  # noqa: UP037 - the quotes are what is tested

    handler = handler_of(quoted)
    handler.resolve()
    assert handler.wants_ctx


@dataclass
class One:
    a: int


@dataclass
class Two:
    b: int


def test_a_union_of_dataclasses_is_refused_with_a_way_out() -> None:
    def either(value: One | Two) -> None: ...

    with pytest.raises(ConfigError, match="use msgspec Structs with tag=True"):
        handler_of(either).resolve()
