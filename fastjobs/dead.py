"""The dead letters as users see them: look, send back to work, delete.

A dead letter is a job that will not run again by itself. It keeps its payload byte for byte and the history of its runs.
What nobody could read at all (a foreign write, a damaged envelope) stands here too; it can be shown and deleted, not requeued.
"""

from __future__ import annotations

import builtins
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import msgspec

from fastjobs import clock
from fastjobs.backends.base import BackendAdmin
from fastjobs.durations import Duration, duration_s, epoch_s
from fastjobs.envelope import CORRUPT_NAME, corrupt_job, decode_job, encode_job
from fastjobs.errors import ConfigError, NotFoundError, SerializationError
from fastjobs.ids import id_text, parse_id
from fastjobs.model import DeadLetter, Entry, Failure, Job
from fastjobs.options import check_int, check_name
from fastjobs.retry import requeued

PAGE: Final = 100
"""Dead letters asked of the store at once: with payloads at their limit of 1 MiB a page is 100 MiB, with usual ones 100 kB."""

LAST_S: Final = 253_402_300_800.0
"""The year 10,000 in seconds since the epoch: Python's calendar ends there."""

REASON_LENGTH: Final = 200
"""Characters of `DeadJob.reason`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadJob:
    """One dead letter."""

    id: str
    name: str  #: "(unreadable)" for bytes that are no job
    queue: str
    priority: int
    payload: bytes  #: as it was stored; of an unreadable job, all that is there of it
    attempts: int  #: runs that ended
    losses: int  #: workers that died while it ran
    max_attempts: int | None  #: runs in all, as its enqueue said; None: it said nothing
    created_at: datetime  #: by the producer's clock
    died_at: datetime  #: by the store's clock
    history: tuple[Failure, ...]  #: its failed runs, oldest first; the first and the latest 24 are kept
    unreadable: str = ""  #: why it cannot be read; "" for an ordinary job

    @property
    def data(self) -> Any:
        """The payload, decoded. SerializationError if it is no JSON."""
        try:
            return msgspec.json.decode(self.payload)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise SerializationError(f"the payload of {self.id} is no JSON: {error}") from error

    @property
    def reason(self) -> str:
        """Why it died, in one line: its last failure, at most 200 characters of it."""
        if self.unreadable:
            text = self.unreadable
        elif not self.history:
            return "no reason is known"
        else:
            last = self.history[-1]
            message = " ".join(last.message.split())
            text = f"{last.error}: {message}" if message else last.error
        return text if len(text) <= REASON_LENGTH else f"{text[: REASON_LENGTH - 1]}…"


@dataclass(frozen=True, slots=True)
class Handled:
    """What a requeue or delete did. Ids in the order given, or newest first."""

    done: int  #: dead letters that were requeued or deleted
    gone: tuple[str, ...] = ()  #: no dead letters, or none any more: somebody else was faster
    unreadable: tuple[str, ...] = ()  #: left where they are: what cannot be read cannot be run


class DeadLetters:
    """The dead letters of one store, as `jobs.dead`.

    *store* gives the store to ask, opened or not, of the running event loop. Every call raises StoreUnavailable when it
    cannot be reached; all may be repeated.
    """

    def __init__(self, store: Callable[[], BackendAdmin]) -> None:
        self._store = store

    async def list(
        self,
        *,
        queue: str | None = None,
        name: str | None = None,
        since: datetime | Duration | None = None,
        limit: int = 100,
    ) -> builtins.list[DeadJob]:
        """Up to *limit* dead letters, newest first.

        *since* is an aware datetime, or a duration back from now. Without *name* this costs what it returns; with it, all
        dead letters of the queue are looked through. ConfigError for a filter that cannot be one.
        """
        check_int(limit, "limit", 1, 10**9)
        found: list[DeadJob] = []
        async for page in self._pages(queue, name, since, limit if name is None else PAGE):
            found += map(_dead_job, page)
            if len(found) >= limit:
                return found[:limit]
        return found

    async def get(self, id: str) -> DeadJob:
        """The dead letter *id*. NotFoundError if there is none."""
        letter = await self._store().dead_get(_id_bytes(id))
        if letter is None:
            raise NotFoundError(f"no dead letter {id}: it never died, or was requeued or deleted")
        return _dead_job(letter)

    async def requeue(self, *ids: str) -> Handled:
        """Send dead letters back to work, attempts and losses counted from 0, history kept.

        SerializationError, and nothing done, if one of them is unreadable.
        """
        store, letters, gone = self._store(), [], []
        for id in map(_id_bytes, ids):
            letter = await store.dead_get(id)
            if letter is None:
                gone.append(id_text(id))
            else:
                letters.append(letter)
        for letter in letters:
            if why := _dead_job(letter).unreadable:
                raise SerializationError(f"{id_text(letter.id)} cannot be requeued: {why}")
        done = await _requeue(store, letters)
        return Handled(done.done, (*gone, *done.gone))

    async def requeue_all(
        self, *, queue: str | None = None, name: str | None = None, since: datetime | Duration | None = None
    ) -> Handled:
        """The same for all that stood there at the start and fit the filters of `list`; unreadable ones stay."""
        handled = Handled(0)
        async for page in self._pages(queue, name, since, PAGE):
            handled = _sum(handled, await _requeue(self._store(), page))
        return handled

    async def delete(self, *ids: str) -> Handled:
        """Delete dead letters for good."""
        return await _delete(self._store(), [_id_bytes(id) for id in ids])

    async def delete_all(
        self, *, queue: str | None = None, name: str | None = None, since: datetime | Duration | None = None
    ) -> Handled:
        """The same for all that stood there at the start and fit the filters of `list`."""
        handled = Handled(0)
        async for page in self._pages(queue, name, since, PAGE):
            handled = _sum(handled, await _delete(self._store(), [letter.id for letter in page]))
        return handled

    async def _pages(
        self, queue: str | None, name: str | None, since: datetime | Duration | None, size: int
    ) -> AsyncIterator[Sequence[DeadLetter]]:
        """What fits the filters, newest first. What dies meanwhile is newer than the cursor and does not come up."""
        oldest = _since_s(since)
        if queue is not None:
            check_name(queue, "queue")
        before: tuple[float, bytes] | None = None
        while page := await self._store().dead_list(queue, before, min(size, PAGE)):
            before = page[-1].died_at, page[-1].id
            recent = [letter for letter in page if letter.died_at >= oldest]
            fitting = [letter for letter in recent if name is None or _dead_job(letter).name == name]
            if fitting:
                yield fitting
            if len(recent) < len(page):
                return


async def _requeue(store: BackendAdmin, letters: Sequence[DeadLetter]) -> Handled:
    """Requeue what of *letters* can be read."""
    entries, unreadable = [], []
    for letter in letters:
        try:
            job = requeued(_readable(letter))
        except SerializationError:
            unreadable.append(id_text(letter.id))
        else:
            entries.append(Entry(letter.id, job.queue, job.priority, encode_job(job)))
    moved = await store.dead_requeue(entries) if entries else []
    gone = tuple(id_text(entry.id) for entry, was_dead in zip(entries, moved, strict=True) if not was_dead)
    return Handled(sum(moved), gone, tuple(unreadable))


async def _delete(store: BackendAdmin, ids: Sequence[bytes]) -> Handled:
    deleted = await store.dead_delete(ids) if ids else []
    return Handled(sum(deleted), tuple(id_text(id) for id, was_there in zip(ids, deleted, strict=True) if not was_there))


def _sum(one: Handled, other: Handled) -> Handled:
    return Handled(one.done + other.done, one.gone + other.gone, one.unreadable + other.unreadable)


def _readable(letter: DeadLetter) -> Job:
    """The job in *letter*. SerializationError if there is none to be run."""
    job = decode_job(letter.envelope)
    if job.name == CORRUPT_NAME:
        raise SerializationError(_no_job(job))
    return job


def _dead_job(letter: DeadLetter) -> DeadJob:
    unreadable = ""
    try:
        job = decode_job(letter.envelope)
        if job.name == CORRUPT_NAME:
            unreadable = _no_job(job)
    except SerializationError as error:
        job, unreadable = corrupt_job(letter.envelope, letter.died_at), str(error)
    return DeadJob(
        id=id_text(letter.id),
        name=job.name,
        queue=job.queue,
        priority=job.priority,
        payload=job.payload,
        attempts=job.attempts,
        losses=job.losses,
        max_attempts=job.max_attempts,
        created_at=_datetime(job.created_at),
        died_at=_datetime(letter.died_at),
        history=tuple(job.history or ()),
        unreadable=unreadable,
    )


def _no_job(job: Job) -> str:
    return f"its {len(job.payload):,} bytes are no job that any worker could read"


def _datetime(seconds: float) -> datetime:
    """*seconds* since the epoch; a time that no calendar has becomes the epoch, as one odd letter must not hide the others."""
    return clock.as_datetime(seconds if 0 <= seconds < LAST_S else 0.0)


def _id_bytes(id: str) -> bytes:
    try:
        return parse_id(id)
    except ValueError as error:
        raise ConfigError(str(error)) from None


def _since_s(since: datetime | Duration | None) -> float:
    """*since* as seconds since the epoch; minus infinity for None."""
    if since is None:
        return float("-inf")
    if isinstance(since, datetime):
        return epoch_s(since, "since")
    return clock.wall() - duration_s(since, "since")
