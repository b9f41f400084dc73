"""Payload ↔ JSON bytes, by one of two encoders: orjson, or msgspec for those who must be free of Rust.

Both write the same JSON and either reads the other's jobs, because one typed decoder (msgspec) reads them all. orjson is the
quick way for what both write alike; whatever it does not know or would write differently is handed to msgspec's encoder.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any, Final, Literal, TypeAlias
from uuid import UUID

import msgspec
from msgspec import inspect as mi

from fastjobs.errors import ConfigError
from fastjobs.payload_errors import model_error
from fastjobs.payload_types import Hook, Hooks, Traits, examine, is_pydantic, type_name
from fastjobs.payload_values import check_depth, check_sendable, find_unencodable

CodecName: TypeAlias = Literal["orjson", "msgspec"]
Encode: TypeAlias = Callable[[Any], bytes]
Decode: TypeAlias = Callable[[bytes], Any]

# Subclasses of these are stored as the plain type; msgspec takes only the types themselves. datetime stands before date.
_BASES: Final[tuple[tuple[type, Callable[[Any], Any]], ...]] = (
    (str, str.__str__),
    (int, int.__int__),
    (float, float.__float__),
    (datetime, lambda v: datetime.combine(date(v.year, v.month, v.day), _plain_time(v.timetz()))),
    (date, lambda v: date(v.year, v.month, v.day)),
    (time, lambda v: _plain_time(v)),
    (timedelta, lambda v: timedelta(v.days, v.seconds, v.microseconds)),
    (Decimal, Decimal),
    (UUID, lambda v: UUID(int=v.int)),
    (bytes, lambda v: bytes(memoryview(v))),
)


def _plain_time(value: time) -> time:
    return time(value.hour, value.minute, value.second, value.microsecond, value.tzinfo, fold=value.fold)


class PayloadCodec:
    """How payloads are written and read. Made by `codec`."""

    __slots__ = ("dumps", "dumps_plain", "hooks", "name", "thorough")

    def __init__(self, name: CodecName, hooks: Hooks) -> None:
        self.name: CodecName = name
        self.hooks = hooks
        #: writes all that can be stored; raises the encoder's own errors
        self.thorough: Encode = msgspec.json.Encoder(enc_hook=self._lower).encode
        #: the quick way; what it refuses `thorough` may still take
        self.dumps, self.dumps_plain = (self.thorough,) * 2 if name == "msgspec" else _orjson_dumps(self.thorough)

    def encode(self, value: Any) -> bytes:
        """*value*, of no known type, as JSON. SerializationError with the path of what cannot be stored as it is."""
        payload = self.encode_unchecked(value)
        check_depth(payload)
        if msgspec.json.decode(payload) != value:  # plain JSON data, and neither NaN nor infinity in it, comes back equal
            check_sendable(value)
        return payload

    def encode_unchecked(self, value: Any) -> bytes:
        """*value* as JSON, NaN and infinity as null. SerializationError with the path of what cannot be stored."""
        try:
            return self.dumps(value)
        except Exception:
            return self.encode_thoroughly(value)

    def encode_thoroughly(self, value: Any) -> bytes:
        """As `encode_unchecked`, for a *value* that the quick way refused."""
        try:
            return self.thorough(value)
        except MemoryError:
            raise
        except Exception as error:
            raise find_unencodable(value, self.thorough, error) from error

    def decoder(self, kind: Any) -> Decode:
        """The typed decoder of *kind*. It raises msgspec's errors (see `decode_error`); TypeError if there can be none."""
        return msgspec.json.Decoder(kind, dec_hook=self._raise).decode

    def with_types(self, types: Mapping[type, Hook] | None) -> PayloadCodec:
        """This codec with *types* as `codec` takes them. ConfigError for those that are wrong."""
        return self if not types or types == self.hooks else PayloadCodec(self.name, checked_hooks({**self.hooks, **types}))

    def examine(self, kind: Any) -> Traits:
        """What checking values of *kind* takes; NotStorable if payloads cannot have that type."""
        return examine(kind, self.hooks)

    def _lower(self, value: Any) -> Any:
        """What msgspec is to write for a *value* it does not know."""
        cls = type(value)
        if self.hooks:
            for base in cls.__mro__:
                if base in self.hooks:
                    return self.hooks[base][0](value)
        if is_pydantic(cls):
            try:
                return msgspec.Raw(value.model_dump_json(by_alias=True, round_trip=True, warnings="error").encode())
            except ValueError as error:
                raise ValueError(" ".join(str(error).split())) from error
        for base, plain in _BASES:
            if isinstance(value, base) and cls is not bool:  # bool: the key of a dict, which JSON would give back as str
                return plain(value)
        raise TypeError(f"unsupported type {type_name(cls)}")

    def _raise(self, kind: Any, value: Any) -> Any:
        """The instance of *kind* for the JSON *value*; the reverse of `_lower`."""
        if kind is object:
            return value
        cls = getattr(kind, "__origin__", kind)
        if cls in self.hooks:
            return self.hooks[cls][1](value)
        try:
            return kind.model_validate_json(msgspec.json.encode(value))
        except ValueError as error:
            raise model_error(error) from error

    def __repr__(self) -> str:
        return f"<PayloadCodec {self.name}>"


def codec(name: CodecName = "orjson", *, types: Mapping[type, Hook] | None = None) -> PayloadCodec:
    """The codec called *name*, with *types* beyond those that fastjobs stores by itself.

    `types={Path: (str, Path)}`: for a parameter annotated `Path`, a function to the JSON value that is stored, and one back.
    ConfigError for an unknown name, a type that needs no hook, or "orjson" where that package is missing.
    """
    if name not in ("orjson", "msgspec"):
        raise ConfigError(f'codec: must be "orjson" or "msgspec", got {name!r}')
    return PayloadCodec(name, checked_hooks(types or {}))


def checked_hooks(types: Mapping[type, Hook]) -> Hooks:
    """*types* as `codec` takes them. ConfigError for those that are wrong."""
    if not isinstance(types, Mapping):
        raise ConfigError(f"codec(types): must be hooks by type, {{Path: (str, Path)}}, got {types!r:.100}")
    for kind, hook in types.items():
        if not isinstance(kind, type):
            raise ConfigError(f"codec(types): each key must be a class, got {kind!r}")
        if not isinstance(hook, tuple) or len(hook) != 2 or not all(callable(function) for function in hook):
            raise ConfigError(f"codec(types): {type_name(kind)}: must be two functions, to a JSON value and back, got {hook!r}")
        try:
            needs_hook = isinstance(mi.type_info(kind), mi.CustomType) and not is_pydantic(kind) and kind is not object
        except TypeError as error:
            raise ConfigError(f"codec(types): {type_name(kind)} cannot have a hook: {error}") from error
        if not needs_hook:
            raise ConfigError(f"codec(types): {type_name(kind)} is stored without a hook, which would never be called")
    return dict(types)


def _orjson_dumps(thorough: Encode) -> tuple[Encode, Encode]:
    """For any value, and for strings, whole numbers, booleans and null in objects, in three quarters of the time."""
    try:
        import orjson  # here, so that codec="msgspec" works where orjson is not installed
    except ImportError as error:
        raise ConfigError('codec="orjson" needs the package orjson: install it, or choose codec="msgspec"') from error
    dumps = orjson.dumps
    # To msgspec go classes: orjson leaves out fields named _x and adds attributes that are no fields; and times: orjson 3.13
    # writes time(0, 0, 0, 10_000) as 00:00:00.10000, ten times too much, without a word.
    options = orjson.OPT_PASSTHROUGH_SUBCLASS | orjson.OPT_PASSTHROUGH_DATACLASS | orjson.OPT_PASSTHROUGH_DATETIME

    def other(value: Any) -> orjson.Fragment:
        return orjson.Fragment(thorough(value))

    def encode(value: Any) -> bytes:
        return dumps(value, other, options)

    return encode, dumps
