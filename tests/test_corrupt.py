"""Bytes in a store that are no job: set aside with a reason, wherever they lie, and nobody is stopped by them."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from heapq import heappush
from typing import Any

import asyncpg
import pytest
import redis.asyncio
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from fastjobs import JobQueue
from fastjobs.adoption import Adopter, given_up
from fastjobs.backends import make_store
from fastjobs.backends.base import Store
from fastjobs.envelope import decode_job
from fastjobs.errors import BackendError, SerializationError
from fastjobs.ids import fresh_name, id_text, new_id
from fastjobs.model import Entry, Job
from fastjobs.registry import Registry
from fastjobs.terms import Terms
from tests.fuzz.envelopes import SAMPLES
from tests.fuzz.strategies import damaged, huge
from tests.stores import KINDS, MemoryPlace, Place, PostgresPlace, RedisPlace
from tests.working import at_work, dead_jobs, soon

few = settings(
    max_examples=4, phases=[Phase.generate], suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
"""Real servers: a few examples on each. They share the test's store, so each leaves it empty."""

PAST_S = 1.0
"""Since the epoch: due long ago."""


def _is_no_job(envelope: bytes) -> bool:
    try:
        decode_job(envelope)
    except SerializationError:
        return True
    return False


corrupt = st.lists((st.binary(max_size=40) | damaged(SAMPLES) | huge).filter(_is_no_job), min_size=1, max_size=4, unique=True)


class MemoryHand:
    """Writes past the protocol."""

    def __init__(self, place: MemoryPlace) -> None:
        self._core = place.core

    async def ready(self, *envelopes: bytes) -> None:
        self._core._queue("default").level(5).extend(envelopes)

    async def delayed(self, *envelopes: bytes) -> None:
        for number, envelope in enumerate(envelopes):
            heappush(self._core._queue("default").delayed, (PAST_S, number, 5, envelope))

    async def held(self, worker: str, n: int, *envelopes: bytes) -> None:
        self._core._workers[worker].claims[n] = [*envelopes]

    async def dead(self, *envelopes: bytes) -> None:
        for envelope in envelopes:
            self._core._bury(Entry(new_id(), "default", 5, envelope), 1.7e9)


class RedisHand:
    """As `MemoryHand`, into the keys of a namespace."""

    def __init__(self, place: RedisPlace, client: Any) -> None:
        self._client = client
        self._prefix = place._prefixes()[0]

    async def ready(self, *envelopes: bytes) -> None:
        await self._client.rpush(f"{self._prefix}ready:default:5", *envelopes)

    async def delayed(self, *envelopes: bytes) -> None:
        await self._client.zadd(f"{self._prefix}later:default", {b"5" + new_id() + envelope: PAST_S for envelope in envelopes})

    async def held(self, worker: str, n: int, *envelopes: bytes) -> None:
        await self._client.rpush(f"{self._prefix}claim:{worker}:{n}", *envelopes)
        await self._client.hset(f"{self._prefix}worker:{worker}", str(n), "")

    async def dead(self, *envelopes: bytes) -> None:
        await self.letters(*(b"7:default" + envelope for envelope in envelopes))

    async def letters(self, *letters: bytes) -> None:
        """Dead letters as the hash holds them, the queue before the envelope."""
        for letter in letters:
            id = new_id()
            await self._client.hset(f"{self._prefix}dead", id, letter)
            await self._client.zadd(f"{self._prefix}died", {id: 1.7e9})
            await self._client.zadd(f"{self._prefix}died:default", {id: 1.7e9})

    async def members(self, *members: bytes) -> None:
        """Delayed jobs as the set holds them."""
        await self._client.zadd(f"{self._prefix}later:default", dict.fromkeys(members, PAST_S))


class PostgresHand:
    """As `MemoryHand`, into the tables of a schema."""

    def __init__(self, place: PostgresPlace, connection: Any) -> None:
        self._connection = connection
        self._schema = place._schema

    async def _insert(self, table: str, columns: str, values: str, envelopes: tuple[bytes, ...]) -> None:
        for envelope in envelopes:
            await self._connection.execute(f'insert into "{self._schema}".{table} ({columns}) values ({values})', envelope)

    async def ready(self, *envelopes: bytes) -> None:
        await self._insert("ready", "queue, priority, job", "'default', 5, $1", envelopes)

    async def delayed(self, *envelopes: bytes) -> None:
        await self._insert("later", "queue, due, priority, job", f"'default', {PAST_S}, 5, $1", envelopes)

    async def held(self, worker: str, n: int, *envelopes: bytes) -> None:
        await self._connection.execute(
            f'insert into "{self._schema}".claim values ($1, $2, $3, $4)', worker, n, len(envelopes), [*envelopes]
        )

    async def dead(self, *envelopes: bytes) -> None:
        for envelope in envelopes:
            await self._connection.execute(
                f'insert into "{self._schema}".dead values ($1, $2, $3, $4)', new_id(), 1.7e9, "default", envelope
            )


Hand = MemoryHand | RedisHand | PostgresHand


@asynccontextmanager
async def hand_in(place: Place) -> AsyncIterator[Hand]:
    if isinstance(place, RedisPlace):
        async with redis.asyncio.from_url(place._server) as client:
            yield RedisHand(place, client)
    elif isinstance(place, PostgresPlace):
        connection = await asyncpg.connect(place._server)
        try:
            yield PostgresHand(place, connection)
        finally:
            await connection.close()
    else:
        assert isinstance(place, MemoryPlace)
        yield MemoryHand(place)


async def _set_aside(store: Store, count: int) -> list[Job]:
    """The dead letters, once there are so many; they are deleted."""
    async with asyncio.timeout(3):
        while len(await store.dead_list(None, None, 100)) < count:
            await asyncio.sleep(0.01)
    found = await dead_jobs(store)
    await store.dead_delete([letter.id for letter in await store.dead_list(None, None, 100)])
    return found


def _tell_why(found: list[Job], envelopes: list[bytes]) -> None:
    assert sorted(job.payload for job in found) == sorted(envelopes)
    for job in found:
        assert job.history
        assert (job.history[-1].kind, bool(job.history[-1].message)) == ("undecodable", True)


async def _beside_a_worker(store: Store, write: Callable[[], Awaitable[object]], envelopes: list[bytes], *, good: int) -> None:
    """What *write* puts into the store is set aside by a worker, which runs *good* other jobs all the same."""
    jobs, ran = JobQueue(store), asyncio.Event()
    left = good

    @jobs.job
    async def work() -> None:
        nonlocal left
        left -= 1
        if not left:
            ran.set()

    await write()
    await jobs.enqueue_many([work.prepare() for _ in range(good)])
    async with at_work(jobs, store) as crew:
        await soon(ran.wait())
        _tell_why(await _set_aside(store, len(envelopes)), envelopes)
        assert not crew.task.done()
    await jobs.close()


@pytest.mark.parametrize("where", ["ready", "delayed"])
@few
@given(envelopes=corrupt)
async def test_what_is_no_job_among_ready_or_delayed_ones_is_set_aside_and_the_others_run(
    place: Place, any_store: Store, where: str, envelopes: list[bytes]
) -> None:
    async with hand_in(place) as hand:
        await _beside_a_worker(any_store, lambda: getattr(hand, where)(*envelopes), envelopes, good=3)


@few
@given(envelopes=corrupt)
async def test_what_is_no_job_in_the_claim_of_a_dead_worker_is_set_aside_and_the_others_go_back(
    place: Place, any_store: Store, envelopes: list[bytes]
) -> None:
    async def patiently(call: Callable[[], Awaitable[Any]]) -> Any:
        return await call()

    lease = fresh_name()
    good = [SAMPLES[0], SAMPLES[1]]
    claim = [*envelopes, *good]
    random.Random(len(claim)).shuffle(claim)
    await any_store.register(f"{lease}.1-0")
    async with hand_in(place) as hand:
        await hand.held(f"{lease}.1-0", 7, *claim)
    adopter = Adopter(any_store, lease, Terms(Registry(), {}), patiently)
    await adopter.start()
    settled = await adopter.adopt(f"{lease}.1-0", [given_up(f"{lease}.1-0")])
    assert (settled.dead, settled.released) == (len(envelopes), len(good))
    await adopter.retire()
    _tell_why(await _set_aside(any_store, len(envelopes)), envelopes)
    assert sorted(await any_store.peek("default", 10)) == sorted(good)
    await any_store.purge("default")


@few
@given(envelopes=corrupt)
async def test_what_is_no_job_among_the_dead_letters_is_shown_told_apart_and_deleted(
    place: Place, any_store: Store, envelopes: list[bytes]
) -> None:
    async with hand_in(place) as hand:
        await hand.dead(*envelopes)
    jobs = JobQueue(any_store)
    letters = await jobs.dead.list()
    assert sorted(letter.payload for letter in letters) == sorted(envelopes)
    assert all(letter.unreadable for letter in letters)
    ids = [letter.id for letter in letters]
    assert (await jobs.dead.get(ids[0])).payload == letters[0].payload
    with pytest.raises(SerializationError, match="cannot be requeued"):
        await jobs.dead.requeue(*ids)
    refused = await jobs.dead.requeue_all()
    assert (refused.done, sorted(refused.unreadable)) == (0, sorted(ids))
    assert (await jobs.dead.delete(*ids)).done == len(ids)
    assert await jobs.dead.list() == []
    await jobs.close()


REDIS_KINDS = [kind for kind in KINDS if kind in ("redis", "valkey")]


@pytest.mark.parametrize("store_kind", REDIS_KINDS)
@few
@given(members=st.lists(st.binary(max_size=30).filter(lambda member: not member[:1].isdigit()), min_size=1, unique=True))
async def test_a_member_of_the_delayed_set_that_is_no_delayed_job_is_set_aside_whole(
    place: Place, any_store: Store, members: list[bytes]
) -> None:
    async with hand_in(place) as hand:
        assert isinstance(hand, RedisHand)
        await _beside_a_worker(any_store, lambda: hand.members(*members), members, good=2)


@pytest.mark.parametrize("store_kind", REDIS_KINDS)
@few
@given(letters=st.lists(st.binary(max_size=30) | st.sampled_from((b"", b":", b"x:y", b"9" * 30 + b":")), min_size=1))
async def test_a_dead_letter_of_no_known_form_hides_no_others_and_can_be_deleted(
    place: Place, any_store: Store, letters: list[bytes]
) -> None:
    async with hand_in(place) as hand:
        assert isinstance(hand, RedisHand)
        await hand.letters(*letters)
        await hand.dead(SAMPLES[0])
    found = await any_store.dead_list(None, None, 100)
    assert len(found) == len(letters) + 1
    assert SAMPLES[0] in [letter.envelope for letter in found]
    assert await any_store.dead_delete([letter.id for letter in found]) == [True] * len(found)
    jobs = JobQueue(any_store)
    assert (await jobs.dead.delete(id_text(new_id()))).done == 0
    await jobs.close()


@pytest.mark.parametrize("store_kind", REDIS_KINDS)
async def test_a_word_where_the_store_keeps_a_number_is_an_error_of_ours(place: Place, any_store: Store) -> None:
    assert isinstance(place, RedisPlace)
    async with redis.asyncio.from_url(place._server) as client:
        await client.hset(f"{place._prefixes()[0]}leases", "lease", "x")
        with pytest.raises(BackendError, match="cannot be read"):
            await any_store.leases()
        await client.set(f"{place._prefixes()[0]}partitions", "x")
        for url in (place.url(), f"{place.url()}&partitions=3"):
            store = make_store(url)
            with pytest.raises(BackendError, match=r"cannot be read|no number"):
                await store.stats()
            await store.close()
