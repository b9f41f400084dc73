"""Slow walks over values: whether what arrives is what was sent, and if not, where and why.

A fast job pays for none of this. The check at the enqueue compares what the worker's own decoder makes of the stored bytes
with what was sent, at C speed; these walks run where equality is no proof (`payload_types.Traits`) and to name the culprit.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any, Final, NoReturn
from uuid import UUID

import msgspec

from fastjobs.errors import SerializationError
from fastjobs.payload_types import is_pydantic

MAX_DEPTH: Final = 100
"""Levels of lists and objects in a payload. Any interpreter and codec takes these; beyond they differ (orjson ends at 254)."""

ROOT: Final = "$"
_IDENTITY: Final[Any] = object.__eq__
ABSENT: Final = object()
"""Stands for a value that was not given."""


def field_names(cls: type) -> tuple[str, ...] | None:
    """Names of the stored fields of a Struct, dataclass or attrs class; None for other classes."""
    if issubclass(cls, msgspec.Struct):
        return cls.__struct_fields__
    if dataclasses.is_dataclass(cls):
        return tuple(field.name for field in dataclasses.fields(cls))
    attributes = getattr(cls, "__attrs_attrs__", None)
    return None if attributes is None else tuple(attribute.name for attribute in attributes)


def _contents(value: Any) -> Mapping[str, Any] | None:
    """Fields and values of an object that is stored by its fields; None for other values."""
    if is_pydantic(type(value)):
        return {**value.__dict__, **(value.__pydantic_extra__ or {})}
    names = field_names(type(value))
    return None if names is None else {name: getattr(value, name, ABSENT) for name in names}


def key_path(path: str, key: object) -> str:
    """*path* with a step into *key*: `$.a`, or `$["odd key"]`."""
    return f"{path}.{key}" if isinstance(key, str) and key.isidentifier() else f"{path}[{_text(key)}]"


def _children(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """What *value* contains, with each one's path."""
    if isinstance(value, Mapping):
        for key, child in value.items():
            yield key_path(path, key), child
    elif isinstance(value, (list, tuple, set, frozenset)):
        for index, child in enumerate(value):
            yield f"{path}[{index}]", child
    elif not isinstance(value, type):
        for name, child in (_contents(value) or {}).items():
            yield key_path(path, name), child


def _text(value: object) -> str:
    """`repr` cut at 60 characters; a broken one does not hide the error it was to tell of."""
    try:
        text = repr(value)
    except Exception as error:
        text = f"<repr failed: {type(error).__name__}>"
    return text if len(text) <= 60 else f"{text[:57]}..."


def describe(value: object) -> str:
    """Type and value, for messages."""
    text, kind = _text(value), type(value).__name__
    return text if value is None or text.partition("(")[0].rpartition(".")[2] == kind else f"{kind} {text}"


def _nonfinite(value: object, path: str) -> SerializationError:
    return SerializationError(f"{value} cannot be stored as JSON; use None, or leave it out", path=path)


def find_unencodable(value: Any, encode: Callable[[Any], bytes], error: Exception, path: str = ROOT) -> SerializationError:
    """The error of the innermost part of *value* that *encode* refuses; *error* is what it said of the whole."""
    if isinstance(error, RecursionError):
        return too_deep()
    if isinstance(value, Mapping):
        for key in value:
            try:
                encode({key: None})
            except Exception as key_error:
                return SerializationError(f"the key {describe(key)} cannot be stored as JSON: {key_error}", path=path)
    for child_path, child in _children(value, path):
        try:
            encode(child)
        except Exception as child_error:
            return find_unencodable(child, encode, child_error, child_path)
    reason = "" if isinstance(error, TypeError) and "unsupported" in str(error) else f": {error}"
    return SerializationError(f"{describe(value)} cannot be stored as JSON{reason}", path=path)


def too_deep() -> SerializationError:
    """The error of a payload with too many levels."""
    return SerializationError(f"nested deeper than {MAX_DEPTH} levels; store it flat, or as one str", path="")


def check_depth(payload: bytes) -> None:
    """SerializationError if the JSON in *payload* is nested deeper than MAX_DEPTH levels."""
    # Without so many brackets it cannot be: 60 ns for most payloads, against 30 ns per value below.
    if payload.count(b"[") + payload.count(b"{") <= MAX_DEPTH:
        return
    try:
        level = [msgspec.json.decode(payload)]
    except RecursionError as error:
        raise too_deep() from error
    for _ in range(MAX_DEPTH):
        level = [
            child
            for node in level
            for child in (node.values() if isinstance(node, dict) else node)
            if isinstance(child, (dict, list))
        ]
        if not level:
            return
    raise too_deep()


def check_arrival(sent: Any, arrived: Any, path: str = ROOT) -> None:
    """SerializationError with the path of the first part of *arrived* that is not what was *sent*.

    *arrived* comes from the typed decoder, so its types are the annotated ones. A tuple may arrive as a list and a list as
    a tuple, an int as a float, a subclass of a plain type as that type. RecursionError where the values are nested too deeply.
    """
    kind = type(arrived)
    check = _CHECKS.get(kind)
    if check is None:
        if isinstance(arrived, Enum):
            check = _check_enum
        else:
            check = next((_CHECKS[base] for base in kind.__mro__ if base in _CHECKS), _check_object)
    check(sent, arrived, path)


def check_sendable(value: Any, path: str = ROOT) -> None:
    """SerializationError with the path of what no payload may hold whatever its type: NaN, infinity, a naive datetime, ….

    Both encoders write null for NaN and infinity. Objects of unknown classes are left to the encoder.
    """
    try:
        check_arrival(value, value, path)
    except RecursionError as error:
        raise too_deep() from error


def check_nothing_dropped(sent: Any, arrived: Any, path: str = ROOT) -> None:
    """SerializationError if plain JSON data as *sent* has fields that *arrived* has no place for: msgspec ignores them."""
    if isinstance(sent, Mapping):
        if isinstance(arrived, dict):
            known: Mapping[Any, Any] = arrived
            complete = len(arrived) >= len(sent)  # typed keys may look different, but there must be as many
        else:
            known = _encoded_fields(arrived)
            complete = not known
        for key, value in sent.items():
            if key in known:
                check_nothing_dropped(value, known[key], key_path(path, key))
            elif not complete:
                raise SerializationError("unknown field", path=key_path(path, key))
    elif isinstance(sent, (list, tuple)) and isinstance(arrived, (list, tuple)):
        for index, (sent_item, arrived_item) in enumerate(zip(sent, arrived, strict=False)):
            check_nothing_dropped(sent_item, arrived_item, f"{path}[{index}]")


def _encoded_fields(value: Any) -> Mapping[str, Any]:
    """Fields and values by their names in JSON; empty for objects whose class says itself what it does with others."""
    if is_pydantic(type(value)):
        return {}
    fields = dict(_contents(value) or {})
    if isinstance(value, msgspec.Struct):
        fields = dict(zip(value.__struct_encode_fields__, fields.values(), strict=True))
        tag = value.__struct_config__.tag_field
        if tag is not None:
            fields[tag] = None
    return fields


def _refuse(sent: Any, arrived: Any, path: str) -> NoReturn:
    if isinstance(sent, float) and not math.isfinite(sent):
        raise _nonfinite(sent, path)
    if type(sent) is type(arrived):
        raise SerializationError(f"{describe(sent)} would arrive changed, as {_text(arrived)}", path=path)
    raise SerializationError(f"{describe(sent)} would arrive as {describe(arrived)}", path=path)


def _check_plain(sent: Any, arrived: Any, path: str) -> None:
    if not isinstance(sent, type(arrived)) or sent != arrived or (isinstance(sent, bool) and not isinstance(arrived, bool)):
        _refuse(sent, arrived, path)


def _check_float(sent: Any, arrived: float, path: str) -> None:
    if not isinstance(sent, (float, int)) or isinstance(sent, bool) or sent != arrived or math.isinf(sent):
        _refuse(sent, arrived, path)


def _check_enum(sent: Any, arrived: Enum, path: str) -> None:
    if sent != arrived:
        _refuse(sent, arrived, path)


def _check_bytes(sent: Any, arrived: Any, path: str) -> None:
    if not isinstance(sent, (bytes, bytearray, memoryview)) or sent != arrived:
        _refuse(sent, arrived, path)


def _check_decimal(sent: Any, arrived: Decimal, path: str) -> None:
    if not isinstance(sent, Decimal):
        _refuse(sent, arrived, path)
    if not sent.is_finite():
        raise _nonfinite(sent, path)
    if sent != arrived:
        _refuse(sent, arrived, path)


def _check_date(sent: Any, arrived: date, path: str) -> None:
    if not isinstance(sent, date) or isinstance(sent, datetime) or sent != arrived:
        _refuse(sent, arrived, path)


def _check_offset(sent: datetime | time, offset: timedelta, path: str) -> None:
    if offset.microseconds or offset.seconds % 60:
        raise SerializationError(
            f"{sent.isoformat()}: its UTC offset has seconds, which JSON times cannot carry; convert it to UTC", path=path
        )


def _check_datetime(sent: Any, arrived: datetime, path: str) -> None:
    if not isinstance(sent, datetime):
        _refuse(sent, arrived, path)
    if sent.tzinfo is UTC and sent == arrived:
        return
    offset = sent.utcoffset()
    if offset is None:
        raise SerializationError(
            f"{sent.isoformat()} has no time zone, so it is another moment on another machine; make it aware, as "
            f"datetime.now(UTC) is",
            path=path,
        )
    _check_offset(sent, offset, path)
    # Not `sent == arrived`: Python calls times in a repeated hour unequal to all times of other zones (PEP 495).
    if offset != arrived.utcoffset() or _wall(sent) != _wall(arrived):
        _refuse(sent, arrived, path)


def _wall(moment: datetime) -> datetime:
    return moment.replace(tzinfo=UTC, fold=0)


def _check_time(sent: Any, arrived: time, path: str) -> None:
    if not isinstance(sent, time):
        _refuse(sent, arrived, path)
    offset = sent.utcoffset()
    if sent.tzinfo is not None and offset is None:
        raise SerializationError(f"{_text(sent)}: its UTC offset depends on the day; use a datetime, or no tzinfo", path=path)
    if offset is not None:
        _check_offset(sent, offset, path)
    if offset != arrived.utcoffset() or sent.replace(tzinfo=None, fold=0) != arrived.replace(tzinfo=None, fold=0):
        _refuse(sent, arrived, path)


def _check_array(sent: Any, arrived: Any, path: str) -> None:
    if not isinstance(sent, (list, tuple)) or len(sent) != len(arrived):
        _refuse(sent, arrived, path)
    for index, (sent_item, arrived_item) in enumerate(zip(sent, arrived, strict=True)):
        check_arrival(sent_item, arrived_item, f"{path}[{index}]")


def _check_set(sent: Any, arrived: Any, path: str) -> None:
    if not isinstance(sent, (set, frozenset)):
        _refuse(sent, arrived, path)
    for item in sent:  # in no order, so each by itself, and then all at once
        check_arrival(item, item, f"{path}[...]")
    if sent != arrived:
        _refuse(sent, arrived, path)


def _check_dict(sent: Any, arrived: dict[Any, Any], path: str) -> None:
    if not isinstance(sent, Mapping):
        _refuse(sent, arrived, path)
    for key, value in sent.items():
        child_path = key_path(path, key)
        if key not in arrived:
            dropped = isinstance(key, str) and len(arrived) < len(sent)
            reason = "unknown field" if dropped else f"the key {describe(key)} would not arrive as it is; see the annotation"
            raise SerializationError(reason, path=child_path)
        check_arrival(key, key, child_path)
        check_arrival(value, arrived[key], child_path)
    if len(sent) != len(arrived):
        _refuse(sent, arrived, path)


def _check_object(sent: Any, arrived: Any, path: str) -> None:
    """Objects of classes: of the very same one, and equal field by field, or by `==` where fields are not known."""
    if type(sent) is not type(arrived):
        _refuse(sent, arrived, path)
    sent_fields = _contents(sent)
    if sent_fields is None:
        if type(sent).__eq__ is not _IDENTITY and sent != arrived:
            _refuse(sent, arrived, path)
        return
    arrived_fields = _contents(arrived) or {}
    for name, value in sent_fields.items():
        child_path = key_path(path, name)
        if name not in arrived_fields:
            raise SerializationError(f"{describe(value)} would not arrive", path=child_path)
        check_arrival(value, arrived_fields[name], child_path)


_CHECKS: Final[dict[type, Callable[[Any, Any, str], None]]] = {
    type(None): _check_plain,
    bool: _check_plain,
    int: _check_plain,
    str: _check_plain,
    UUID: _check_plain,
    timedelta: _check_plain,
    float: _check_float,
    bytes: _check_bytes,
    bytearray: _check_bytes,
    memoryview: _check_bytes,
    Decimal: _check_decimal,
    date: _check_date,
    datetime: _check_datetime,
    time: _check_time,
    list: _check_array,
    tuple: _check_array,
    set: _check_set,
    frozenset: _check_set,
    dict: _check_dict,
}
