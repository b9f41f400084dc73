"""Scripts of the Redis backend that fail half-way: each call in them in turn, on their own account or while taking back."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import pytest
import redis.asyncio

from fastjobs.backends import redis as backend_module
from fastjobs.backends.redis import RedisBackend
from fastjobs.backends.redis_link import Script
from fastjobs.errors import BackendError
from tests.contract.kit import HOUR, Claim, dead, entries, entry, job_id, numbered, push, released, retry, worker
from tests.servers.redis import RedisServer
from tests.stores import names, redis_snapshot


@pytest.fixture(scope="module", params=["redis", "valkey"])
def server(request: pytest.FixtureRequest) -> Iterator[RedisServer]:
    """Of this module alone: it is emptied again and again."""
    started = RedisServer(request.param).start()
    yield started
    started.stop()


@pytest.fixture
async def client(server: RedisServer) -> AsyncIterator[Any]:
    """redis-py's own client, to look and to meddle."""
    async with redis.asyncio.from_url(server.url, protocol=2) as made:
        yield made


FAILING = """
local real, calls_left = redis, {calls}
local redis = setmetatable({{call = function(...)
  calls_left = calls_left - 1
  if calls_left == 0 then error('ERR this call fails') end
  return real.call(...)
end}}, {{__index = real}})
"""

FAILING_TO_UNDO = """
local real, calls_left = redis, {calls}
local redis = setmetatable({{
  call = function(...)
    calls_left = calls_left - 1
    if calls_left == 0 then error('ERR this call fails') end
    return real.call(...)
  end,
  pcall = function(...)
    if calls_left <= 0 then return {{err = 'ERR this call fails too'}} end
    return real.pcall(...)
  end,
}}, {{__index = real}})
"""

FAILING_HINTS = """
local real, calls_left = redis, {calls}
local redis = setmetatable({{pcall = function(...)
  calls_left = calls_left - 1
  if calls_left == 0 then return {{err = 'ERR this call fails'}} end
  return real.pcall(...)
end}}, {{__index = real}})
"""

Act = Callable[[RedisBackend], Awaitable[Any]]


async def prepare(store: RedisBackend) -> None:
    """A worker with two open claims, jobs in all places, one of them due, and a second worker."""
    hand = await worker(store)
    await worker(store, "there.1")
    await push(store, *entries(numbered(6, "claimed")))
    await hand.claim(limit=4)
    await hand.claim(limit=2)
    await push(store, *entries(numbered(3, "ready")), *entries(["first", "second"], priority=9))
    await push(store, entry("due", delay_s=HOUR), entry("later", delay_s=9 * HOUR))
    await hand.settle()
    await push(store, entry("dead", queue="grave"))
    await hand.settle((await hand.claim(queues=["grave"])).ended(dead(0, entry("dead", queue="grave"))))
    store.time_shift_s = 2 * HOUR


async def _exchange(store: RedisBackend) -> Any:
    hand = await worker(store)
    hand.n = 10
    first, second = Claim(1, []), Claim(2, [])
    outcomes = [
        retry(0, entry("again", delay_s=60.0)),
        dead(1, entry("dead", queue="q")),
        released(2, entry("back", priority=9)),
    ]
    return await hand.exchange(first.ended(*outcomes, unfinished=[3], into=99), second.done(), limit=4)


async def _push(store: RedisBackend) -> None:
    await store.push("p", 1, 1, [*entries(numbered(1200, "new"), priority=2), entry("new later", delay_s=60.0, queue="other")])


async def _adopt_all(store: RedisBackend) -> Any:
    return await store.adopt("there.1", 1, "here.1", None, 100)


async def _adopt_one(store: RedisBackend) -> Any:
    return await store.adopt("there.1", 1, "here.1", [2], 100)


async def _register(store: RedisBackend) -> None:
    await store.register("new.1")


async def _requeue(store: RedisBackend) -> None:
    await store.dead_requeue([entry("dead", envelope=b"alive", queue="other"), entry("never dead")])


async def _delete(store: RedisBackend) -> list[bool]:
    return await store.dead_delete([job_id("dead"), job_id("never dead")])


async def _purge(store: RedisBackend) -> int:
    return await store.purge("q")


async def _renew(store: RedisBackend) -> bool:
    return await store.renew("here")


async def _retire(store: RedisBackend) -> bool:
    return await store.retire("there.1")


async def _wait(store: RedisBackend) -> bool:
    return await store.wait(["empty"], 0.0)


def jobs_in(found: dict[bytes, Any], namespace: str) -> Counter[bytes]:
    """Every envelope stored, as often as it is stored."""
    prefix = b"{%b}:" % namespace.encode()
    jobs: Counter[bytes] = Counter()
    for key, value in found.items():
        kind = key.removeprefix(prefix).partition(b":")[0]
        if kind in (b"ready", b"claim"):
            jobs.update(value)
        elif kind == b"later":
            jobs.update(member[17:] for member, _ in value)
        elif kind == b"dead":
            jobs.update(letter.partition(b":")[2].lstrip(b"gqrave") for letter in value.values())
    return jobs


MOVES = [
    ("exchange", _exchange),
    ("push", _push),
    ("adopt", _adopt_all),
    ("adopt", _adopt_one),
    ("dead_requeue", _requeue),
]

OTHERS = [
    ("register", _register),
    ("dead_delete", _delete),
    ("purge", _purge),
    ("renew", _renew),
    ("retire", _retire),
    ("wait", _wait),
]


class Failures:
    """Does one act again and again, each time with another call of its script failing, and knows how it should end."""

    def __init__(self, server: RedisServer, client: Any, name: str, act: Act) -> None:
        self.client = client
        self.made: list[RedisBackend] = []
        self.act = act
        self.answer: Any = None  #: of the act, unharmed
        self.done: Counter[bytes] = Counter()  #: the jobs stored then
        self._url = server.url
        self._name = name
        self._whole = backend_module.SCRIPTS[name]

    async def measure(self) -> None:
        store = await self.prepared()
        self.answer = await self.act(store)
        self.done = await self.jobs(store)

    async def prepared(self) -> RedisBackend:
        """A store that is ready for the act, alone on the server."""
        await self.client.flushall()
        self.made.append(store := RedisBackend(self._url, namespace=next(names)))
        await prepare(store)
        return store

    async def jobs(self, store: RedisBackend) -> Counter[bytes]:
        return jobs_in(await redis_snapshot(self.client), store.namespace)

    async def wake_ups(self) -> int:
        return len(await self.client.keys("*}:wake:*"))

    def script(self, failing: str, calls: int) -> Script:
        return Script(self._name, failing.format(calls=calls) + self._whole.text)


@pytest.fixture
async def failures(server: RedisServer, client: Any, name: str, act: Act) -> AsyncIterator[Failures]:
    made = Failures(server, client, name, act)
    yield made
    for store in made.made:
        await store.close()


@pytest.mark.parametrize(("name", "act"), [*MOVES, *OTHERS])
async def test_a_call_that_fails_inside_a_script_loses_no_job_and_may_be_repeated(
    failures: Failures, client: Any, monkeypatch: pytest.MonkeyPatch, name: str, act: Act
) -> None:
    """Each redis.call of the script fails in turn: all is as before, or the work is done and its repeat says so."""
    await failures.measure()
    undone = 0
    for calls in itertools.count(1):
        store = await failures.prepared()
        before = await redis_snapshot(client)
        with monkeypatch.context() as failing:
            failing.setitem(backend_module.SCRIPTS, name, failures.script(FAILING, calls))
            error = await _error_of(act(store))
        if error is None:
            break  # it makes fewer calls than that
        assert type(error) is BackendError
        assert "this call fails" in str(error)
        is_undone = await redis_snapshot(client) == before
        undone += is_undone
        assert await act(store) == failures.answer
        left = await failures.jobs(store)
        assert failures.done - left == Counter(), f"lost when call {calls} failed"
        if is_undone:  # else a copy may have stayed where it was
            assert left - failures.done == Counter(), f"there twice when call {calls} failed"
    assert undone == calls - 1 - REMOVALS.get(act.__name__, 0)


@pytest.mark.parametrize(("name", "act"), MOVES)
async def test_when_taking_back_fails_too_no_job_is_lost(
    failures: Failures, monkeypatch: pytest.MonkeyPatch, name: str, act: Act
) -> None:
    """It may be there twice, and then run twice."""
    await failures.measure()
    kept = failures.done
    for calls in itertools.count(1):
        store = await failures.prepared()
        if name == "adopt":  # the record of the call may stand; its jobs are still with one of the workers, for the next call
            kept = await failures.jobs(store)
        with monkeypatch.context() as failing:
            failing.setitem(backend_module.SCRIPTS, name, failures.script(FAILING_TO_UNDO, calls))
            if await _error_of(act(store)) is None:
                break
        await act(store)
        assert kept - await failures.jobs(store) == Counter(), f"lost when call {calls} failed"


@pytest.mark.parametrize(("name", "act"), [(name, act) for name, act in MOVES if name != "adopt"])
async def test_a_wake_up_that_cannot_be_written_or_removed_fails_nothing(
    failures: Failures, client: Any, monkeypatch: pytest.MonkeyPatch, name: str, act: Act
) -> None:
    await failures.measure()
    markers = set()
    for calls in range(1, 9):
        store = await failures.prepared()
        await client.delete(*await client.keys("*}:wake:*"))
        with monkeypatch.context() as failing:
            failing.setitem(backend_module.SCRIPTS, name, failures.script(FAILING_HINTS, calls))
            assert await act(store) == failures.answer
        assert await failures.jobs(store) == failures.done
        markers.add(await failures.wake_ups())
    assert len(markers) > 1  # the failures were felt


async def _error_of(call: Awaitable[Any]) -> BackendError | None:
    try:
        await call
    except BackendError as error:
        return error
    return None


REMOVALS = {"_exchange": 4, "_adopt_all": 5, "_adopt_one": 1, "_retire": 3}
"""Calls at the end of a script that may fail with the work done: they only remove what was copied."""


async def test_nothing_is_left_of_a_whole_life_but_names_and_a_producers_record(server: RedisServer, client: Any) -> None:
    await client.flushall()
    store = RedisBackend(server.url, namespace=next(names))
    try:
        await prepare(store)
        await store.adopt("there.1", 1, "here.1", None, 100)
        there = await worker(store, "there.1")
        there.n = 1
        await there.settle(Claim(1, []).done())
        await there.drain()
        await store.purge("q")
        assert await store.dead_delete([job_id("dead")]) == [True]
        assert await store.retire("there.1")
    finally:
        await store.close()
    left = {key.partition(b":")[2]: await client.ttl(key) for key in await redis_snapshot(client)}
    assert left.pop(b"queues") == -1
    assert {key.partition(b":")[0] for key in left} == {b"producer"}
    assert all(3600 + 300 < seconds <= 7200 for seconds in left.values()), "long enough for a repeat after a clock that stepped"
