"""The payload of one handler: written, checked and read, with errors that name the handler and the field."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from fastjobs.codec import PayloadCodec
from fastjobs.errors import SerializationError
from fastjobs.payload_errors import decode_error
from fastjobs.payload_types import Traits
from fastjobs.payload_values import (
    ROOT,
    check_arrival,
    check_depth,
    check_nothing_dropped,
    check_sendable,
    key_path,
    too_deep,
)

_JSON: Final = (str, int, float, bool, type(None), list, dict)


class Payload:
    """Writes, checks and reads the payloads of one handler. Every SerializationError leaves with the handler's name."""

    __slots__ = ("_codec", "_name", "_takes", "dumps", "dumps_plain", "read", "root", "traits")

    def __init__(
        self, name: str, codec: PayloadCodec, kind: Any, takes: tuple[str, ...] | None, traits: dict[str, Traits]
    ) -> None:
        self._name = name
        self._codec = codec
        self._takes = takes  #: parameters, or None if the payload is one value
        self.traits = traits  #: by parameter, "" for the one value
        self.dumps, self.dumps_plain = codec.dumps, codec.dumps_plain
        self.read = codec.decoder(kind)  #: raises msgspec's errors

    @property
    def bounded(self) -> bool:
        """Whether no payload can be nested deeper than its types."""
        return all(traits.bounded for traits in self.traits.values())

    def named(self, error: SerializationError) -> SerializationError:
        """*error* with the handler and field in its message."""
        field = error.path.removeprefix(ROOT).removeprefix(".")
        takes = ""
        if str(error) == "unknown field" and self._takes is not None and "." not in field:
            takes = f"; {self._name} takes {', '.join(self._takes) or 'no arguments'}"
        return SerializationError(f"{self._name}{f'({field})' if field else ''}: {error}{takes}", path=error.path)

    def encode(self, value: Any) -> bytes:
        """*value* as JSON, after the quick way failed or where speed does not matter."""
        try:
            return self._codec.encode_unchecked(value)
        except SerializationError as error:
            raise self.named(error) from error.__cause__

    def decode(self, payload: bytes) -> Any:
        """What `call` takes. SerializationError if *payload* does not fit."""
        try:
            return self.read(payload)
        except Exception as error:
            raise self.named(decode_error(error, payload, self.read)) from error

    def explain(self, error: Exception, sent: Any) -> SerializationError:
        """Why the decoder refused what was *sent*."""
        return self.named(decode_error(error, self._codec.encode_unchecked(sent), self.read, sent))

    def check_depth(self, payload: bytes) -> None:
        """SerializationError if *payload* is nested too deeply."""
        try:
            check_depth(payload)
        except SerializationError as error:
            raise self.named(error) from error.__cause__

    def compare(self, sent: Mapping[str, Any], arrived: Any) -> None:
        """SerializationError if an argument *sent* has *arrived* as something else."""
        for name, value in sent.items():
            self.compare_value(value, getattr(arrived, name), f"{ROOT}.{name}")

    def compare_value(self, sent: Any, arrived: Any, path: str = ROOT) -> None:
        """As `compare`, for one value at *path*."""
        try:
            check_arrival(sent, arrived, path)
        except SerializationError as error:
            raise self.named(error) from None
        except RecursionError as error:
            raise self.named(too_deep()) from error

    def encode_checked(self, sent: Any, fields: Mapping[str, Any] | None) -> bytes:
        """Data given by name, in JSON's types or in Python's: the payload, checked whatever the handler's options say.

        *fields*: the arguments in *sent*; None if it is one value.
        """
        payload = self.encode(sent)
        self.check_depth(payload)
        try:
            arrived = self.read(payload)
        except Exception as error:
            raise self.explain(error, sent) from error
        if fields is None:
            self._compare_loosely(sent, arrived, ROOT)
        else:
            for name, value in fields.items():
                self._compare_loosely(value, getattr(arrived, name), key_path(ROOT, name))
        return payload

    def _compare_loosely(self, sent: Any, arrived: Any, path: str) -> None:
        """JSON's types may become others on the way (a str a datetime); a Python value must arrive as it is."""
        if type(sent) not in _JSON:
            self.compare_value(sent, arrived, path)
            return
        try:
            check_sendable(sent, path)
            check_sendable(arrived, path)
            check_nothing_dropped(sent, arrived, path)
        except SerializationError as error:
            raise self.named(error) from error.__cause__
