"""Payload bytes that meet a handler's types, and arguments that meet the door."""

from __future__ import annotations

import enum
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any, NamedTuple, TypedDict
from uuid import UUID

import msgspec
import pydantic
from hypothesis import strategies as st

from fastjobs import JobQueue
from fastjobs.errors import ConfigError, SerializationError
from fastjobs.payload_values import MAX_DEPTH
from tests.fuzz.strategies import ODD_FLOATS, damaged, json_values, noise, numbers, scalars, texts, wild_texts
from tests.fuzz.surface import Check, Surface


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


@dataclass
class Item:
    name: str
    price: Decimal
    tags: set[str]
    made: datetime | None = None


class Extra(TypedDict, total=False):
    note: str
    level: int


class Point(NamedTuple):
    x: float
    y: float = 0.0


class Packed(msgspec.Struct):
    data: bytes
    inner: list[Point]


class Model(pydantic.BaseModel):
    size: int
    label: str = "m"


jobs = JobQueue("memory://", max_payload_bytes=4_000)
jobs_in_c = JobQueue("memory://", max_payload_bytes=4_000, codec="msgspec")


async def plain_job(path: str, width: int = 800, ratio: float = 1.0, *, deep: bool = False) -> None: ...
async def rich_job(item: Item, extra: Extra, when: datetime, day: date, at: time, wait: timedelta, id: UUID) -> None: ...
async def nested_job(packed: Packed, model: Model, colour: Colour, sizes: dict[int, tuple[int, str]] | None) -> None: ...
async def loose_job(
    anything: Any, number: int | float | None = None, items: list[Any] | dict[str, Any] | None = None
) -> None: ...


HANDLERS = [
    (queue, queue.job(function)) for queue in (jobs, jobs_in_c) for function in (plain_job, rich_job, nested_job, loose_job)
]

_WHOLE: dict[str, Any] = {
    "path": "a.png",
    "width": 3,
    "item": {"name": "n", "price": "1.50", "tags": ["a"], "made": "2026-01-01T00:00:00Z"},
    "extra": {"note": "x"},
    "when": "2026-01-01T00:00:00Z",
    "day": "2026-01-01",
    "at": "10:00:00",
    "wait": "PT1S",
    "id": "12345678-1234-5678-1234-567812345678",
    "packed": {"data": "AAAA", "inner": [[1.0, 2.0]]},
    "model": {"size": 3},
    "colour": "red",
    "sizes": {"1": [1, "a"]},
    "anything": [{"a": 1}],
    "number": 3,
}
_SAMPLES = [
    msgspec.json.encode({name: _WHOLE[name] for name in names})
    for names in (
        ("path", "width"),
        ("item", "extra", "when", "day", "at", "wait", "id"),
        ("packed", "model", "colour", "sizes"),
        ("anything", "number"),
    )
]
_DEEP = tuple(b'{"anything":' + head * 5_000 for head in (b"[", b'{"a":'))
_named = st.dictionaries(st.sampled_from([*_WHOLE, "x", ""]), json_values | st.sampled_from([*_WHOLE.values()]), max_size=8)
_json = _named.map(lambda value: _dumps(value))
_bytes = damaged(_SAMPLES) | _json | noise | st.sampled_from([*_SAMPLES, *_DEEP])
_whole = st.integers(0, 7).map(lambda index: bytes((index,)) + _SAMPLES[index % 4])
payloads = _whole | st.builds(lambda index, payload: bytes((index,)) + payload, st.integers(0, 7), _bytes)
"""The first byte says which handler gets the others."""


def _dumps(value: Any) -> bytes:
    try:
        return msgspec.json.encode(value)
    except (TypeError, OverflowError):  # an int beyond 64 bits
        return str(value).replace("'", '"').encode("utf-8", "surrogatepass")


def judge_bytes(given: bytes) -> bool:
    """Arguments that are written and read again to the same, or a SerializationError."""
    payload = given[1:]
    queue, function = HANDLERS[given[0] % len(HANDLERS) if given else 0]
    handler = function.handler
    try:
        arguments = handler.decode(payload)
    except SerializationError as error:
        assert str(error)
        assert len(str(error)) < 2_000
        return False
    written = queue._payload_codec().thorough(arguments)
    assert queue._payload_codec().thorough(handler.decode(written)) == written
    return True


_stored_values = st.recursive(
    scalars
    | wild_texts
    | st.datetimes()
    | st.dates()
    | st.timedeltas()
    | st.decimals()
    | st.uuids()
    | st.sampled_from([*Colour, object(), Item, Point(1.0), Packed(b"x", []), Model(size=1), *ODD_FLOATS]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(texts | numbers | st.none(), inner, max_size=3)
        | st.frozensets(texts, max_size=2)
    ),
    max_leaves=6,
)
_arguments = st.dictionaries(st.sampled_from(["path", "width", "anything", "number", "items", "x"]), _stored_values, max_size=4)


def judge_arguments(given: tuple[int, Any]) -> bool:
    """What is accepted arrives as it was sent; anything else is refused by an error that says so."""
    index, data = given
    queue = (jobs, jobs_in_c)[index % 2]
    name = ("plain_job", "loose_job", "nobody_knows_it")[index % 3]
    try:
        call = queue.prepare(name, data)
    except (SerializationError, ConfigError) as error:
        assert str(error)
        return False
    payload = call.payload
    assert len(payload) <= 4_000
    arrived = msgspec.json.decode(payload)
    assert _depth(arrived) <= MAX_DEPTH
    if name == "nobody_knows_it":
        assert _same(data, arrived), (data, payload)
    return True


def _depth(value: Any) -> int:
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + max(map(_depth, children), default=0) if isinstance(value, (dict, list)) else 0


def _same(sent: Any, arrived: Any) -> bool:
    """Whether JSON data came through as it is; other types are written as text, and not looked into."""
    if isinstance(sent, dict):
        return len(sent) == len(arrived) and all(
            key in arrived and _same(value, arrived[key]) for key, value in sent.items() if isinstance(key, str)
        )
    if isinstance(sent, (list, tuple)):
        return len(sent) == len(arrived) and all(map(_same, sent, arrived))
    if isinstance(sent, float):
        return math.isfinite(sent) and sent == arrived
    if sent is None or isinstance(sent, (bool, int, str)):
        return type(sent) is type(arrived) and sent == arrived
    return arrived is not None


@contextmanager
def _resolved(check: Check) -> Iterator[Check]:
    jobs.load()
    jobs_in_c.load()
    yield check


SURFACES = (
    Surface(name="payload bytes", inputs=payloads, opened=lambda: _resolved(judge_bytes), weight=30, offspring=9),
    Surface(
        name="arguments", inputs=st.tuples(st.integers(0, 5), _arguments), opened=lambda: _resolved(judge_arguments), weight=3
    ),
)
