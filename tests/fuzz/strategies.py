"""Inputs that nobody would send: noise, damaged samples, numbers at the edges of their types, texts with everything in them."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any

import msgspec
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

EDGES = (0, 1, -1, 2**31 - 1, 2**31, -(2**31), 2**32, 2**53 + 1, 2**63 - 1, 2**63, -(2**63), -(2**63) - 1, 2**64 - 1, 2**64)
"""Where integers change their size in some language."""

ODD_FLOATS = (0.0, -0.0, 1e-320, 1e308, -1e308, float("inf"), float("-inf"), float("nan"))

ODD_TEXTS = (
    "",
    " ",
    "\0",
    "a\0b",
    "\n",
    "\x1b[2J",
    "é",
    "😀",
    "\u202e",
    "\ufeff",
    "a" * 300,
    "'; drop table jobs; --",
    '"',
    "{x}",
    "%s",
)

noise = st.binary(max_size=120)
texts = st.sampled_from(ODD_TEXTS) | st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
wild_texts = texts | st.sampled_from(("\ud800", "a\udcffb"))
"""With halves of surrogate pairs too: what the command line makes of bytes that are no UTF-8."""

integers = st.sampled_from(EDGES) | st.integers(-(2**64), 2**64)
integers_64 = st.sampled_from([edge for edge in EDGES if -(2**63) <= edge < 2**64]) | st.integers(-(2**63), 2**64 - 1)
"""What MessagePack can hold."""
floats = st.sampled_from(ODD_FLOATS) | st.floats()
numbers = integers | floats
scalars = st.none() | st.booleans() | integers | floats | texts | st.binary(max_size=8)

packable = st.none() | st.booleans() | integers_64 | floats | texts | st.binary(max_size=8)

packed: SearchStrategy[Any] = st.recursive(
    packable, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=3), max_leaves=8
)
json_values: SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=10,
)

HUGE_HEADS = (
    b"\xdd\xff\xff\xff\xff",  # an array of four billion
    b"\xdf\xff\xff\xff\xff",  # an object
    b"\xc6\xff\xff\xff\xff",  # bytes
    b"\xdb\xff\xff\xff\xff",  # text
    b"\xc9\xff\xff\xff\xff\x01",  # an extension
    b"\x91" * 2_000,
    b"\x81\xa0" * 2_000,
)
"""MessagePack that promises much more than it holds."""

huge = st.builds(lambda head, rest: head + rest, st.sampled_from(HUGE_HEADS), st.binary(max_size=20))

_edits = st.lists(
    st.tuples(st.sampled_from("ficdt"), st.integers(0, 2**16), st.binary(min_size=1, max_size=5) | st.sampled_from(HUGE_HEADS)),
    min_size=1,
    max_size=4,
)


def damage(sample: bytes, edits: Sequence[tuple[str, int, bytes]]) -> bytes:
    """*sample* with bits flipped, bytes put in, cut out or doubled, or its end cut off."""
    data = bytearray(sample)
    for how, place, piece in edits:
        at = place % (len(data) + 1)
        if how == "f" and at < len(data):
            data[at] ^= piece[0] or 1
        elif how == "i":
            data[at:at] = piece
        elif how == "c":
            del data[at : at + len(piece)]
        elif how == "d":
            data[at:at] = data[at : at + 8]
        elif how == "t":
            del data[at:]
    return bytes(data)


_TOKENS = (*HUGE_HEADS, b"\xff", b"\0", b"null", b"[", b"{", b'"', b":", b"-1", b"1e999", b"\xc0", b"\x93", b"\xed\xa0\x80")


def bred(sample: bytes, rng: Random) -> bytes:
    """*sample* damaged in one to three places, as `damage` does: what Hypothesis would draw for ten times the time."""
    edits = [
        (
            rng.choice("ffficdt"),
            rng.randrange(2**16),
            rng.choice(_TOKENS) if rng.random() < 0.3 else rng.randbytes(1 + rng.randrange(3)),
        )
        for _ in range(rng.choice((1, 1, 2, 3)))
    ]
    return damage(sample, edits)


def damaged(samples: Sequence[bytes]) -> SearchStrategy[bytes]:
    """One of *samples*, damaged."""
    return st.builds(damage, st.sampled_from(samples), _edits)


def arrays(*fields: SearchStrategy[Any]) -> SearchStrategy[bytes]:
    """MessagePack of an array with these fields, now and then one of another type, too few of them or too many."""
    odd = st.none() | st.tuples(st.integers(0, len(fields)), packed)

    def build(values: tuple[Any, ...], other: tuple[int, Any] | None, length: int | None) -> bytes:
        array = list(values)
        if other is not None:
            array[other[0] : other[0] + 1] = [other[1]]
        return msgspec.msgpack.encode(array[:length])

    return st.builds(build, st.tuples(*fields), odd, st.none() | st.integers(0, len(fields)))
