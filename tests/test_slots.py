"""The shared mapping: what one process writes another reads whole."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from fastjobs.ids import id_word, new_id
from fastjobs.slots import NUMBER_MASK, OPEN_CLAIMS, Head, Slots, State, Word, worker_id


@pytest.fixture
def slots() -> Slots:
    made = Slots.create(4, 10)
    yield made  # type: ignore[misc]
    made.close()


def test_fresh_slots_are_free_and_say_nothing(slots: Slots) -> None:
    assert len(list(slots)) == 4
    for slot in slots:
        assert slot.state is State.FREE
        assert slot.open_claims() == set()
        assert slot.started() == {}


def test_a_slot_writes_no_word_of_another(slots: Slots) -> None:
    first, second, third = slots.slots[:3]
    for index in range(len(second.words)):
        second.words[index] = NUMBER_MASK
    assert set(first.words) == set(third.words) == {0}
    assert slots.head[Head.COUNT - 1] == 0
    second.clear()
    assert set(second.words) == {0}


def test_a_word_holds_every_64_bit_number(slots: Slots) -> None:
    words = slots.slots[3].words
    for number in (1, 2**32, 2**63, NUMBER_MASK):
        words[Word.TICK_NS] = number
        assert words[Word.TICK_NS] == number


def test_started_jobs_are_read_back_with_their_time_limit_marks(slots: Slots) -> None:
    slot = slots.slots[1]
    one, other = id_word(new_id()), id_word(new_id())
    assert not slot.runs()
    slot.words[Word.FIRST_RUNNER + 2 * 9] = other
    assert slot.runs()
    slot.words[Word.FIRST_RUNNER] = one
    slot.words[Word.FIRST_RUNNER + 2 * 9 + 1] = 1
    assert slot.started() == {one: False, other: True}


def test_open_claims_are_read_back(slots: Slots) -> None:
    slot = slots.slots[0]
    slot.publish_claims([3, 9, 2**40])
    assert slot.open_claims() == {3, 9, 2**40}
    slot.publish_claims([9])
    assert slot.open_claims() == {9}
    slot.publish_claims([])
    assert slot.open_claims() == set()


def test_more_claims_than_fit_are_not_known_rather_than_known_wrongly(slots: Slots) -> None:
    slot = slots.slots[0]
    slot.publish_claims(list(range(1, OPEN_CLAIMS + 1)))
    assert slot.open_claims() == set(range(1, OPEN_CLAIMS + 1))
    slot.publish_claims(list(range(1, OPEN_CLAIMS + 2)))
    assert slot.open_claims() is None
    assert slot.started() == {}


def test_a_total_sums_over_all_slots(slots: Slots) -> None:
    for number, slot in enumerate(slots):
        slot.words[Word.DONE] = number
    assert slots.total(Word.DONE) == 6


def test_the_id_of_a_worker_says_lease_number_and_incarnation(slots: Slots) -> None:
    slot = slots.slots[2]
    slot.words[Word.NUMBER], slot.words[Word.INCARNATION] = 7, 1
    assert slot.worker_id("lease") == worker_id("lease", 7, 1)
    assert slot.worker_id("lease").rpartition(".")[0] == "lease"
    assert worker_id("lease", 7, 0) != worker_id("lease", 7, 1)


FORKING = """
import os
from fastjobs.slots import Slots, State, Word
slots = Slots.create(2, 3)
if os.fork() == 0:
    slot = slots.slots[1]
    slot.words[Word.PID] = os.getpid()
    slot.publish_claims([5, 6])
    slot.words[Word.FIRST_RUNNER] = 2**64 - 1
    slot.state = State.RUNNING
    os._exit(0)
pid, _ = os.wait()
slot = slots.slots[1]
assert slot.words[Word.PID] == pid
assert slot.state is State.RUNNING
assert slot.open_claims() == {5, 6}
assert slot.started() == {2**64 - 1: False}
assert slots.slots[0].state is State.FREE
"""


def test_what_a_forked_child_writes_its_parent_reads() -> None:
    subprocess.run([sys.executable, "-c", FORKING], check=True, timeout=30)


TEARING = """
import os
from fastjobs.slots import Slots, Word
slots = Slots.create(1, 1)
words = slots.slots[0].words
pid = os.fork()
if pid == 0:
    while True:
        words[Word.DONE] = 0
        words[Word.DONE] = 2**64 - 1
seen = {words[Word.DONE] for _ in range(300_000)}
os.kill(pid, 9)
os.wait()
assert seen <= {0, 2**64 - 1}, seen
"""


def test_no_word_is_ever_read_half_written() -> None:
    subprocess.run([sys.executable, "-c", TEARING], check=True, timeout=60)


def test_a_mapping_is_taken_over_by_its_descriptor(slots: Slots) -> None:
    slots.slots[3].words[Word.DONE] = 42
    other = Slots.attach(os.dup(slots.fd))
    try:
        assert other.slots[3].words[Word.DONE] == 42
        other.slots[3].words[Word.DONE] = 43
        assert slots.slots[3].words[Word.DONE] == 43
    finally:
        other.close()


def test_a_mapping_of_another_layout_is_refused() -> None:
    slots = Slots.create(1, 1)
    slots.head[Head.LAYOUT] += 1
    copy = os.dup(slots.fd)
    slots.close()
    with pytest.raises(ValueError, match="another layout"):
        Slots.attach(copy)
    os.close(copy)


def test_a_closed_mapping_leaves_no_descriptor_behind() -> None:
    before = len(os.listdir("/dev/fd"))
    for _ in range(10):
        Slots.create(8, 100).close()
    assert len(os.listdir("/dev/fd")) == before
