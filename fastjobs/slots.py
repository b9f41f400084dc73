"""The shared mapping: what workers, supervisor and maintenance know of each other without a message.

One mapping of 64-bit words, made before the forks: a header and twice as many slots as workers (a dead worker's slot is
used again only when maintenance has taken over its jobs). Every word has one writer at a time and is written whole, through
`memoryview.cast("Q")`: `struct.pack_into` writes byte by byte, and 9 % of cross-process reads were torn. Workers write without
locks; maintenance, the supervisor and the progress line read.
"""

from __future__ import annotations

import math
import mmap
import os
import tempfile
from collections.abc import Iterator
from enum import IntEnum

from fastjobs.ids import fresh_name

LAYOUT = 0x66_6A_00_04
"""Magic and version of the layout, checked when a re-executed supervisor takes its mapping over."""

OPEN_CLAIMS = 126
"""Claims a worker may publish as open; it holds a handful (current, prefetched, settling, and splits)."""

STACK_BYTES = 4096
"""Of a silent worker's stacks kept in its slot, for the history of the jobs it dies with."""


class Head(IntEnum):
    """Words of the header."""

    LAYOUT = 0
    SLOTS = 1
    RUNNERS = 2  #: started-job words per slot
    BEAT_NS = 3  #: maintenance: monotonic time of its last successful renewal
    BURST_DONE = 4  #: maintenance: nothing ready and nothing in flight
    DELAYED_LEFT = 5  #: maintenance: delayed jobs at the last look, plus 1; 0 = not known
    READY = 6  #: maintenance: ready jobs at the last look, plus 1; 0 = not known
    DEAD_TOTAL = 7  #: jobs that maintenance itself declared dead
    STORE_DOWN = 8  #: maintenance: 1 while the store cannot be reached
    RETRIED_TOTAL = 9  #: jobs that maintenance itself gave back for another attempt
    RELEASED_TOTAL = 10  #: jobs that maintenance itself gave back to the head of their queues
    ALIVE_NS = 11  #: maintenance: monotonic time its loop last turned, the store away or not
    ELSEWHERE = 12  #: maintenance: ready and delayed jobs of queues not served here, plus 1; 0 = not known
    COUNT = 16


class State(IntEnum):
    """Of a slot."""

    FREE = 0  #: nobody's; set by maintenance when a dead worker's jobs are in good hands
    STARTING = 1
    RUNNING = 2
    DRAINING = 3  #: stopping: finishes what runs, claims nothing
    DEAD = 4  #: reaped by the supervisor; maintenance adopts its jobs next


class Word(IntEnum):
    """Words of one slot, before its claims and started jobs."""

    PID = 0
    NUMBER = 1  #: of the worker: its id is <lease>.<number>-<incarnation>
    INCARNATION = 2  #: written by the worker: raised when the store has forgotten it and it registers anew
    STATE = 3
    EXIT_STATUS = 4  #: as os.wait4 gave it, written before DEAD
    MAX_RSS_KIB = 5  #: peak resident memory, as os.wait4 gave it
    TICK_NS = 6  #: worker: monotonic time its loop last turned
    CLAIMED = 7
    DONE = 8  #: settled as such, like the next three
    RETRIED = 9
    DIED = 10
    RELEASED = 11
    RUNNING = 12  #: handlers running now
    HELD = 13  #: claimed and not yet started
    SILENT_MS = 14  #: supervisor: it was killed because its loop had not turned for so long; 0 = not for that
    CODE = 15  #: generation of the code it runs, raised by each reload
    TIMED_OUT = 16  #: 1: a job of it outlived its time limit by 10 s; it drains and is replaced
    DRAINED = 17  #: 1: the supervisor told it to stop: what it leaves behind counts no loss
    CALL = 18  #: number of the exchange in flight, set before it is sent and cleared after its claim is published; 0 = none
    ENDED = 19  #: 1: jobs have ended that the store still counts as this worker's
    OPEN = 20  #: number of words used in the claims below
    FIRST_CLAIM = 21
    FIRST_RUNNER = 21 + OPEN_CLAIMS  #: two words a runner: the started job's `ids.id_word`, and 1 if it outlived its time limit


NUMBER_MASK = (1 << 64) - 1


class Slot:
    """One worker's words. `words` is its part of the mapping; index it with `Word`."""

    __slots__ = ("index", "runners", "words")

    def __init__(self, index: int, words: memoryview, runners: int) -> None:
        self.index = index
        self.words = words
        self.runners = runners

    def clear(self) -> None:
        """All words to 0, the state last: whoever sees FREE may write the others."""
        words = self.words
        words[: Word.STATE] = memoryview(bytes(8 * Word.STATE)).cast("Q")
        words[Word.STATE + 1 :] = memoryview(bytes(8 * (len(words) - Word.STATE - 1))).cast("Q")
        words[Word.STATE] = State.FREE

    @property
    def state(self) -> State:
        word = self.words[Word.STATE]
        return State(word) if word <= State.DEAD else State.RUNNING  # handlers that write to memory at random hit this one too

    @state.setter
    def state(self, state: State) -> None:
        self.words[Word.STATE] = state

    def worker_id(self, lease: str) -> str:
        """Id of the worker in this slot."""
        return worker_id(lease, self.words[Word.NUMBER], self.words[Word.INCARNATION])

    def publish_claims(self, claims: list[int]) -> None:
        """Write the ids of the open claims; more than `OPEN_CLAIMS` and the count says so by being higher."""
        words = self.words
        for offset, claim in enumerate(claims[:OPEN_CLAIMS]):
            words[Word.FIRST_CLAIM + offset] = claim
        words[Word.OPEN] = len(claims)

    def open_claims(self) -> set[int] | None:
        """The published open claims; None when there were too many to publish."""
        count = self.words[Word.OPEN]
        if count > OPEN_CLAIMS:
            return None
        return set(self.words[Word.FIRST_CLAIM : Word.FIRST_CLAIM + count])

    def started(self) -> dict[int, bool]:
        """Jobs whose handler had started and not ended, by `ids.id_word`; True if the job had outlived its time limit."""
        first = int(Word.FIRST_RUNNER)
        found = {}
        for runner in range(self.runners):
            word = self.words[first + 2 * runner]
            if word:
                found[word] = bool(self.words[first + 2 * runner + 1])
        return found

    def runs(self) -> bool:
        """Whether any handler has started and not ended."""
        first = int(Word.FIRST_RUNNER)
        return any(self.words[first : first + 2 * self.runners : 2])

    @property
    def stack(self) -> str:
        """What the worker's stacks were before it was killed; "" if nobody took them."""
        text = self.words[self._first_stack + 1 :].tobytes()[: self.words[self._first_stack]]
        return text.decode("utf-8", "replace")

    @stack.setter
    def stack(self, text: str) -> None:
        encoded = text.encode("utf-8", "replace")[:STACK_BYTES]
        self.words[self._first_stack + 1 :] = memoryview(encoded.ljust(STACK_BYTES, b"\0")).cast("Q")
        self.words[self._first_stack] = len(encoded)

    @property
    def _first_stack(self) -> int:
        return Word.FIRST_RUNNER + 2 * self.runners


def lease_name(ttl_s: float) -> str:
    """A fresh lease that others may take to have ended when it was not renewed for *ttl_s* seconds. The name says so itself:
    fleets with other times to live must not judge it by theirs."""
    return f"{fresh_name()}-{math.ceil(ttl_s * 1000)}"


def lease_ttl_s(lease: str, default_s: float) -> float:
    """The time to live that the name of *lease* says; *default_s* if it says none."""
    _, dash, millis = lease.rpartition("-")
    return int(millis) / 1000 if dash and millis.isdecimal() else default_s


def worker_id(lease: str, number: int, incarnation: int) -> str:
    """The id that a worker has in the store."""
    return f"{lease}.{number}-{incarnation}"


class Slots:
    """The whole mapping. `Slots.create` makes one, `Slots.attach` takes one over by its file descriptor."""

    def __init__(self, fd: int, mapping: mmap.mmap) -> None:
        self.fd = fd
        self._mapping = mapping
        self.head = memoryview(mapping).cast("Q")
        count, runners = self.head[Head.SLOTS], self.head[Head.RUNNERS]
        size = _slot_words(runners)
        self.slots = [
            Slot(index, self.head[Head.COUNT + index * size : Head.COUNT + (index + 1) * size], runners)
            for index in range(count)
        ]

    @classmethod
    def create(cls, slots: int, runners: int) -> Slots:
        """A fresh mapping of *slots* slots with *runners* started-job words each, all free."""
        size = 8 * (Head.COUNT + slots * _slot_words(runners))
        fd = memory_file("fastjobs-slots")
        os.ftruncate(fd, size)
        mapping = mmap.mmap(fd, size)
        head = memoryview(mapping).cast("Q")
        head[Head.LAYOUT], head[Head.SLOTS], head[Head.RUNNERS] = LAYOUT, slots, runners
        head.release()
        return cls(fd, mapping)

    @classmethod
    def attach(cls, fd: int) -> Slots:
        """The mapping behind *fd*. ValueError if its layout is another version's, or its size is not the one it says."""
        mapping = mmap.mmap(fd, os.fstat(fd).st_size)
        with memoryview(mapping) as view, view[: len(view) // 8 * 8].cast("Q") as words:
            fits = len(words) > Head.COUNT and words[Head.LAYOUT] == LAYOUT
            fits = fits and len(view) == 8 * (Head.COUNT + words[Head.SLOTS] * _slot_words(words[Head.RUNNERS]))
        if not fits:
            mapping.close()
            raise ValueError("the shared mapping has another layout")
        return cls(fd, mapping)

    def __iter__(self) -> Iterator[Slot]:
        return iter(self.slots)

    def total(self, word: Word) -> int:
        """Sum of *word* over all slots."""
        return sum(slot.words[word] for slot in self.slots)

    def close(self) -> None:
        """Unmap and close. Views of slots held elsewhere keep the memory alive until they go."""
        for slot in self.slots:
            slot.words.release()
        self.head.release()
        self._mapping.close()
        os.close(self.fd)


def _slot_words(runners: int) -> int:
    return Word.FIRST_RUNNER + 2 * runners + 1 + STACK_BYTES // 8


def memory_file(name: str) -> int:
    """An unnamed file in memory, *name* for tools only, not inherited across exec unless made so."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create(name, os.MFD_CLOEXEC)
    fd, path = tempfile.mkstemp(prefix="fastjobs-")  # macOS has no memfd
    os.unlink(path)
    return fd
