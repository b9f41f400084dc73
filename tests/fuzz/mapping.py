"""Words of the shared mapping after a handler's code, or another version, has written what it likes there."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager

from hypothesis import strategies as st

from fastjobs.adoption import death_in
from fastjobs.progress import Tally, Totals
from fastjobs.rescue import _is_held
from fastjobs.slots import LAYOUT, Head, Slots, State, Word, memory_file
from tests.fuzz.strategies import EDGES
from tests.fuzz.surface import Check, Surface, plain

RUNNERS = 3

_word = st.sampled_from([edge for edge in EDGES if 0 <= edge < 2**64]) | st.integers(0, 2**64 - 1) | st.integers(0, 200)
_place = st.sampled_from([int(word) for word in Word]) | st.integers(0, 700)
SLOT_WORDS = 700


def _written(writes: list[tuple[int, int]]) -> bytes:
    words = bytearray(8 * SLOT_WORDS)
    for place, word in writes:
        struct.pack_into("Q", words, 8 * (place % SLOT_WORDS), word)
    return bytes(words)


contents = st.lists(st.tuples(_place, _word), max_size=6).map(_written)


@contextmanager
def _slots() -> Iterator[Check]:
    slots = Slots.create(2, RUNNERS)
    yield lambda given: judge(given, slots)


def judge(given: bytes, slots: Slots) -> bool:
    """Whoever looks at the slot finds something to go on with."""
    slot = slots.slots[0]
    slot.clear()
    slot.words[:] = memoryview(given[: 8 * len(slot.words)].ljust(8 * len(slot.words), b"\0")).cast("Q")
    assert slot.state in State
    open_claims = slot.open_claims()
    assert open_claims is None or len(open_claims) <= slot.words[Word.OPEN]
    assert len(slot.started()) <= RUNNERS
    assert slot.runs() or not slot.started()
    assert len(slot.stack) <= 4_096
    _is_held(slot, 1)
    assert death_in(slot, "lease").message
    progress = Tally(slots, 0.0, Totals()).progress(1.0, 1, draining=False, final=False)
    assert progress.done >= 0
    return slot.words[Word.STATE] <= State.DEAD


_head = st.fixed_dictionaries(
    {}, optional={Head.LAYOUT: st.just(LAYOUT) | _word, Head.SLOTS: _word, Head.RUNNERS: _word, Head.READY: _word}
)
mappings = st.tuples(_head, st.sampled_from((0, 0, 1, -1, 8, -8, -3_000, 4_096)))


def judge_mapping(given: tuple[dict[int, int], int]) -> bool:
    """A mapping that is taken over is one of ours; any other is refused before anything is made of its numbers."""
    head, longer = given
    ours = Slots.create(2, RUNNERS)
    fd = memory_file("fuzz")
    try:
        for word, value in head.items():
            ours.head[word] = value
        size = os.fstat(ours.fd).st_size
        os.ftruncate(fd, size + longer)
        os.pwrite(fd, os.pread(ours.fd, min(size, size + longer), 0), 0)
        try:
            taken = Slots.attach(fd)
        except ValueError:
            os.close(fd)
            return False
        assert 8 * (Head.COUNT + sum(len(slot.words) for slot in taken)) == size + longer
        taken.close()
        return True
    finally:
        ours.close()


SURFACES = (
    Surface(name="slots", inputs=contents, opened=_slots, weight=10, offspring=9),
    Surface(name="mappings", inputs=mappings, opened=plain(judge_mapping), weight=1),
)
