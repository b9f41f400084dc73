"""Who has run what: a file mapped by all workers, into which handlers write without a system call.

Four words of 8 bytes as head (the first: slots given out), then a slot of four words for each thread that ever ran a handler
(process id, jobs, first start, last end; times are CLOCK_MONOTONIC in ns), then a byte per job: how often it was run.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import threading
from pathlib import Path
from time import monotonic_ns

VARIABLE = "PEERS_TALLY"
"""The environment variable that names the file."""

SLOTS = 1024
WORDS = 4
MARKS_AT = 8 * WORDS * (SLOTS + 1)

PID, DONE, FIRST, LAST = range(WORDS)


class Tally:
    """The mapped file. The workers of one measurement share it with the runner."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("r+b")
        memory = memoryview(mmap.mmap(self._file.fileno(), 0))
        self.words = memory[:MARKS_AT].cast("Q")
        self.marks = memory[MARKS_AT:]

    @classmethod
    def create(cls, path: Path, jobs: int) -> Tally:
        """An empty one for *jobs* jobs."""
        with path.open("wb") as file:
            file.truncate(MARKS_AT + max(jobs, 1))
        return cls(path)

    def claim(self) -> memoryview:
        """A slot of one's own."""
        fcntl.lockf(self._file, fcntl.LOCK_EX)
        try:
            number = self.words[0] + 1
            if number > SLOTS:
                raise RuntimeError(f"more than {SLOTS} threads run handlers")
            self.words[0] = number
        finally:
            fcntl.lockf(self._file, fcntl.LOCK_UN)
        slot = self.words[number * WORDS : (number + 1) * WORDS]
        slot[FIRST] = monotonic_ns()
        slot[PID] = os.getpid()
        return slot

    def slots(self) -> list[list[int]]:
        """A copy of those in use."""
        used = self.words[0] + 1
        return [self.words[number * WORDS : (number + 1) * WORDS].tolist() for number in range(1, used)]

    def done(self) -> int:
        """Runs, doubled ones too."""
        return sum(self.words[WORDS + DONE : (self.words[0] + 1) * WORDS : WORDS])

    def lost(self) -> int:
        """Jobs that never ran."""
        return self.marks.tobytes().count(0)

    def doubled(self) -> int:
        """Runs beyond the first of each job."""
        return sum(count - 1 for count in self.marks.tobytes().replace(b"\0", b"").replace(b"\1", b""))


_slots: dict[int, memoryview] = {}
_lock = threading.Lock()
_tally: Tally | None = None


def _forget() -> None:
    """In a forked child, whose threads are others."""
    global _lock
    _slots.clear()
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_forget)


def begin() -> memoryview:
    """A handler starts; the slot of this thread."""
    global _tally
    slot = _slots.get(threading.get_ident())
    if slot is None:
        with _lock:
            if _tally is None:
                _tally = Tally(Path(os.environ[VARIABLE]))
            slot = _slots[threading.get_ident()] = _tally.claim()
    return slot


def end(value: int) -> None:
    """The handler of job *value* is done."""
    slot = begin()
    slot[DONE] += 1
    slot[LAST] = monotonic_ns()
    _tally.marks[value] += 1  # type: ignore[union-attr]
