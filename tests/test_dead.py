"""The dead letters as users see them, on every kind of store."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta

import msgspec
import pytest

from fastjobs import clock
from fastjobs.backends.base import Store
from fastjobs.backends.memory import MemoryBackend
from fastjobs.dead import PAGE, DeadJob, DeadLetters, Handled
from fastjobs.envelope import CORRUPT_NAME, corrupt_job, decode_job, encode_job
from fastjobs.errors import ConfigError, NotFoundError, SerializationError
from fastjobs.ids import fresh_name, id_text, new_id
from fastjobs.model import ENVELOPE_VERSION, Entry, Failure, Job, Kind, Outcome, Settlement

FAILURE = Failure(1_700_000_000.0, 3, "failed", "ValueError", "no such\ncolour", "Traceback …", "worker-1")

serial = itertools.count()


def a_job(name: str = "resize", queue: str = "default", **fields: object) -> Job:
    """A job that has failed three times and lost two workers."""
    job = Job(ENVELOPE_VERSION, 7, new_id(), name, queue, b'{"path":"a.png"}', clock.wall(), 3, 2, 3, history=[FAILURE])
    return msgspec.structs.replace(job, **fields)


async def bury(store: Store, *jobs: Job) -> list[str]:
    """Put *jobs* among the dead letters the way a worker does. Their ids, in order."""
    worker = f"{fresh_name()}.1-0"
    queues = sorted({job.queue for job in jobs})
    for job in jobs:
        await store.push(fresh_name(), 1, 0, [Entry(job.id, job.queue, job.priority, encode_job(job))])
    await store.register(worker)
    n = next(serial)
    claimed = await store.exchange(worker, 2 * n + 1, [], queues, len(jobs))
    assert len(claimed.jobs) == len(jobs)
    outcomes = []
    for index, envelope in enumerate(claimed.jobs):
        job = decode_job(envelope)
        outcomes.append(Outcome(index, int(Kind.DEAD), Entry(job.id, job.queue, job.priority, envelope)))
    await store.exchange(worker, 2 * n + 2, [Settlement(2 * n + 1, outcomes)], (), 0)
    await store.retire(worker)
    return [id_text(job.id) for job in jobs]


async def bury_raw(store: Store, envelope: bytes) -> str:
    """Put bytes that are no job among the dead letters."""
    worker, id = f"{fresh_name()}.1-0", new_id()
    await store.push(fresh_name(), 1, 0, [Entry(id, "default", 5, envelope)])
    await store.register(worker)
    await store.exchange(worker, 1, [], ["default"], 1)
    await store.exchange(worker, 2, [Settlement(1, [Outcome(0, int(Kind.DEAD), Entry(id, "default", 5, envelope))])], (), 0)
    await store.retire(worker)
    return id_text(id)


def dead_of(store: Store) -> DeadLetters:
    return DeadLetters(lambda: store)


async def test_a_dead_letter_shows_payload_attempts_history_and_reason(any_store: Store) -> None:
    job = a_job()
    before = datetime.now(UTC) - timedelta(seconds=5)
    [id] = await bury(any_store, job)

    letter = await dead_of(any_store).get(id)

    assert (letter.id, letter.name, letter.queue, letter.priority) == (id, "resize", "default", 7)
    assert letter.payload == b'{"path":"a.png"}'
    assert letter.data == {"path": "a.png"}
    assert (letter.attempts, letter.losses, letter.max_attempts) == (3, 2, 3)
    assert letter.history == (FAILURE,)
    assert letter.reason == "ValueError: no such colour"
    assert before < letter.created_at <= letter.died_at + timedelta(seconds=5)
    assert letter.died_at.tzinfo is not None
    assert not letter.unreadable


async def test_the_list_is_newest_first_and_keeps_to_its_filters(any_store: Store) -> None:
    dead = dead_of(any_store)
    ids = [(await bury(any_store, a_job(name, queue)))[0] for name, queue in (("a", "q1"), ("b", "q1"), ("a", "q2"))]

    assert [letter.id for letter in await dead.list()] == ids[::-1]
    assert [letter.id for letter in await dead.list(queue="q1")] == [ids[1], ids[0]]
    assert [letter.id for letter in await dead.list(name="a")] == [ids[2], ids[0]]
    assert [letter.id for letter in await dead.list(name="a", queue="q2", since="1h")] == [ids[2]]
    assert [letter.id for letter in await dead.list(limit=2)] == ids[:0:-1]
    assert await dead.list(since=datetime.now(UTC) + timedelta(hours=1)) == []
    assert await dead.list(queue="nothing-here") == []


async def test_lists_longer_than_a_page_are_complete() -> None:
    store = MemoryBackend()
    ids = await bury(store, *(a_job("a" if number % 2 else "b") for number in range(2 * PAGE + 10)))
    dead = dead_of(store)

    assert {letter.id for letter in await dead.list(limit=1000)} == set(ids)
    assert len(await dead.list(name="a", limit=1000)) == PAGE + 5
    assert len(await dead.list(name="a", limit=PAGE + 1)) == PAGE + 1


async def test_a_requeued_letter_is_ready_again_with_counts_at_zero_and_its_history(any_store: Store) -> None:
    [id] = await bury(any_store, a_job())

    handled = await dead_of(any_store).requeue(id)

    assert handled.done == 1
    [envelope] = await any_store.peek("default", 10)
    again = decode_job(envelope)
    assert (id_text(again.id), again.attempts, again.losses) == (id, 0, 0)
    assert again.history == [FAILURE]
    assert again.payload == b'{"path":"a.png"}'
    assert await dead_of(any_store).list() == []


async def test_requeuing_and_deleting_tell_which_letters_were_gone(any_store: Store) -> None:
    dead = dead_of(any_store)
    first, second, third = await bury(any_store, a_job(), a_job(), a_job())
    nobody = id_text(new_id())

    assert await dead.requeue(first, nobody) == Handled(1, (nobody,))
    assert (await dead.requeue(first)).gone == (first,)
    deleted = await dead.delete(second, second, nobody)
    assert (deleted.done, deleted.gone) == (1, (second, nobody))
    assert [letter.id for letter in await dead.list()] == [third]


async def test_all_that_fit_the_filters_are_requeued_or_deleted_and_no_others(any_store: Store) -> None:
    dead = dead_of(any_store)
    await bury(any_store, a_job("a"), a_job("a"), a_job("b"), a_job("b", "mail"))

    assert (await dead.requeue_all(name="a")).done == 2
    assert (await dead.delete_all(queue="mail", since="1h")).done == 1
    assert [letter.name for letter in await dead.list()] == ["b"]
    assert (await dead.delete_all()).done == 1
    assert (await dead.requeue_all()).done == 0


async def test_requeuing_all_takes_more_than_a_page() -> None:
    store = MemoryBackend()
    await bury(store, *(a_job() for _ in range(2 * PAGE + 1)))

    assert (await dead_of(store).requeue_all()).done == 2 * PAGE + 1
    assert len(await store.peek("default", 1000)) == 2 * PAGE + 1


@pytest.mark.parametrize("envelope", [b"\xff\x00 no job", encode_job(corrupt_job(b"\xff\x00 no job", 1.0))])
async def test_what_cannot_be_read_is_listed_and_deleted_but_not_requeued(any_store: Store, envelope: bytes) -> None:
    dead = dead_of(any_store)
    id = await bury_raw(any_store, envelope)
    [good] = await bury(any_store, a_job())

    letter = await dead.get(id)
    assert letter.name == CORRUPT_NAME
    assert letter.payload == b"\xff\x00 no job"
    assert letter.reason == letter.unreadable != ""
    with pytest.raises(SerializationError, match=f"{id} cannot be requeued"):
        await dead.requeue(good, id)
    assert len(await dead.list()) == 2, "nothing is requeued when one of the ids cannot be"

    everything = await dead.requeue_all()
    assert (everything.done, everything.unreadable) == (1, (id,))
    assert (await dead.delete(id)).done == 1
    assert await dead.list() == []


async def test_a_job_of_a_newer_version_is_shown_but_not_requeued() -> None:
    store = MemoryBackend()
    id = await bury_raw(store, encode_job(a_job(version=ENVELOPE_VERSION + 1)))

    assert "version 2" in (await dead_of(store).get(id)).reason
    with pytest.raises(SerializationError, match="version 2"):
        await dead_of(store).requeue(id)


async def test_an_unknown_id_says_so_and_a_bad_one_is_refused() -> None:
    dead = dead_of(MemoryBackend())
    id = id_text(new_id())
    with pytest.raises(NotFoundError, match=id):
        await dead.get(id)
    with pytest.raises(ConfigError, match="'12' is not a job id"):
        await dead.get("12")
    with pytest.raises(ConfigError, match="since"):
        await dead.list(since="yesterday")
    with pytest.raises(ConfigError, match="no timezone"):
        await dead.list(since=datetime(2026, 1, 1))  # noqa: DTZ001
    with pytest.raises(ConfigError, match="limit"):
        await dead.list(limit=0)


async def test_times_beyond_the_calendar_hide_no_letter() -> None:
    store = MemoryBackend()
    [id] = await bury(store, a_job(created_at=1e300))
    assert (await dead_of(store).get(id)).created_at == datetime.fromtimestamp(0, UTC)


async def test_a_payload_that_is_no_json_says_so() -> None:
    store = MemoryBackend()
    [id] = await bury(store, a_job(payload=b"\xff{"))
    letter = await dead_of(store).get(id)
    assert letter.payload == b"\xff{"
    with pytest.raises(SerializationError, match="no JSON"):
        letter.data  # noqa: B018


def test_a_reason_is_one_short_line() -> None:
    def letter(*history: Failure) -> DeadJob:
        now = datetime.now(UTC)
        return DeadJob(
            id="", name="", queue="", priority=5, payload=b"", attempts=1, losses=0, max_attempts=None,
            created_at=now, died_at=now, history=history,
        )  # fmt: skip

    assert letter().reason == "no reason is known"
    assert letter(msgspec.structs.replace(FAILURE, message="")).reason == "ValueError"
    long = letter(FAILURE, msgspec.structs.replace(FAILURE, message="x" * 1000)).reason
    assert len(long) == 200
    assert long.endswith("…")
