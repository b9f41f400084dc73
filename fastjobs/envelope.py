"""Job ↔ envelope: one job's stored bytes.

A MessagePack array whose first two elements are the format's version and the priority. The payload travels in it as raw
bytes and is never decoded on the way. Encoding costs about 0.4 µs, decoding 0.6 (bench/test_micro.py).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Final

import msgspec

from fastjobs.errors import SerializationError
from fastjobs.ids import new_id
from fastjobs.model import DEFAULT_PRIORITY, DEFAULT_QUEUE, ENVELOPE_VERSION, MAX_PRIORITY, Entry, Job

encode_job: Callable[[Job], bytes] = msgspec.msgpack.Encoder().encode
_decode: Callable[[bytes], Job] = msgspec.msgpack.Decoder(Job).decode

CORRUPT_NAME = "(unreadable)"
"""Name of the dead letter that keeps the bytes of an envelope nobody can read."""


class NewerEnvelope(SerializationError):
    """An envelope of a later version: a newer worker can run it, this one must leave it alone."""


def decode_job(envelope: bytes) -> Job:
    """The job in *envelope*. NewerEnvelope if a later version wrote it, SerializationError if it cannot be read."""
    try:
        job = _decode(envelope)
    except _UNREADABLE as error:
        version = _version_of(envelope)  # a later one may have changed the fields behind it
        if version <= ENVELOPE_VERSION:
            raise SerializationError(f"unreadable envelope of {len(envelope)} bytes: {error}") from error
    else:
        version = job.version
        if version == ENVELOPE_VERSION:
            return job
    if version > ENVELOPE_VERSION:
        raise NewerEnvelope(f"envelope of version {version}; this worker reads up to {ENVELOPE_VERSION}")
    raise SerializationError(f"envelope of unknown version {version}")


class _Version(msgspec.Struct, array_like=True, gc=False):
    """The first field of an envelope of any version."""

    version: int


class Routing(msgspec.Struct, array_like=True, gc=False):
    """The fields of an envelope that every version keeps in their places: where the job belongs."""

    version: int
    priority: Annotated[int, msgspec.Meta(ge=0, le=MAX_PRIORITY)]
    id: Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]
    name: str
    queue: str


_decode_version: Callable[[bytes], _Version] = msgspec.msgpack.Decoder(_Version).decode
_decode_routing: Callable[[bytes], Routing] = msgspec.msgpack.Decoder(Routing).decode

_UNREADABLE: Final = (msgspec.DecodeError, ValueError, RecursionError)
"""What msgspec raises; the ValueError is for text that is not UTF-8."""


def _version_of(envelope: bytes) -> int:
    """The version of an envelope whose other fields cannot be read; 0 if it has none."""
    try:
        return _decode_version(envelope).version
    except _UNREADABLE:
        return 0


def newer_entry(envelope: bytes, delay_s: float) -> Entry:
    """An envelope of a later version as it goes back to the store, byte for byte, due in *delay_s* seconds.

    SerializationError if not even its routing can be read.
    """
    try:
        routing = _decode_routing(envelope)
    except _UNREADABLE as error:
        raise SerializationError(f"unreadable envelope of {len(envelope)} bytes: {error}") from error
    return Entry(routing.id, routing.queue, routing.priority, envelope, None, delay_s)


def corrupt_job(envelope: bytes, now: float) -> Job:
    """A job that keeps an unreadable *envelope* as its payload, for the dead letters. *now*: seconds since the epoch."""
    return Job(ENVELOPE_VERSION, DEFAULT_PRIORITY, new_id(), CORRUPT_NAME, DEFAULT_QUEUE, bytes(envelope), now)


def header(job: Job, key: str, kind: type[Any]) -> Any:
    """The header *key* decoded as *kind*, or None if the job has none or one that is no *kind*."""
    raw = job.headers.get(key) if job.headers else None
    if raw is None:
        return None
    try:
        return msgspec.msgpack.decode(raw, type=kind)
    except _UNREADABLE:
        return None


def with_header(job: Job, key: str, value: object) -> dict[str, msgspec.Raw]:
    """The job's headers with *key* set to *value*; the job itself is unchanged."""
    return {**(job.headers or {}), key: msgspec.Raw(msgspec.msgpack.encode(value))}
