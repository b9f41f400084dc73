"""How much, how far and how odd: each limit on every store, at its edge and one step beyond."""

from __future__ import annotations

import asyncio
import gc
import tracemalloc
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from fastjobs import Discard, JobQueue
from fastjobs.backends.base import Store
from fastjobs.durations import LONGEST_S
from fastjobs.envelope import decode_job, encode_job
from fastjobs.errors import ConfigError, SerializationError
from fastjobs.execution import MESSAGE_LIMIT, TRACEBACK_LIMIT, failure_of
from fastjobs.model import Entry, Settlement
from tests.contract.kit import HOUR, job_id, worker
from tests.fuzz.strategies import EDGES, HUGE_HEADS
from tests.processes.driver import Supervised
from tests.test_execution import a_job
from tests.working import at_work, counts, dead_jobs, happens, left, soon

MIB = 1 << 20


async def test_a_payload_of_a_mebibyte_runs_and_one_byte_more_is_refused(any_store: Store) -> None:
    jobs, arrived = JobQueue(any_store), asyncio.Event()

    @jobs.job
    async def keep(text: str) -> None:
        assert text == "x" * size
        arrived.set()

    size = MIB - len('{"text":""}')
    with pytest.raises(SerializationError, match="1,048,576"):
        await keep.enqueue("x" * (size + 1))
    assert await left(any_store) == 0
    await keep.enqueue("x" * size)
    async with at_work(jobs, any_store):
        await happens(arrived)
    assert (await left(any_store), await dead_jobs(any_store)) == (0, [])
    await jobs.close()


ONE_OF_EACH = pytest.mark.parametrize("store_kind", ["memory", "redis", "postgres"])
"""For what takes seconds."""


@ONE_OF_EACH
async def test_a_hundred_thousand_jobs_due_at_one_second_all_run_once(any_store: Store) -> None:
    count, chunk = 100_000, 5_000
    due = (await _store_time(any_store)) + HOUR
    for first in range(0, count, chunk):
        entries = [Entry(job_id(str(n)), "q", 5, b"%d" % n, due) for n in range(first, first + chunk)]
        await any_store.push("p", first, 0, entries)
    hand = await worker(any_store)
    assert (await hand.exchange(limit=1000)).jobs == []
    any_store.time_shift_s += HOUR + 1
    seen: list[bytes] = []
    settlement: tuple[Settlement, ...] = ()
    while answer := (await hand.exchange(*settlement, limit=1000)).jobs:
        seen += answer
        settlement = (Settlement(hand.n),)
    assert len(seen) == count
    assert len(set(seen)) == count
    await any_store.retire(hand.id)


async def _store_time(store: Store) -> float:
    return datetime.now(UTC).timestamp() + store.time_shift_s


@ONE_OF_EACH
async def test_ten_thousand_queues_are_pushed_to_claimed_from_waited_for_and_counted(any_store: Store) -> None:
    queues = [f"queue-{number}" for number in range(10_000)]
    for first in range(0, 10_000, 2_000):
        await any_store.push("p", first, 0, [Entry(job_id(q), q, 5, q.encode()) for q in queues[first : first + 2_000]])
    found = (await any_store.stats()).queues
    assert len(found) == 10_000
    assert all(queue.ready == 1 for queue in found)
    hand = await worker(any_store)
    claimed: list[bytes] = []
    while answer := (await hand.exchange(queues=queues, limit=1_000)).jobs:
        claimed += answer
    assert sorted(claimed) == sorted(queue.encode() for queue in queues)
    assert await any_store.wait(queues, 0.01) is False
    await any_store.push("p", 20_000, 0, [Entry(job_id("late"), queues[-1], 5, b"late")])
    assert await any_store.wait(queues, 5.0) is True


@pytest.mark.parametrize("number", EDGES)
async def test_an_integer_at_the_edge_of_64_bits_arrives_or_is_refused(number: int) -> None:
    for codec in ("orjson", "msgspec"):
        jobs = JobQueue("memory://", codec=codec)  # type: ignore[arg-type]
        arrived: list[object] = []

        @jobs.job
        async def keep(number: int, other: Any) -> None:
            arrived.extend((number, other))  # noqa: B023

        try:
            await keep.enqueue(number, {"a": [number]})
        except SerializationError as error:
            assert not -(2**63) <= number < 2**64
            assert "number" in str(error)
        else:
            await jobs.process_one()
            assert arrived == [number, {"a": [number]}]
        await jobs.close()


@pytest.mark.parametrize(
    "options",
    [{"priority": edge} for edge in (*EDGES, 10, -1) if not 0 <= edge <= 9]
    + [{"delay": edge} for edge in (-1, 2**63, 10**400, LONGEST_S + 1, float("nan"), timedelta.max)]
    + [{"max_attempts": 0}, {"max_attempts": 2**31}, {"max_losses": 2**63}, {"timeout": 2**64}],
)
async def test_an_option_beyond_its_range_is_refused_and_nothing_stored(options: dict[str, Any]) -> None:
    jobs = JobQueue("memory://")

    @jobs.job
    async def work() -> None: ...

    with pytest.raises(ConfigError, match=next(iter(options))):
        await jobs.enqueue(work, **options)
    assert (await jobs.stats()).queues == []
    await jobs.close()


async def test_the_first_and_the_last_times_of_the_calendar_are_times(any_store: Store) -> None:
    jobs, ran = JobQueue(any_store), asyncio.Event()

    @jobs.job
    async def work(which: str) -> None:
        assert which == "first"
        ran.set()

    await work.options(run_at=datetime.max.replace(tzinfo=UTC)).enqueue("last")
    await work.options(delay=LONGEST_S).enqueue("in a century")
    async with at_work(jobs, any_store):
        await work.options(run_at=datetime.min.replace(tzinfo=UTC)).enqueue("first")
        await happens(ran)
    assert (await counts(any_store)).delayed == 2
    await jobs.purge("default")
    await jobs.close()


ODD_NAME = "😀größe-ﷺ"


async def test_emoji_are_kept_in_names_and_nul_and_emoji_in_errors(any_store: Store) -> None:
    jobs = JobQueue(any_store)

    @jobs.job(name=ODD_NAME, queue=ODD_NAME)
    async def work(text: str) -> None:
        raise Discard(text)

    await work.enqueue("nul \0, emoji 😀, escape \x1b[2J")
    async with at_work(jobs, any_store, queues=[ODD_NAME]):
        async with asyncio.timeout(10):
            while not await dead_jobs(any_store):
                await asyncio.sleep(0.01)
    [job] = await dead_jobs(any_store)
    assert (job.name, job.queue) == (ODD_NAME, ODD_NAME)
    assert job.history is not None
    assert job.history[-1].message == "nul \0, emoji 😀, escape \x1b[2J"
    [found] = (await any_store.stats()).queues
    assert (found.queue, found.dead) == (ODD_NAME, 1)
    await jobs.close()


@pytest.mark.parametrize("name", ["a\0b", "\ud800", "a b", "", "x" * 201, "a\nb", "\u200b", "\ufeffa"])
async def test_a_name_that_not_all_stores_can_hold_or_people_see_is_refused(name: str) -> None:
    jobs = JobQueue("memory://")
    for refused in (lambda: jobs.prepare(name), lambda: jobs.job(name=name), lambda: jobs.job(queue=name)):
        with pytest.raises(ConfigError, match="printable"):
            refused()


# -- exceptions


class Unshowable(Exception):
    def __repr__(self) -> str:
        raise RuntimeError("no repr")

    __str__ = __repr__


def _chain(length: int, *, explicit: bool) -> Exception:
    """So many exceptions, each the cause or the context of the next."""
    error: Exception = ValueError("root")
    for number in range(length):
        caused = RuntimeError(f"number {number}")
        if explicit:
            caused.__cause__ = error
        else:
            caused.__context__ = error
        error = caused
    return error


def _group(depth: int) -> Exception:
    error: Exception = ValueError("innermost")
    for _ in range(depth):
        error = ExceptionGroup("group", [error])
    return error


def _cycle() -> Exception:
    one, other = ValueError("one"), ValueError("other")
    one.__cause__, other.__cause__ = other, one
    return one


def _with_notes() -> Exception:
    error = ValueError("noted")
    for _ in range(1_000):
        error.add_note("y" * 10_000)
    return error


ODD_ERRORS = {
    "10-MB": lambda: ValueError("x" * (10 * MIB)),
    "10-MB-line": lambda: SyntaxError("bad", ("f.py", 1, 1, "x" * (10 * MIB), 1, 2)),
    "10-MB-notes": _with_notes,
    "10,000-causes": lambda: _chain(10_000, explicit=True),
    "10,000-contexts": lambda: _chain(10_000, explicit=False),
    "cycle": _cycle,
    "10,000-groups": lambda: _group(10_000),
    "wide-group": lambda: ExceptionGroup("wide", [ValueError("z" * 1_000)] * 10_000),
    "unshowable": lambda: Unshowable(),
    "args-unshowable": lambda: ValueError(Unshowable()),
    "no-text": lambda: Exception(),
    "surrogates": lambda: ValueError("\ud800" * 100_000),
}


@pytest.mark.parametrize("kind", ODD_ERRORS)
def test_whatever_an_exception_is_its_record_is_small_and_can_be_stored(kind: str) -> None:
    try:
        raise ODD_ERRORS[kind]()
    except Exception as error:
        failure = failure_of(a_job(), "failed", error, "w")
    assert len(failure.message) <= 2 * MESSAGE_LIMIT
    assert len(failure.traceback) <= TRACEBACK_LIMIT + 100
    assert failure.error
    job = a_job()
    job.history = [failure] * 25
    assert len(encode_job(job)) < 700_000
    assert decode_job(encode_job(job)).history == job.history


def test_the_record_of_a_deep_recursion_keeps_the_end_of_its_frames() -> None:
    def deeper(depth: int) -> None:
        if depth:
            deeper(depth - 1)
        raise ValueError("at the bottom")

    try:
        deeper(900)
    except ValueError as error:
        failure = failure_of(a_job(), "failed", error, "w")
    assert "at the bottom" in failure.traceback
    assert len(failure.traceback) <= TRACEBACK_LIMIT + 100


def test_a_promise_of_gigabytes_reserves_none() -> None:
    tracemalloc.start()
    try:
        for head in HUGE_HEADS:
            for envelope in (head, b"\x9e\x01" + head, encode_job(a_job())[:-1] + head):
                with pytest.raises(SerializationError):
                    decode_job(envelope)
        gc.collect()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < MIB


# -- processes


def test_a_supervisor_with_few_descriptors_runs_its_workers(store_url: str) -> None:
    jobs = JobQueue(store_url)

    async def fill() -> None:
        async with jobs:
            await jobs.enqueue_many([jobs.prepare("count", {"n": number}) for number in range(500)])

    asyncio.run(soon(fill()))
    with Supervised(store_url, files=256, workers=4, burst=True) as supervisor:
        assert supervisor.ends(60) == 0
        assert supervisor.final()["done"] == 500
