"""The plain data that travels between the rooms: jobs, what is stored of them, and what became of them."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import Annotated, Final, Literal, NamedTuple, TypeAlias, overload

import msgspec

ENVELOPE_VERSION: Final = 1
"""Version of `Job`'s stored form. A job of a newer version is left for newer workers, never dead."""

MAX_PRIORITY = 9
"""Priorities go from 0, last, to 9, first."""

DEFAULT_PRIORITY = 5
DEFAULT_QUEUE = "default"
DEFAULT_MAX_ATTEMPTS = 20
"""Runs of one job before it is dead: about 4.5 days of backoff."""

DEFAULT_MAX_LOSSES = 3
"""Worker deaths before a job can be dead of them (DESIGN: only the one suffered alone counts as proof)."""

SUSPECT_LOSSES = 2
"""From this many losses on a job is run alone in its worker."""


MOST_COUNTED: Final = 2**31
"""Highest count that is read from an envelope; options stop at a million."""

Count: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=MOST_COUNTED)]
Limit: TypeAlias = Annotated[int, msgspec.Meta(ge=1, le=MOST_COUNTED)]
Seconds: TypeAlias = Annotated[float, msgspec.Meta(gt=0, le=1e10)]


class Failure(msgspec.Struct, array_like=True, frozen=True):
    """One attempt that failed, or one loss, as kept in a job's history."""

    at: float  #: seconds since the epoch, by the worker's clock
    attempt: int  #: 1-based; for a loss, the attempt it interrupted
    kind: str  #: "failed", "lost", "snoozed", "unknown", "undecodable", "discarded", "timeout"
    error: str  #: exception type, or how the worker died
    message: str  #: cut at a limit
    traceback: str  #: cut at a limit; "" for a loss without a stack
    worker: str  #: id of the worker


class Job(msgspec.Struct, array_like=True, gc=False):
    """One stored request to run a handler. The envelope is this struct as a MessagePack array (see `envelope`).

    The ranges in the annotations are checked when an envelope is decoded, in C.
    Fields are only ever added at the end; what is rare or optional goes into `headers`.
    """

    version: Literal[1]  #: `ENVELOPE_VERSION`; others are refused by the decoder, in C
    priority: Annotated[int, msgspec.Meta(ge=0, le=MAX_PRIORITY)]
    id: Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]  #: UUIDv7
    name: str
    queue: str
    payload: bytes  #: JSON, never decoded and encoded again on the way
    created_at: float  #: seconds since the epoch, by the producer's clock
    attempts: Count = 0  #: runs that ended
    losses: Count = 0  #: worker deaths while it was running
    max_attempts: Limit | None = None  #: runs in all, as the enqueue said; None: the handler's, the queue's or the default
    max_losses: Limit = DEFAULT_MAX_LOSSES
    timeout_s: Seconds | None = None  #: of one run, from the handler's start, as the enqueue said
    headers: dict[str, msgspec.Raw] | None = None  #: opaque extras, each value MessagePack
    history: list[Failure] | None = None  #: oldest first, bounded


class Entry(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """What a backend stores of one job: the envelope, opaque to it, and what it needs to put it in its place.

    Ready at once when neither `run_at` nor `delay_s` is set. Both are judged by the store's clock alone.
    """

    id: bytes  #: 16 bytes
    queue: str
    priority: int
    envelope: bytes
    run_at: float | None = None  #: seconds since the epoch; past means now
    delay_s: float = 0.0  #: seconds from the moment the store does the work; used when run_at is None


class Likes(Sequence[Entry]):
    """Entries that differ in id and envelope alone, as a producer of many makes them; an `Entry` of each only if asked for.

    An object per job and its sorting were a fifth of enqueueing in bulk. *id_at*: where in each envelope the 16 bytes of its
    id stand.
    """

    __slots__ = ("delay_s", "envelopes", "id_at", "priority", "queue", "run_at")

    def __init__(self, queue: str, priority: int, run_at: float | None, delay_s: float, id_at: int) -> None:
        self.queue = queue
        self.priority = priority
        self.run_at = run_at
        self.delay_s = delay_s
        self.id_at = id_at
        self.envelopes: list[bytes] = []

    def __len__(self) -> int:
        return len(self.envelopes)

    @overload
    def __getitem__(self, index: int) -> Entry: ...
    @overload
    def __getitem__(self, index: slice) -> list[Entry]: ...
    def __getitem__(self, index: int | slice) -> Entry | list[Entry]:
        found = self.envelopes[index]
        return [self._entry(envelope) for envelope in found] if isinstance(found, list) else self._entry(found)

    def _entry(self, envelope: bytes) -> Entry:
        id = envelope[self.id_at : self.id_at + 16]
        return Entry(id, self.queue, self.priority, envelope, self.run_at, self.delay_s)


class Kind(IntEnum):
    """Where a job goes when its run has ended and it is not done."""

    RETRY = 1  #: to the delayed jobs, due at the entry's run_at or delay_s (0: ready at once, at the tail)
    DEAD = 2  #: to the dead letters
    RELEASED = 3  #: back to the head of its queue and priority


class Outcome(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """What became of one job of a claim that is not simply done."""

    index: int  #: 0-based, in its claim
    kind: int  #: a `Kind`
    entry: Entry  #: what to store, envelope updated by the policy


class Settlement(msgspec.Struct, array_like=True, frozen=True):
    """What became of the jobs of one claim. It always ends that claim.

    A job that stands neither in `outcomes` nor in `unfinished` is done and forgotten. The `unfinished` ones move, in
    that order (new indexes 0, 1, …), to a new claim of the same worker with the id `into`.
    """

    claim: int  #: id of the claim: the number of the call that made it
    outcomes: list[Outcome] = []  #: jobs that failed or were released
    unfinished: list[int] = []  #: ascending 0-based indexes of jobs that still run
    into: int = 0  #: id for the new claim; a fresh number of the worker's counter. Unused without `unfinished`


class Exchanged(NamedTuple):
    """The store's answer to one exchange."""

    kept: list[bool]  #: per settlement, in order: was the claim still ours? False: nothing of it was done
    jobs: list[bytes]  #: envelopes now leased to the worker, by index, under the call's number; empty: nothing was ready
    more: bool = False  #: ready jobs of these queues were left behind
    next_due_s: float | None = None  #: seconds until the next delayed job of these queues is due, if the store knows one


class Adopted(NamedTuple):
    """Jobs of a dead worker, now leased to the adopter under the call's number."""

    jobs: list[bytes]
    more: bool  #: the dead worker has further claims: call again with the next number


class QueueStats(msgspec.Struct, frozen=True):
    """Counts of one queue, taken in one step of the store."""

    queue: str
    ready: int
    delayed: int
    dead: int


class Stats(msgspec.Struct, frozen=True):
    """Counts of a store, taken in one step."""

    queues: list[QueueStats]  #: by name; those that hold or held jobs
    running: int  #: claimed and not settled, all queues


class DeadLetter(NamedTuple):
    """A job that will not run again by itself."""

    id: bytes
    died_at: float  #: seconds since the epoch, by the store's clock
    envelope: bytes
