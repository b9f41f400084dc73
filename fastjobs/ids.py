"""Job ids: UUIDv7 (RFC 9562), from a generator of this process.

48 bits of milliseconds, 12 bits random per process, 62 bits that count up from a random start: ids of one process sort in
the order they were made, and two processes clash only if their random starts lie within a few jobs of each other out of
2**61. Costs 0.3 µs where `uuid.uuid4` costs 5 (bench/test_micro.py). Reseeded after a fork.
"""

from __future__ import annotations

import itertools
import os
import struct
import uuid
from collections.abc import Callable
from typing import Final

from fastjobs.clock import wall

pack_id = struct.Struct(">QQ").pack


class Source:
    """The per-process state, seeded anew in a forked child. An id is `pack_id` of both halves."""

    __slots__ = ("next_low", "version_bits")

    def __init__(self) -> None:
        self.seed()

    def seed(self) -> None:
        """Begin somewhere else, at random."""
        seed = int.from_bytes(os.urandom(10), "big")
        self.version_bits = 0x7000 | (seed >> 62) & 0xFFF  #: to be put behind 48 bits of milliseconds
        self.next_low: Callable[[], int] = itertools.count((1 << 63) | seed & ((1 << 61) - 1)).__next__


source: Final = Source()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=source.seed)


def new_id(now: float | None = None) -> bytes:
    """A fresh job id, 16 bytes. *now*: `clock.wall`, where the caller has just looked. Safe to call from several threads."""
    return pack_id(int((wall() if now is None else now) * 1000) << 16 | source.version_bits, source.next_low())


def id_text(id: bytes) -> str:
    """*id* as people read it: ``0192a3b4-c5d6-7e8f-9a0b-1c2d3e4f5061``."""
    text = id.hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def parse_id(text: str) -> bytes:
    """The 16 bytes of an id given as text, with or without dashes. ValueError if it is none."""
    try:
        return uuid.UUID(text).bytes
    except ValueError:
        raise ValueError(f"{text!r} is not a job id: 32 hexadecimal digits, dashes allowed") from None


unpack_word: Final = struct.Struct(">8xQ").unpack
"""The last 8 bytes of an id, the part that counts, as one unsigned 64-bit number, never 0; in a tuple."""


def id_word(id: bytes) -> int:
    """That number."""
    (word,) = unpack_word(id)
    return int(word)


def fresh_name() -> str:
    """A name for a lease, worker or producer that nobody had before: 20 hexadecimal digits, random."""
    return os.urandom(10).hex()
