"""A fault of the network at one step of an app's life, for a sample of all steps; with ``--every-step`` for all of them.

A step is a request or a reply. Whatever happens there: every job runs exactly as often as it should, as nobody has crashed, and
nothing is left in the store.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from fastjobs import JobQueue, claims, rescue, wakeup
from fastjobs.envelope import decode_job
from fastjobs.errors import EnqueueManyError, EnqueueUncertain
from fastjobs.ids import id_text
from tests.chaos.detour import Detour, Harm, cut, detour, half_open, stall
from tests.chaos.life import Life, repeated
from tests.chaos.proxy import UP, Link, Proxy, Tap, Way
from tests.conftest import UsersServer
from tests.contract.kit import HOUR, entry, push, worker
from tests.servers.redis import RedisServer
from tests.stores import PARTITIONED, Place, PostgresPlace, Server, fresh_place

KINDS = ("socket", "redis", "valkey", "postgres", "partitions")

SLOW = ("postgres", "partitions")

LONGEST_S = 20.0
"""A life takes 0.06 to 0.4 s."""

PATIENT_S = 10.0  #: where nothing stalls
HASTY_S = 0.2  #: where waiting for a reply that never comes is the point


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pauses of workers and maintenance are those of a life of 0.1 s."""
    monkeypatch.setattr(rescue, "CLAIMS_S", 0.1)
    monkeypatch.setattr(wakeup, "PAUSE_S", 0.01)
    monkeypatch.setattr(wakeup, "IDLE_WAIT_S", 0.05)
    monkeypatch.setattr(claims, "SETTLE_AFTER_S", 0.02)
    monkeypatch.setattr(claims, "SETTLE_OUTCOMES_AFTER_S", 0.01)


@pytest.fixture(params=KINDS)
def store_kind(request: pytest.FixtureRequest) -> str:
    """All that have a network; "partitions" is a Redis cut into three."""
    return str(request.param)


@pytest.fixture
async def place(store_kind: str, request: pytest.FixtureRequest) -> AsyncIterator[Place]:
    def server(kind: str) -> Server:
        if kind != PARTITIONED:
            return request.getfixturevalue(f"{kind}_server")  # type: ignore[no-any-return]
        found = request.getfixturevalue("redis_server")
        return UsersServer(found.tcp_url) if isinstance(found, RedisServer) else found

    async with fresh_place(PARTITIONED if store_kind == "partitions" else store_kind, server) as fresh:
        yield fresh


async def live(way: Detour, place: Place, call_timeout_s: float, what: str) -> None:
    """One life; nothing may be left of it."""
    store = way.backend(call_timeout_s)
    life = Life(store)
    try:
        async with asyncio.timeout(LONGEST_S):
            await life.run()
    except BaseException as error:
        error.add_note(f"{what}:{way.steps.hit}; ran {dict(life.runs)}")
        raise
    finally:
        await store.close()
        way.proxy.cut()  # what stalls, with what it holds
    direct = place.backend()
    try:
        direct.time_shift_s = 3 * HOUR
        await direct.housekeep()
    finally:
        await direct.close()
    assert await place.leftovers() == [], f"{what}:{way.steps.hit}"


async def sweep(place: Place, request: pytest.FixtureRequest, harm: Harm, most: int, call_timeout_s: float) -> None:
    """A life with *harm* at a request and at a reply of each call, at *most* so many; or at all steps."""
    with detour(place.url()) as way:
        for _ in range(2):  # the first one teaches a Redis its scripts
            way.steps.plan(harm)
            await live(way, place, PATIENT_S, "unharmed")
        if request.config.getoption("--every-step"):
            for step in range(1, way.steps.count + 1):
                way.steps.plan(harm, step)
                await live(way, place, call_timeout_s, f"{harm.__name__} at step {step}")
            return
        calls = way.steps.of_each_call()
        assert len(calls) > 25, calls
        hits = 0
        for call in random.sample(calls, min(most, len(calls))):
            way.steps.plan(harm, call=call)
            await live(way, place, call_timeout_s, f"{harm.__name__} at {call}")
            hits += bool(way.steps.hit)
        assert hits  # not all: some lives ask less often than the first


@pytest.mark.timeout(900)
async def test_a_connection_is_cut(place: Place, store_kind: str, request: pytest.FixtureRequest) -> None:
    """A request does not arrive; a reply is lost after the store has done the work."""
    await sweep(place, request, cut, 16 if store_kind in SLOW else 100, PATIENT_S)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("harm", [stall, half_open])
async def test_a_connection_falls_silent(place: Place, request: pytest.FixtureRequest, harm: Harm) -> None:
    await sweep(place, request, harm, 3, HASTY_S)


async def test_connections_are_cut_again_and_again(place: Place, request: pytest.FixtureRequest) -> None:
    """So that repeats, and the repeats of repeats, are hit too."""
    with detour(place.url()) as way:
        for _ in range(30 if request.config.getoption("--every-step") else 1):
            steps = sorted(random.sample(range(1, 300), 12))  # pauses grow with each cut in a row
            way.steps.plan(cut, *steps)
            await live(way, place, PATIENT_S, f"cut at {steps}")


async def test_every_byte_comes_alone(place: Place) -> None:
    with detour(place.url()) as way:
        way.proxy.slow()
        await live(way, place, PATIENT_S, "byte by byte")


@pytest.mark.timeout(300)
async def test_the_making_of_a_schema_is_cut(postgres_server: Server, request: pytest.FixtureRequest) -> None:
    stride = 1 if request.config.getoption("--every-step") else 6
    for step in itertools.count(1 + random.randrange(stride), stride):
        place = PostgresPlace(postgres_server)
        try:
            with detour(place.url()) as way:
                way.steps.plan(cut, step)
                store = way.backend(PATIENT_S)
                try:
                    await repeated(store.open)
                    hit = way.steps.hit
                    way.steps.plan(cut)
                    await push(store, entry("a"))
                    assert await (await worker(store)).drain() == ["a"], f"cut at step {step}:{hit}"
                finally:
                    await store.close()
        finally:
            await place.drop()
        if not hit:
            break
    assert step > 20  # until there was nothing more to cut


# -- an enqueue that gives up -------------------------------------------------------------------------------------------------

MARKER = "c" * 20


def last_words(way: Way) -> Tap:
    """Once a request with the marker has come: it, or the reply to it, is lost, and from then on there is no connection."""

    def tap(link: Link, piece: Way, data: bytes) -> None:
        if piece is UP and MARKER.encode() in data:
            link.tag = "the one"
        if link.tag and piece is way:
            link._proxy.refuse()

    return tap


@asynccontextmanager
async def enqueuing(place: Place, lost: Way) -> AsyncIterator[tuple[JobQueue, Proxy]]:
    """An app whose connections work until it enqueues the marker."""
    with detour(place.url(), last_words(lost)) as way:
        jobs = JobQueue(way.backend(PATIENT_S), enqueue_timeout=0.3)
        async with jobs:
            await jobs.enqueue("warm-up", {}, queue="first")
            yield jobs, way.proxy


async def stored(place: Place) -> list[str]:
    """Ids of the jobs in the queue, by a way of one's own."""
    direct = place.backend()
    try:
        return [id_text(decode_job(envelope).id) for envelope in await direct.peek("q", 100)]
    finally:
        await direct.close()


Enqueue = Callable[[JobQueue], Awaitable[object]]


@pytest.mark.parametrize("lost", list(Way))
async def test_an_enqueue_that_gives_up_says_which_job_may_be_stored(place: Place, lost: Way) -> None:
    async with enqueuing(place, lost) as (jobs, proxy):
        with pytest.raises(EnqueueUncertain, match="may or may not be stored") as caught:
            await jobs.enqueue("work", {"mark": MARKER}, queue="q")
        (id,) = caught.value.job_ids
        assert id in str(caught.value)
        assert await stored(place) == ([] if lost is UP else [id])
        proxy.resume()
        later = await jobs.enqueue("work", {"mark": "another"}, queue="q")
        assert sorted(await stored(place)) == sorted([later.id] if lost is UP else [id, later.id])


@pytest.mark.parametrize("lost", list(Way))
async def test_enqueue_many_that_gives_up_says_how_many_may_be_stored(place: Place, lost: Way) -> None:
    async with enqueuing(place, lost) as (jobs, _):
        calls = [jobs.prepare("work", {"mark": MARKER}) for _ in range(30)]
        with pytest.raises(EnqueueManyError, match="may or may not be stored") as caught:
            await jobs.enqueue_many(calls)
        assert (caught.value.accepted, caught.value.uncertain) == (0, 30)
        assert isinstance(caught.value.__cause__, EnqueueUncertain)
        ids = caught.value.__cause__.job_ids
        assert len(set(ids)) == 30
        direct = place.backend()
        try:
            found = [id_text(decode_job(envelope).id) for envelope in await direct.peek("default", 100)]
        finally:
            await direct.close()
        assert sorted(found) == ([] if lost is UP else sorted(ids))
