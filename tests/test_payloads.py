"""What a payload may be: one table of accepted and refused types and values, run alike under both codecs."""

from __future__ import annotations

import collections
import collections.abc
import dataclasses
import enum
import io
import json
import math
import re
import subprocess
import sys
import types
from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from importlib.metadata import version
from pathlib import Path, PurePath
from typing import (
    Annotated,
    Any,
    Generic,
    Literal,
    NamedTuple,
    NewType,
    NotRequired,
    Protocol,
    Required,
    TypedDict,
    TypeVar,
)
from uuid import UUID
from zoneinfo import ZoneInfo

import attrs
import msgspec
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastjobs.binding import compile_handler, compile_job
from fastjobs.codec import CodecName, codec
from fastjobs.errors import ConfigError, SerializationError
from fastjobs.options import HandlerOptions
from fastjobs.payload import Payload
from fastjobs.payload_values import MAX_DEPTH
from fastjobs.registry import Handler

T = TypeVar("T")
CODECS: tuple[CodecName, ...] = ("orjson", "msgspec")
BLOCKED_HERE = sys.modules.get("orjson", sys) is None  # by --block-orjson
Metres = NewType("Metres", int)
AMSTERDAM = ZoneInfo("Europe/Amsterdam")


class Colour(enum.Enum):
    RED = "red"


class Level(enum.IntEnum):
    HIGH = 3


class Size(str, enum.Enum):  # noqa: UP042 - the older spelling is what users have
    BIG = "big"


class Access(enum.IntFlag):
    READ = 1
    WRITE = 2


class HalfEnum(enum.Enum):
    A = 1.5


class Text(str):
    __slots__ = ()


class Number(int):
    pass


class Ratio(float):
    pass


class Moment(datetime):
    """As freezegun and pendulum have one."""


class Point(NamedTuple):
    x: int
    y: str = "here"


class Options(TypedDict, total=False):
    name: Required[str]
    at: NotRequired[date]


@dataclasses.dataclass
class Order:
    items: list[Point]
    price: Decimal
    _note: str = "kept although orjson leaves such fields out"
    total: int = dataclasses.field(default=0, init=False)
    table: int = dataclasses.field(default=1, compare=False)

    def __post_init__(self) -> None:
        self.total = len(self.items)
        self.not_a_field = 7


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Frozen:
    score: float | None = None
    at: datetime | None = None


@dataclasses.dataclass
class SubOrder(Order):
    discount: int = 0


@dataclasses.dataclass
class Tree:
    label: str
    children: list[Tree] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class Box(Generic[T]):
    content: T


class Record(msgspec.Struct):
    id: int
    when: datetime | msgspec.UnsetType = msgspec.UNSET


class Cat(msgspec.Struct, tag="cat", rename="camel"):
    lives_left: int


class Dog(msgspec.Struct, tag="dog", array_like=True):
    name: str


class Model(pydantic.BaseModel):
    name: str
    ratio: float | None = None
    at: datetime | None = None
    where: Path = Path("/tmp")
    child: Model | None = None


class Aliased(pydantic.BaseModel):
    kind: int = pydantic.Field(alias="type")


class Guarded(pydantic.BaseModel):
    password: pydantic.SecretStr


class Flags(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="allow")


@pydantic.dataclasses.dataclass
class PydanticData:
    age: int = pydantic.Field(gt=0)


class Drawable(Protocol):
    def draw(self) -> None: ...


class Plain:
    pass


@dataclasses.dataclass
class Deep:
    inner: list[dict[str, Path]]


class FixedZone(tzinfo):
    def utcoffset(self, when: datetime | None) -> timedelta:
        return timedelta(hours=1)

    def dst(self, when: datetime | None) -> None:
        return None

    def tzname(self, when: datetime | None) -> str:
        return "fixed"


def handler_for(kind: Any, name: CodecName, *, hooks: Any = None, check: bool = True) -> Handler:
    """A handler with one parameter, `value`, of type *kind*."""

    def take(value):  # type: ignore[no-untyped-def]
        return value

    take.__annotations__ = {"value": kind}
    return compile_handler(take, HandlerOptions(check=check), codec(name, types=hooks))


def delivered(kind: Any, value: Any, name: CodecName, **options: Any) -> Any:
    """What the function gets when *value* is enqueued under one codec and decoded under the other."""
    payload = handler_for(kind, name, **options).bind(value)
    other = handler_for(kind, name if BLOCKED_HERE else "msgspec" if name == "orjson" else "orjson", **options)
    return other.call(None, other.decode(payload))


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth - 1):
        value = [value]
    return value


MIXED_LITERALS = tuple(map(int, version("msgspec").split(".")[:2])) >= (0, 22)
"""Earlier ones cannot describe a Literal of texts and numbers: the handler is refused when it is registered."""

ACCEPTED: list[tuple[Any, Any]] = [
    (str, ""),
    (str, 'é😀\x00\u2028"\\'),
    (str, "x" * 1_048_576),
    (int, 0),
    (int, -(2**63)),
    (int, 2**63),
    (int, 2**64),
    (int, -(10**300)),
    (Any, 10**30),
    (bool, True),
    (float, 5e-324),
    (float, 1.7976931348623157e308),
    (float, 1e16),
    (float | None, None),
    (None, None),
    (bytes, b""),
    (bytes, bytes(range(256))),
    (bytearray, bytearray(b"ab")),
    (datetime, datetime(2020, 1, 1, 1, 2, 3, 4, UTC)),
    (datetime, datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=5)))),
    (datetime, datetime(9999, 12, 31, 23, 59, 59, 999_999, tzinfo=timezone(-timedelta(hours=5)))),
    (datetime, datetime(1969, 12, 31, 23, 59, 59, 1, timezone(timedelta(hours=-9, minutes=-30)))),
    (datetime, datetime(2020, 1, 1, tzinfo=timezone(timedelta(hours=23, minutes=59)))),
    (datetime, datetime(2020, 7, 1, tzinfo=AMSTERDAM)),
    (datetime, datetime(2020, 7, 1, tzinfo=FixedZone())),
    (date, date(1, 1, 1)),
    (date, date(1969, 12, 31)),
    (time, time(23, 59, 59, 999_999)),
    (time, time(0, 0, 0, 10_000)),
    (time, time(1, 2, tzinfo=UTC)),
    (time, time(1, 2, tzinfo=timezone(timedelta(hours=5, minutes=30)))),
    (timedelta, timedelta(0)),
    (timedelta, timedelta.max),
    (timedelta, timedelta.min),
    (timedelta, timedelta(microseconds=-1)),
    (UUID, UUID(int=1)),
    (Decimal, Decimal("1.10")),
    (Decimal, Decimal("-0E-30")),
    (Decimal, Decimal("1E+400")),
    (Colour, Colour.RED),
    (Level, Level.HIGH),
    (Size, Size.BIG),
    (Access, Access.WRITE),
    *([(Literal["a", 1, None], "a"), (Literal["a", 1, None], 1)] if MIXED_LITERALS else []),
    (Metres, 5),
    (Annotated[int, msgspec.Meta(gt=0)], 1),
    (list, [1, [2.5, None], {"a": True}]),
    (list[str], []),
    (list[float | None], [1.5, None]),
    (tuple, (1, "a")),
    (tuple[int, ...], ()),
    (tuple[int, str], (1, "a")),
    (tuple[()], ()),
    (set[int], set()),
    (set[datetime], {datetime(2020, 1, 1, tzinfo=UTC)}),
    (frozenset[str], frozenset({"a", "b"})),
    (set[Frozen], {Frozen(score=1.5)}),
    (dict, {}),
    (dict[str, int], {"": 1, "a b": 2}),
    (dict[int, str], {1: "a", 2**70: "b"}),
    (dict[UUID, str], {UUID(int=1): "a"}),
    (dict[date, int], {date(1960, 1, 1): 1}),
    (dict[datetime, int], {datetime(2020, 1, 1, tzinfo=UTC): 1}),
    (dict[Colour, int], {Colour.RED: 1}),
    (dict[Level, int], {Level.HIGH: 1}),
    (dict[bytes, int], {b"a": 1}),
    (dict[Decimal, int], {Decimal("1.50"): 1}),
    (dict[timedelta, int], {timedelta(hours=1): 1}),
    (dict[Literal["a", "b"], int], {"a": 1}),
    (dict[int | str, int], {"a": 2}),
    (collections.abc.Sequence[int], [1, 2]),
    (collections.abc.Mapping[str, float], {"a": 1.5}),
    (collections.abc.Set[int], {1, 2}),
    (int | float, 1),
    (int | float, 1.5),
    (str | int | None, "a"),
    (str | list[int] | dict[str, int], {"a": 1}),
    (datetime | None, datetime(2020, 1, 1, tzinfo=UTC)),
    (Any, {"a": [1, 1.5, "x", None, True, {}], "odd key": []}),
    (object, [1, {"a": None}]),
    (list[object], [1, "a", [None]]),
    (Any, nested(MAX_DEPTH - 1)),
    (Any, [{"a": index} for index in range(MAX_DEPTH)]),
    (Point, Point(1)),
    (list[Point], [Point(1, "a"), Point(2)]),
    (Options, {"name": "a"}),
    (Options, {"name": "a", "at": date(2020, 1, 1)}),
    (Order, Order([Point(1)], Decimal("1.10"), "mine", 5)),
    (Frozen, Frozen(score=-1.5, at=datetime(2020, 1, 1, tzinfo=UTC))),
    (Tree, Tree("a", [Tree("b"), Tree("c", [Tree("d")])])),
    (Box[int], Box(1)),
    (Box[list[Point]], Box([Point(1)])),
    (Record, Record(1)),
    (Record, Record(1, datetime(2020, 1, 1, tzinfo=UTC))),
    (Cat, Cat(9)),
    (Dog, Dog("rex")),
    (Model, Model(name="a", ratio=1.5, at=datetime(2020, 1, 1, tzinfo=UTC), child=Model(name="b"))),
    (Model | None, None),
    (list[Model], [Model(name="a")]),
    (Aliased, Aliased(type=3)),
    (Flags, Flags(anything=[1])),  # type: ignore[call-arg]
]


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize(("kind", "value"), ACCEPTED, ids=lambda item: f"{item!r:.60}")
def test_what_arrives_equals_what_was_sent(kind: Any, value: Any, name: CodecName) -> None:
    arrived = delivered(kind, value, name)
    assert arrived == value
    assert type(arrived) is type(value)


@pytest.mark.orjson
@pytest.mark.parametrize(("kind", "value"), ACCEPTED, ids=lambda item: f"{item!r:.60}")
def test_both_codecs_write_the_same_json(kind: Any, value: Any) -> None:
    one, other = (json.loads(handler_for(kind, name).bind(value)) for name in CODECS)
    assert one == other


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize(
    ("kind", "value", "plain"),
    [
        (str, Text("a"), "a"),
        (int, Number(5), 5),
        (float, Ratio(1.5), 1.5),
        (str, Size.BIG, "big"),
        (int, Level.HIGH, 3),
        (Any, [Text("a"), {Text("k"): Number(1)}], ["a", {"k": 1}]),
        (dict[str, int], collections.OrderedDict(a=1), {"a": 1}),
        (dict[str, int], collections.defaultdict(int, a=1), {"a": 1}),
        (float, 1, 1.0),
        (list[float], [1, 2], [1.0, 2.0]),
        (list[int], (1, 2), [1, 2]),
        (tuple[int, ...], [1, 2], (1, 2)),
        (Any, {"size": (640, 480)}, {"size": [640, 480]}),
        (Point, (1, "a"), Point(1, "a")),
        (frozenset[int], {1}, frozenset({1})),
        (bytes, bytearray(b"ab"), b"ab"),
        (datetime, Moment(2020, 1, 1, tzinfo=UTC), datetime(2020, 1, 1, tzinfo=UTC)),
    ],
    ids=repr,
)
def test_a_near_type_arrives_as_the_annotated_one(kind: Any, value: Any, plain: Any, name: CodecName) -> None:
    arrived = delivered(kind, value, name)
    assert arrived == plain
    assert type(arrived) is type(plain)


@pytest.mark.parametrize("name", CODECS)
def test_minus_zero_keeps_its_sign(name: CodecName) -> None:
    for kind in (float, Any, float | None):
        assert math.copysign(1, delivered(kind, -0.0, name)) == -1


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("fold", [0, 1])
def test_a_time_in_a_repeated_hour_stays_the_same_moment(name: CodecName, fold: int) -> None:
    sent = datetime(2020, 10, 25, 2, 30, tzinfo=AMSTERDAM, fold=fold)
    assert delivered(datetime, sent, name).timestamp() == sent.timestamp()


NAN, INF = math.nan, math.inf
NAIVE = datetime(2020, 1, 1)  # noqa: DTZ001 - what users must be told about
SECONDS = datetime(1890, 1, 1, tzinfo=AMSTERDAM)  # local mean time, +00:19:32

REFUSED: list[tuple[Any, Any, str, str]] = [
    (float, NAN, "$.value", "nan cannot be stored"),
    (float, INF, "$.value", "inf cannot be stored"),
    (float | None, NAN, "$.value", "nan cannot be stored"),
    (float | None, -INF, "$.value", "-inf cannot be stored"),
    (Any, NAN, "$.value", "nan cannot be stored"),
    (Any, Ratio("nan"), "$.value", "nan cannot be stored"),
    (Any, {"a": [1, {"b": NAN}]}, "$.value.a[1].b", "nan cannot be stored"),
    (list[float | None], [1.5, NAN], "$.value[1]", "nan cannot be stored"),
    (dict[str, float | None], {"a": INF}, "$.value.a", "inf cannot be stored"),
    (tuple[float | None, int], (NAN, 1), "$.value[0]", "nan cannot be stored"),
    (set[float | None], {NAN}, "$.value[...]", "nan cannot be stored"),
    (set[float | None], {INF}, "$.value[...]", "inf cannot be stored"),
    (Frozen, Frozen(score=NAN), "$.value.score", "nan cannot be stored"),
    (Box[Any], Box({"a": INF}), "$.value.content.a", "inf cannot be stored"),
    (Model, Model(name="a", ratio=NAN), "$.value.ratio", "nan cannot be stored"),
    (Decimal, Decimal("NaN"), "$.value", "NaN cannot be stored"),
    (Decimal, Decimal("Infinity"), "$.value", "Infinity cannot be stored"),
    (Decimal, 1.5, "$.value", "float 1.5 would arrive as Decimal"),
    (datetime, NAIVE, "$.value", "no time zone"),
    (datetime | None, NAIVE, "$.value", "no time zone"),
    (list[datetime], [NAIVE], "$.value[0]", "no time zone"),
    (set[datetime], {NAIVE}, "$.value[...]", "no time zone"),
    (dict[datetime, int], {NAIVE: 1}, "$.value[datetime.datetime(2020, 1, 1, 0, 0)]", "no time zone"),
    (Frozen, Frozen(at=NAIVE), "$.value.at", "no time zone"),
    (Model, Model(name="a", child=Model(name="b", at=NAIVE)), "$.value.child.at", "no time zone"),
    (datetime, SECONDS, "$.value", "UTC offset has seconds"),
    (datetime, datetime(2020, 1, 1, tzinfo=timezone(timedelta(seconds=-30))), "$.value", "UTC offset has seconds"),
    (time, time(1, 2, tzinfo=timezone(timedelta(seconds=3700))), "$.value", "UTC offset has seconds"),
    (time, time(1, 2, tzinfo=AMSTERDAM), "$.value", "depends on the day"),
    (date, datetime(2020, 1, 1, tzinfo=UTC), "$.value", "invalid RFC3339 encoded date (it is datetime.datetime(2020"),
    (str, 5, "$.value", "expected str, got int 5"),
    (str, None, "$.value", "expected str, got None"),
    (str, UUID(int=1), "$.value", "would arrive as str"),
    (str, b"ab", "$.value", "bytes b'ab' would arrive as str 'YWI='"),
    (str, date(2020, 1, 1), "$.value", "would arrive as str"),
    (str, Colour.RED, "$.value", "would arrive as str 'red'"),
    (str, Path("/tmp"), "$.value", "cannot be stored as JSON"),
    (list[str], ["a", UUID(int=1)], "$.value[1]", "would arrive as str"),
    (int, True, "$.value", "expected int, got bool True"),
    (int, 1.0, "$.value", "expected int, got float 1.0"),
    (int, "1", "$.value", "expected int, got str '1'"),
    (float, True, "$.value", "expected float"),
    (float, 2**53 + 1, "$.value", "would arrive as float"),
    (int, 10**5000, "$.value", "cannot be stored"),
    (bytes, "ab", "$.value", "invalid base64 encoded string (it is str 'ab')"),
    (bytes, "abcd", "$.value", "str 'abcd' would arrive as bytes"),
    (UUID, "00000000-0000-0000-0000-000000000001", "$.value", "would arrive as UUID"),
    (Colour, "red", "$.value", "would arrive as Colour"),
    (Colour, "blue", "$.value", "nvalid enum value"),
    (Literal["a"], "b", "$.value", "nvalid enum value"),
    (Annotated[int, msgspec.Meta(gt=0)], 0, "$.value", "0"),
    (str, "\ud800", "$.value", "surrogates not allowed"),
    (Any, {"a": ["\ud800"]}, "$.value.a[0]", "surrogates not allowed"),
    (Any, {"\ud800": 1}, "$.value", "the key"),
    (Any, {1: "a"}, "$.value[1]", "the key int 1"),
    (Any, {"1": "a", 1: "b"}, "$.value['1']", "str 'a' would arrive changed, as 'b'"),
    (Any, {None: 1}, "$.value", "the key None"),
    (Any, {(1, 2): 1}, "$.value", "the key tuple (1, 2)"),
    (dict[str, int], {1: 1}, "$.value[1]", "the key int 1"),
    (dict[int | str, int], {1: 1}, "$.value[1]", "the key int 1"),
    (dict[int, int], {True: 1}, "$.value", "the key bool True"),
    (Any, UUID(int=1), "$.value", "would arrive as str"),
    (Any, b"a", "$.value", "would arrive as str"),
    (Any, {1, 2}, "$.value", "would arrive as list"),
    (Any, timedelta(1), "$.value", "would arrive as str"),
    (Any, Frozen(), "$.value", "would arrive as dict"),
    (object, Record(1), "$.value", "would arrive as dict"),
    (Any, [1j], "$.value[0]", "complex 1j cannot be stored"),
    (Any, {"f": len}, "$.value.f", "cannot be stored"),
    (Any, {"r": range(3)}, "$.value.r", "cannot be stored"),
    (Any, Plain(), "$.value", "cannot be stored"),
    (list[int], {1, 2}, "$.value", "would arrive as list"),
    (set[int], [1, 1], "$.value", "would arrive as set"),
    (Options, {"name": "a", "nme": 1}, "$.value.nme", "unknown field"),
    (Options, {}, "$.value.name", "missing"),
    (Order, SubOrder([], Decimal(1), discount=5), "$.value", "SubOrder"),
    (Order, Record(1), "$.value.items", "missing"),
    (dict[str, list[dict[int, Box[int]]]], {"k": [{1: Box(1)}, {5: Box("a"), 7: Box(1)}]}, "$.value.k[1]['5'].content", "int"),
    (
        dict[str, int],
        {f"key {n}": n if n != 700 else "n" for n in range(1000)},
        "$.value['key 700']",
        "expected int, got str 'n'",
    ),
    (dict[str, set[int]], {"a": {1}, "b": {"x"}}, "$.value.b[0]", "expected int, got str"),
    (Box[int], Box("a"), "$.value.content", "expected int, got str 'a'"),
    (Order, Order([Point(1), Point("a")], Decimal(1)), "$.value.items[1][0]", "expected int, got str 'a'"),  # type: ignore[arg-type]
    (Guarded, Guarded(password="x"), "$.value.password", "would arrive changed"),
    (Any, nested(MAX_DEPTH), "", "nested deeper than 100"),
    (Any, nested(100_000), "", "nested deeper than 100"),
    (int, nested(100_000), "", "nested deeper than 100"),
]


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize(("kind", "value", "path", "reason"), REFUSED, ids=[f"{k!r:.40}-{p}-{r}" for k, _, p, r in REFUSED])
def test_what_would_not_arrive_as_sent_is_refused(kind: Any, value: Any, path: str, reason: str, name: CodecName) -> None:
    with pytest.raises(SerializationError, match=re.escape(reason)) as refused:
        handler_for(kind, name).bind(value)
    assert refused.value.path == path
    assert str(refused.value).startswith("take")


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize(
    "value",
    [2**63 - 1, -(2**63), 2**64 - 1, 2**64, 10**4298, 10**4299, -(10**4299)],
    ids=lambda n: f"{n:.2e}"[:9] if abs(n) < 1e300 else f"{len(str(n))} characters",
)
def test_a_whole_number_arrives_or_is_refused_however_large(value: int, name: CodecName) -> None:
    handler = handler_for(int, name)
    try:
        payload = handler.bind(value)
    except SerializationError:
        assert abs(value) >= 2**63  # what fits is taken
    else:
        assert handler.decode(payload).value == value


@pytest.mark.parametrize("name", CODECS)
def test_parameters_may_be_called_like_builtins(name: CodecName, monkeypatch: pytest.MonkeyPatch) -> None:
    def take(type: str, int: int, str: str, bool: bool = True): ...  # type: ignore[no-untyped-def,valid-type]

    take.__annotations__ = {"type": str, "int": int, "str": str, "bool": bool}
    monkeypatch.setattr(Payload, "encode", lambda *_: pytest.fail("encoded once more, the slow way"))
    handler = compile_handler(take, HandlerOptions(), codec(name))
    assert json.loads(handler.bind("a", 1, "b", bool=False)) == {"type": "a", "int": 1, "str": "b", "bool": False}


@pytest.mark.parametrize("name", CODECS)
def test_a_tree_of_ones_own_class_has_the_same_depth_limit(name: CodecName) -> None:
    tree = Tree("leaf")
    for _ in range(MAX_DEPTH):
        tree = Tree("node", [tree])
    with pytest.raises(SerializationError, match="nested deeper"):
        handler_for(Tree, name).bind(tree)


class Broken:
    def __repr__(self) -> str:
        raise RuntimeError("no repr")


@pytest.mark.parametrize("name", CODECS)
def test_a_value_with_a_broken_repr_is_refused_with_its_path(name: CodecName) -> None:
    with pytest.raises(SerializationError, match="repr failed: RuntimeError") as refused:
        handler_for(Any, name).bind([Broken()])
    assert refused.value.path == "$.value[0]"


NOT_STORABLE: list[tuple[Any, str]] = [
    (Path, "Path cannot be stored as JSON; use str, or register a codec hook"),
    (PurePath, "use str"),
    (complex, "complex cannot be stored as JSON; use a tuple of two floats"),
    (Plain, "Plain cannot be stored"),
    (Text, "Text cannot be stored"),
    (Drawable, "Drawable cannot be stored"),
    (Callable, "Callable cannot be stored"),
    (Callable[[int], int], "Callable cannot be stored"),
    (collections.abc.Generator, "Generator cannot be stored as JSON; use list"),
    (collections.abc.Iterator[int], "use list"),
    (collections.abc.Iterable[int], "use list, tuple, set or dict"),
    (collections.abc.Awaitable[int], "cannot be stored"),
    (io.TextIOBase, "cannot be stored"),
    (type, "cannot be stored"),
    (re.Pattern, "cannot be stored"),
    (types.SimpleNamespace, "cannot be stored"),
    (collections.deque, "deque cannot be stored"),
    (collections.Counter, "Counter cannot be stored"),
    (HalfEnum, "Enums must contain either all str or all int values"),
    (Literal[b"x"], "Literal may only contain"),
    (str | datetime, "may not contain more than one str-like type"),
    (list[int] | set[int], "more than one array-like"),
    (Model | int, "custom type"),
    (Path | None, "Path cannot be stored"),
    (list[Path], "Path cannot be stored"),
    (dict[str, list[Path | None]], "Path cannot be stored"),
    (tuple[int, Path], "Path cannot be stored"),
    (Box[Path], "Box.content: Path cannot be stored"),
    (Deep, "Deep.inner: Path cannot be stored"),
    (PydanticData, "pydantic dataclass"),
    (dict[float, int], "float cannot be a key"),
    (dict[tuple[int, int], int], "tuple cannot be a key"),
    (dict[bool, int], "bool cannot be a key"),
    (dict[Frozen, int], "Frozen cannot be a key"),
    (set[list[int]], "list cannot be hashed"),
    (frozenset[Order], "Order cannot be hashed"),
    (msgspec.Raw, "Raw cannot be stored"),
    (msgspec.msgpack.Ext, "Ext cannot be stored"),
]


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize(("kind", "reason"), NOT_STORABLE, ids=[f"{kind!r:.60}" for kind, _ in NOT_STORABLE])
def test_a_type_that_cannot_be_stored_is_refused_when_the_handler_is_compiled(kind: Any, reason: str, name: CodecName) -> None:
    with pytest.raises(ConfigError, match=re.escape(reason)) as refused:
        handler_for(kind, name).resolve()
    assert re.match(r"take\(value: .*\) at .*test_payloads\.py:\d+: ", str(refused.value))


PATHS = {Path: (str, Path)}


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (Path, Path("/a")),
        (Path | None, None),
        (list[Path], [Path("/a")]),
        (dict[str, Path], {"x": Path("y")}),
        (Box[Path], Box(Path("z"))),
    ],
    ids=repr,
)
def test_a_hook_makes_a_type_storable(kind: Any, value: Any, name: CodecName) -> None:
    assert delivered(kind, value, name, hooks=PATHS) == value


@pytest.mark.parametrize("name", CODECS)
def test_a_hook_whose_value_comes_back_changed_is_refused(name: CodecName) -> None:
    with pytest.raises(SerializationError, match="would arrive changed"):
        handler_for(Path, name, hooks={Path: (str, lambda text: Path("/other"))}).bind(Path("/a"))


@pytest.mark.parametrize("name", CODECS)
def test_an_error_in_a_hook_names_the_field(name: CodecName) -> None:
    def fail(value: Any) -> Any:
        raise LookupError("no such thing")

    with pytest.raises(SerializationError, match="no such thing") as refused:
        handler_for(list[Path], name, hooks={Path: (fail, Path)}).bind([Path("/a")])
    assert refused.value.path == "$.value[0]"
    handler = handler_for(Path, name, hooks={Path: (str, fail)}, check=False)
    with pytest.raises(SerializationError, match="no such thing"):
        handler.decode(b'{"value":"/a"}')


@pytest.mark.parametrize(
    ("types", "reason"),
    [
        ({Path: str}, "must be two functions"),
        ({Path: (str, 5)}, "must be two functions"),
        ({"Path": (str, Path)}, "each key must be a class"),
        ({datetime: (str, str)}, "datetime is stored without a hook"),
        ({Order: (str, str)}, "Order is stored without a hook"),
        ({Model: (str, str)}, "Model is stored without a hook"),
    ],
)
def test_hooks_that_make_no_sense_are_refused(types: Any, reason: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(reason)):
        codec("msgspec", types=types)


def test_an_unknown_codec_is_refused() -> None:
    with pytest.raises(ConfigError, match='must be "orjson" or "msgspec"'):
        codec("pickle")  # type: ignore[arg-type]


BLOCKED = """
import sys
sys.modules["orjson"] = None
from fastjobs.binding import compile_handler
from fastjobs.codec import codec
from fastjobs.errors import ConfigError
from fastjobs.options import HandlerOptions
def resize(path: str, width: int = 800): return path, width
handler = compile_handler(resize, HandlerOptions(), codec("msgspec"))
assert handler.call(None, handler.decode(handler.bind("a", width=3))) == ("a", 3)
try:
    codec("orjson")
except ConfigError as error:
    assert 'codec="msgspec"' in str(error), error
    print("refused")
"""


def test_the_msgspec_codec_needs_no_orjson() -> None:
    result = subprocess.run([sys.executable, "-c", BLOCKED], capture_output=True, text=True, check=False)
    assert (result.stdout, result.stderr) == ("refused\n", "")


def test_orjson_is_imported_only_when_it_is_chosen() -> None:
    code = "import sys, fastjobs.binding, fastjobs.codec as c; c.codec('msgspec'); print('orjson' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "False\n"


@pytest.mark.parametrize("name", CODECS)
def test_data_for_an_unknown_handler_is_checked_for_what_json_cannot_hold(name: CodecName) -> None:
    plain = codec(name)
    assert json.loads(plain.encode({"a": [1, (2, None)], "b": date(2020, 1, 1)})) == {"a": [1, [2, None]], "b": "2020-01-01"}
    for value, path in (({"a": [NAN]}, "$.a[0]"), ({"a": NAIVE}, "$.a"), ({"a": 1j}, "$.a"), (nested(101), "")):
        with pytest.raises(SerializationError) as refused:
            plain.encode(value)
        assert refused.value.path == path


class Ask(msgspec.Struct):
    """Data by name, in JSON's own types, as the command line passes them."""

    at: datetime
    id: UUID
    price: Decimal
    colour: Colour
    raw: bytes
    place: Point
    model: Model
    cat: Cat
    tags: set[str]


ASKED = {
    "at": "2020-01-01T00:00:00Z",
    "id": str(UUID(int=1)),
    "price": "1.10",
    "colour": "red",
    "raw": "YWI=",
    "place": [1, "a"],
    "model": {"name": "a"},
    "cat": {"type": "cat", "livesLeft": 9},
    "tags": ["a", "b"],
}


@pytest.mark.parametrize("name", CODECS)
def test_data_by_name_may_be_in_the_types_of_json(name: CodecName) -> None:
    handler = handler_for(Ask, name)
    arrived = handler.call(None, handler.decode(handler.encode_data({"value": ASKED})))
    assert arrived.colour is Colour.RED
    assert arrived.at == datetime(2020, 1, 1, tzinfo=UTC)
    assert arrived.model == Model(name="a")
    assert arrived.cat == Cat(9)


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize(
    ("kind", "value", "path", "reason"),
    [
        (Ask, ASKED | {"at": "2020-01-01T00:00:00"}, "$.value.at", "no time zone"),
        (Ask, ASKED | {"att": 1}, "$.value.att", "unknown field"),
        (Ask, ASKED | {"cat": {"type": "cat", "livesLeft": 9, "lives_left": 9}}, "$.value.cat.lives_left", "unknown field"),
        (Ask, ASKED | {"price": "NaN"}, "$.value.price", "NaN cannot be stored"),
        (Ask, ASKED | {"model": {"name": 5}}, "$.value.model.name", "valid string"),
        (Ask, ASKED | {"model": {"ratio": 1, "child": {"at": 5}}}, "$.value.model.name", "Field required (and 1 more)"),
        (dict[str, Point], {"a": [1, "a"], "b": ["x", "b"], "c": [1, "c"]}, "$.value.b[0]", "expected int, got str 'x'"),
        (list[Tree], [{"label": "a", "childen": []}], "$.value[0].childen", "unknown field"),
        (Options, {"name": "a", "at_": "2020-01-01"}, "$.value.at_", "unknown field"),
        (Any, {"a": [NAN]}, "$.value.a[0]", "nan cannot be stored"),
        (float | None, INF, "$.value", "inf cannot be stored"),
        (Any, nested(101), "", "nested deeper"),
        (str, UUID(int=1), "$.value", "would arrive as str"),
        (datetime, "yesterday", "$.value", "nvalid RFC3339"),
    ],
    ids=lambda item: f"{item!r:.50}",
)
def test_data_by_name_is_checked_as_well(kind: Any, value: Any, path: str, reason: str, name: CodecName) -> None:
    with pytest.raises(SerializationError, match=re.escape(reason)) as refused:
        handler_for(kind, name).encode_data({"value": value})
    assert refused.value.path == path


class Runner:
    """The shape of a `Job` class."""

    name = "runner"

    async def execute(self, ctx: Any, data: Any) -> Any:
        return data


@pytest.mark.parametrize("name", CODECS)
def test_the_payload_of_a_job_class_is_its_data(name: CodecName) -> None:
    handler = compile_job(Runner(), Frozen, HandlerOptions(), codec(name))
    payload = handler.bind(Frozen(score=1.5))
    assert json.loads(payload) == {"score": 1.5, "at": None}
    assert handler.decode(payload) == Frozen(score=1.5)
    assert handler.encode_data(Frozen(score=1.5)) == payload
    assert handler.decode(handler.encode_data({"score": 2})) == Frozen(score=2.0)
    for wrong, path in ((Frozen(score=NAN), "$.score"), (Record(1), "$"), (Frozen(at=NAIVE), "$.at")):
        for encode in (handler.encode_data, lambda value: handler.bind(value)):
            with pytest.raises(SerializationError) as refused:
                encode(wrong)
            assert refused.value.path == path
            assert str(refused.value).startswith("runner")


def test_an_attrs_class_is_stored_like_a_dataclass() -> None:
    cls = attrs.make_class("Cell", {"x": attrs.field(type=int), "y": attrs.field(type=float | None, default=None)})
    assert delivered(cls, cls(1, 2.5), "msgspec") == cls(1, 2.5)
    with pytest.raises(SerializationError, match="nan"):
        handler_for(cls, "msgspec").bind(cls(1, NAN))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text() | st.integers(), inner, max_size=4),
    max_leaves=20,
)


def outcome(kind: Any, value: Any, name: CodecName) -> Any:
    try:
        return delivered(kind, value, name)
    except SerializationError as error:
        return str(error), error.path


@pytest.mark.orjson
@given(json_values)
def test_any_value_arrives_as_sent_or_is_refused_alike_by_both_codecs(value: Any) -> None:
    one, other = (outcome(Any, value, name) for name in CODECS)
    assert one == other
    if not isinstance(one, tuple):
        assert one == value


scalars = st.one_of(
    st.datetimes(
        timezones=st.none() | st.timezones() | st.builds(timezone, st.timedeltas(-timedelta(hours=23), timedelta(hours=23)))
    ),
    st.times(),
    st.dates(),
    st.timedeltas(),
    st.uuids(),
    st.decimals(),
    st.binary(),
    st.floats(),
    st.integers(),
    st.text(),
    st.none(),
)
KINDS = (datetime, time, date, timedelta, UUID, Decimal, bytes, float, int, str, type(None), Any)


@pytest.mark.orjson
@given(st.sampled_from(KINDS), scalars, st.sampled_from(["plain", "list", "box"]))
def test_any_scalar_arrives_as_sent_or_is_refused_alike_by_both_codecs(kind: Any, value: Any, form: str) -> None:
    if form == "list":
        kind, value = list[kind], [value]  # type: ignore[valid-type]
    elif form == "box":
        kind, value = Box[kind | None if kind is not Any else Any], Box(value)  # type: ignore[valid-type,misc]
    one, other = (outcome(kind, value, name) for name in CODECS)
    inner = value[0] if form == "list" else value.content if form == "box" else value
    if isinstance(inner, datetime) and not isinstance(one, tuple):
        arrived = one[0] if form == "list" else one.content if form == "box" else one
        assert (arrived.replace(tzinfo=None), arrived.utcoffset()) == (inner.replace(tzinfo=None, fold=0), inner.utcoffset())
    else:
        assert one == other
        assert isinstance(one, tuple) or one == value
