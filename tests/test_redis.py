"""What only the Redis backend promises: warnings, errors, memory, scripts that fail half-way. The rest: tests/contract."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
import redis.asyncio
from redis import exceptions as refusals

from fastjobs.backends import redis as backend_module
from fastjobs.backends.redis import RedisBackend
from fastjobs.backends.redis_link import Links, Script, translate
from fastjobs.errors import BackendError, ConfigError, StaleCall, StoreUnavailable, WorkerGone
from fastjobs.model import Entry, Settlement
from tests.contract.kit import (
    HOUR,
    Claim,
    Worker,
    dead,
    entries,
    entry,
    job_id,
    numbered,
    open_claims,
    push,
    released,
    retry,
    worker,
)
from tests.servers.redis import RedisServer

namespaces = (f"r{count}" for count in itertools.count())

Snapshot = dict[bytes, Any]
Connect = Callable[..., RedisBackend]


@pytest.fixture(scope="module", params=["redis", "valkey"])
def server(request: pytest.FixtureRequest) -> Iterator[RedisServer]:
    """A server that tests may reconfigure, kill and restart."""
    started = RedisServer(request.param).start()
    yield started
    started.stop()


@pytest.fixture
async def client(server: RedisServer) -> AsyncIterator[Any]:
    """redis-py's own client, to look and to meddle."""
    async with redis.asyncio.from_url(server.url, protocol=2) as made:
        yield made
        await made.config_set("maxmemory", 0)
        await made.config_set("maxmemory-policy", "noeviction")
        await made.acl_deluser("tenant")
        await made.flushall()


@pytest.fixture
async def connect() -> AsyncIterator[Connect]:
    """Makes backends that are closed after the test."""
    made: list[RedisBackend] = []

    def make(url: str, **options: Any) -> RedisBackend:
        made.append(RedisBackend(url, **options))
        return made[-1]

    yield make
    for backend in made:
        await backend.close()


@pytest.fixture
def store(server: RedisServer, client: Any, connect: Connect) -> RedisBackend:
    """A backend on an empty namespace."""
    return connect(server.url, namespace=next(namespaces))


async def snapshot(client: Any) -> Snapshot:
    """Everything on the server but times to live; lists and sets of the same content are equal."""
    found: Snapshot = {}
    async for key in client.scan_iter(count=1000):
        kind = await client.type(key)
        if kind == b"list":
            found[key] = await client.lrange(key, 0, -1)
        elif kind == b"zset":
            found[key] = await client.zrange(key, 0, -1, withscores=True)
        elif kind == b"set":
            found[key] = await client.smembers(key)
        else:
            found[key] = await client.hgetall(key)
    return found


# -- opening ------------------------------------------------------------------------------------------------------------------


async def test_open_says_what_would_be_lost(store: RedisBackend, client: Any) -> None:
    await client.config_set("maxmemory-policy", "allkeys-lru")
    eviction, persistence = await store.open()
    assert "allkeys-lru" in eviction
    assert "set maxmemory-policy noeviction" in eviction
    assert "all jobs are lost" in persistence
    assert "set appendonly yes" in persistence


async def test_open_has_nothing_to_say_of_a_safe_server(connect: Connect) -> None:
    safe = RedisServer(appendonly=True).start()
    try:
        assert await connect(safe.tcp_url).open() == []
    finally:
        safe.stop()


async def test_open_keeps_quiet_about_settings_it_may_not_see(server: RedisServer, client: Any, connect: Connect) -> None:
    await client.acl_setuser("tenant", enabled=True, passwords=["+right"], keys=["*"], commands=["+@all", "-config"])
    store = connect(server.tcp_url.replace("//", "//tenant:right@"))
    assert await store.open() == []
    await push(store, entry("a"))


async def test_an_old_server_is_refused(tmp_path: Path, connect: Connect) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        info = b"# Server\r\nredis_version:6.0.16\r\n"
        while commands := (await reader.read(4096)).count(b"*"):
            writer.write(b"$%d\r\n%b\r\n" % (len(info), info) * commands)
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()

    old = await asyncio.start_unix_server(answer, tmp_path / "old")
    store = connect(f"unix://{tmp_path / 'old'}")
    try:
        with pytest.raises(BackendError, match=r"runs Redis 6\.0\.16; fastjobs needs Redis 6\.2 or newer"):
            await store.open()
        with pytest.raises(BackendError, match=r"runs Redis 6\.0\.16"):
            await push(store, entry("a"))
    finally:
        await store.close()
        old.close()
        await old.wait_closed()


BAD_URLS = [
    *("redis://h:port/0", "redis://h/0?namespace=a{b}", "redis://h/0?namespace=", "redis://[h/0"),
    *("redis://h/5x", "redis://h/a", "unix:///s?db=a", "redis://h?nmespace=a"),  # redis-py takes database 0, or fails later
]


@pytest.mark.parametrize("url", BAD_URLS)
def test_a_bad_url_is_a_config_error(url: str) -> None:
    with pytest.raises(ConfigError):
        RedisBackend(url)


async def test_namespaces_are_apart_and_all_keys_of_one_share_a_hash_tag(
    server: RedisServer, client: Any, connect: Connect
) -> None:
    shop, bank = (connect(f"{server.url}?db=0&namespace={name}") for name in ("shop", "bank"))
    await push(shop, entry("a"), entry("b", delay_s=HOUR))
    assert await (await worker(bank)).drain() == []
    assert (await (await worker(shop)).claim()).jobs == ["a"]
    assert {key.partition(b":")[0] for key in await snapshot(client)} == {b"{shop}", b"{bank}"}


async def test_a_queue_named_twice_is_served_once(store: RedisBackend) -> None:
    hand = await worker(store)
    await push(store, *entries(numbered(15)), entry("due", delay_s=HOUR), entry("later", delay_s=9 * HOUR))
    store.time_shift_s = 2 * HOUR
    assert (await hand.claim(limit=20, queues=["q", "q"])).jobs == [*numbered(15), "due"]
    assert [(queue.ready, queue.delayed) for queue in (await store.stats()).queues] == [(0, 1)]


async def test_an_id_that_is_no_id_is_refused_before_anything_is_stored(store: RedisBackend, client: Any) -> None:
    with pytest.raises(BackendError, match="16 bytes"):
        await push(store, Entry(b"short", "q", 5, b"a", None, 60.0))
    assert await snapshot(client) == {}


# -- errors -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (refusals.ConnectionError("lost"), StoreUnavailable),
        (refusals.TimeoutError("late"), StoreUnavailable),
        (OSError("unreachable"), StoreUnavailable),
        (refusals.BusyLoadingError("Redis is loading the dataset in memory"), StoreUnavailable),
        (refusals.ReadOnlyError("You can't write against a read only replica."), StoreUnavailable),
        (refusals.MasterDownError("Link with MASTER is down"), StoreUnavailable),
        (refusals.ClusterDownError("The cluster is down"), StoreUnavailable),
        (refusals.TryAgainError("Multiple keys request during rehashing of slot"), StoreUnavailable),
        (refusals.ResponseError("BUSY Redis is busy running a script."), StoreUnavailable),
        (refusals.ResponseError("MISCONF Redis is configured to save RDB snapshots"), StoreUnavailable),
        (refusals.ResponseError("FJ_FAILED -READONLY You can't write against a read only replica."), StoreUnavailable),
        (refusals.ResponseError("UNBLOCKED force unblock from blocking operation"), StoreUnavailable),
        (refusals.AuthenticationError("invalid username-password pair"), BackendError),
        (refusals.NoPermissionError("this user has no permissions"), BackendError),
        (refusals.OutOfMemoryError("command not allowed"), BackendError),
        (refusals.ResponseError("WRONGTYPE Operation against a key"), BackendError),
        (refusals.InvalidResponse("Protocol Error"), BackendError),
        (refusals.DataError("Invalid input"), BackendError),
        (refusals.ResponseError("FJ_GONE worker x is unknown"), WorkerGone),
    ],
)
def test_every_error_of_redis_py_becomes_one_of_ours(error: Exception, expected: type[BackendError]) -> None:
    found = translate(error, "redis://h/0")
    assert type(found) is expected
    assert str(found)


async def test_a_password_is_shown_nowhere(server: RedisServer, client: Any, connect: Connect) -> None:
    await client.acl_setuser("tenant", enabled=True, passwords=["+right"], keys=["*"], commands=["+@all"])
    store = connect(server.tcp_url.replace("//", "//tenant:hush-hush@"))
    assert "tenant:***@127.0.0.1" in store.url
    with pytest.raises(BackendError, match="refused the user or password") as refused:
        await store.stats()
    assert not isinstance(refused.value, StoreUnavailable)
    nobody = connect("redis://:hush-hush@127.0.0.1:1/0")
    with pytest.raises(StoreUnavailable) as unreachable:
        await nobody.open()
    assert "hush" not in f"{store.url}{refused.value}{nobody.url}{unreachable.value}"


async def test_a_replica_is_an_unavailable_store(store: RedisBackend, client: Any) -> None:
    hand = await worker(store)
    await client.replicaof("127.0.0.1", 1)
    with pytest.raises(StoreUnavailable):
        await push(store, entry("a"))
    with pytest.raises(StoreUnavailable):
        await hand.claim()
    await client.replicaof("NO", "ONE")
    await push(store, entry("a"))
    assert await hand.drain() == ["a"]


async def test_calls_go_on_after_the_server_forgot_its_scripts(store: RedisBackend, client: Any) -> None:
    hand = await worker(store)
    await push(store, entry("a"))
    await client.script_flush()
    assert await hand.drain() == ["a"]


async def test_a_silent_server_is_an_unavailable_store(server: RedisServer, client: Any, connect: Connect) -> None:
    store = connect(server.url, call_timeout_s=0.2)
    await push(store, entry("a"))
    os.kill(server.pid, signal.SIGSTOP)
    try:
        with pytest.raises(StoreUnavailable, match="has not answered"):
            await store.stats()
    finally:
        os.kill(server.pid, signal.SIGCONT)
    assert [queue.ready for queue in (await store.stats()).queues] == [1]


async def test_after_a_restart_without_persistence_every_worker_is_gone(connect: Connect) -> None:
    server = RedisServer().start()
    try:
        store = connect(server.url)
        hand = await worker(store)
        server.kill()
        with pytest.raises(StoreUnavailable):
            await hand.claim()
        server.restart()
        with pytest.raises(WorkerGone):
            await hand.claim()
        with pytest.raises(WorkerGone):
            await hand.adopt("other.1")
        assert not await store.renew("here")
    finally:
        server.stop()


async def test_after_a_crash_with_persistence_claims_and_jobs_are_as_they_were(connect: Connect) -> None:
    server = RedisServer(appendonly=True, appendfsync="always").start()
    try:
        store = connect(server.url)
        hand = await worker(store)
        await push(store, entry("a"), entry("b"), entry("c", delay_s=HOUR))
        claim = await hand.claim(limit=1)
        server.kill()
        with pytest.raises(StoreUnavailable):
            await hand.claim()
        server.restart()
        assert await hand.drain() == ["b"]
        assert await hand.settle(claim.done()) == [True]
        assert [queue.delayed for queue in (await store.stats()).queues] == [1]
    finally:
        server.stop()


async def test_cancelled_calls_leave_no_reply_behind(store: RedisBackend) -> None:
    await push(store, *entries(numbered(100)))
    hand = await worker(store)
    for steps in range(12):
        call = asyncio.create_task(store.peek("q", 100))
        for _ in range(steps):
            await asyncio.sleep(0)
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        assert (await store.stats()).running == 0
    assert await hand.drain() == numbered(100)


async def test_many_calls_at_once_share_a_bounded_number_of_connections(store: RedisBackend, client: Any) -> None:
    await asyncio.gather(*[push(store, entry(name)) for name in numbered(200)])
    assert sum(queue.ready for queue in (await store.stats()).queues) == 200
    assert len(await client.client_list()) <= 40


# -- memory -------------------------------------------------------------------------------------------------------------------


async def test_a_full_server_takes_no_jobs_and_still_empties(store: RedisBackend, client: Any) -> None:
    """A claim needs memory before its settlement frees any: were it refused, a full server would stay full."""
    hand = await worker(store)
    await push(store, *entries(numbered(300), envelope=b"x" * 1000))
    await push(store, entry("late", delay_s=HOUR))
    await client.config_set("maxmemory", (await client.info("memory"))["used_memory"] - 100_000)
    before = await snapshot(client)
    with pytest.raises(BackendError, match="out of memory and stored nothing: raise its maxmemory") as refused:
        await push(store, entry("refused"), entry("refused too", delay_s=HOUR))
    assert not isinstance(refused.value, StoreUnavailable)
    assert await snapshot(client) == before
    assert await store.renew("here")
    other = await worker(store, "there.1")
    store.time_shift_s = 2 * HOUR
    claim = await hand.claim(limit=2)
    assert await hand.settle(claim.ended(retry(0, entry("a")), dead(1, entry("b")))) == [True]
    claim = await hand.claim(limit=50)
    adopted, _ = await other.adopt(hand.id)
    assert adopted.jobs == claim.jobs
    assert await other.settle(adopted.done()) == [True]
    assert len(await other.drain()) == 300 - 52 + 2


# -- scripts that fail half-way -----------------------------------------------------------------------------------------------

FAILING = """
local real, calls_left = redis, {calls}
local redis = setmetatable({{call = function(...)
  calls_left = calls_left - 1
  if calls_left == 0 then error('ERR this call fails') end
  return real.call(...)
end}}, {{__index = real}})
"""

Act = Callable[[RedisBackend], Awaitable[Any]]


async def _prepared(store: RedisBackend) -> None:
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


def jobs_in(found: Snapshot, namespace: str) -> Counter[bytes]:
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


@pytest.mark.parametrize(
    ("name", "act"),
    [
        ("exchange", _exchange),
        ("push", _push),
        ("adopt", _adopt_all),
        ("adopt", _adopt_one),
        ("register", _register),
        ("dead_requeue", _requeue),
    ],
)
async def test_a_call_that_fails_inside_a_script_loses_no_job_and_may_be_repeated(
    server: RedisServer, client: Any, connect: Connect, monkeypatch: pytest.MonkeyPatch, name: str, act: Act
) -> None:
    """Each redis.call of the script fails in turn: all is as before, or the work is done and its repeat says so."""
    whole = backend_module.SCRIPTS[name]
    model = connect(server.url, namespace=next(namespaces))
    await _prepared(model)
    answer = await act(model)
    done = jobs_in(await snapshot(client), model.namespace)
    undone = 0
    for calls in itertools.count(1):
        await client.flushall()
        store = connect(server.url, namespace=next(namespaces))
        await _prepared(store)
        before = await snapshot(client)
        with monkeypatch.context() as failing:
            failing.setitem(backend_module.SCRIPTS, name, Script(name, FAILING.format(calls=calls) + whole.text))
            error = await _error_of(act(store))
        if error is None:
            break  # it makes fewer calls than that
        assert type(error) is BackendError
        assert "this call fails" in str(error)
        undone += await snapshot(client) == before
        assert await act(store) == answer
        left = done - jobs_in(await snapshot(client), store.namespace)
        assert left == Counter(), f"lost when call {calls} failed"
    assert undone == calls - 1 - REMOVALS[act.__name__]


async def _error_of(call: Awaitable[Any]) -> BackendError | None:
    try:
        await call
    except BackendError as error:
        return error
    return None


REMOVALS = {"_exchange": 4, "_push": 0, "_adopt_all": 5, "_adopt_one": 1, "_register": 0, "_requeue": 0}
"""Calls at the end of a script that may fail with the work done: they only remove what was copied."""


async def test_nothing_is_left_of_a_whole_life_but_names_and_a_producers_record(store: RedisBackend, client: Any) -> None:
    await _prepared(store)
    await store.adopt("there.1", 1, "here.1", None, 100)
    there = await worker(store, "there.1")
    there.n = 1
    await there.settle(Claim(1, []).done())
    await there.drain()
    await store.purge("q")
    assert await store.dead_delete([job_id("dead")]) == [True]
    assert await store.retire("there.1")
    left = {key.partition(b":")[2]: await client.ttl(key) for key in await snapshot(client)}
    assert left.pop(b"queues") == -1
    assert {key.partition(b":")[0] for key in left} == {b"producer"}
    assert all(0 < seconds <= 600 for seconds in left.values())


def test_connections_share_what_redis_py_reads_of_itself_from_its_files() -> None:
    links = Links("redis://h/0", 5.0, 30.0)
    first, second = (links._new()._opener for _ in range(2))
    if not hasattr(first, "driver_info"):
        pytest.skip("this redis-py reads nothing of itself")
    assert first.driver_info is second.driver_info


# -- waiting and claiming in one call -----------------------------------------------------------------------------------------


async def blocked(client: Any) -> None:
    """Wait until a client of the server waits for a wake-up."""
    async with asyncio.timeout(10):
        while not (await client.info("clients"))["blocked_clients"]:
            await asyncio.sleep(0.005)


def waiting(store: RedisBackend, hand: Worker, n: int, timeout_s: float = 10.0) -> asyncio.Task[Any]:
    return asyncio.create_task(store.claim_when_ready(hand.id, n, ["q"], 10, timeout_s))


async def test_a_claim_waits_for_its_job_at_the_server(store: RedisBackend, client: Any) -> None:
    hand = await worker(store)
    claim = waiting(store, hand, 1)
    await blocked(client)
    await push(store, *entries(numbered(2)))
    answer = await claim
    assert answer.jobs == [b"job-0", b"job-1"]
    assert await open_claims(store, hand.id) == [1]
    assert (await store.exchange(hand.id, 2, [Settlement(1)], ["q"], 0)).kept == [True]


async def test_a_claim_that_waits_in_vain_ends_empty(store: RedisBackend) -> None:
    hand = await worker(store)
    assert (await waiting(store, hand, 1, 0.05)).jobs == []
    assert await open_claims(store, hand.id) == []


async def test_a_claim_of_what_is_there_or_falls_due_does_not_wait_for_more(store: RedisBackend) -> None:
    hand = await worker(store)
    await push(store, entry("now"))
    assert (await waiting(store, hand, 1)).jobs == [b"now"]
    await push(store, entry("soon", delay_s=0.1))
    assert (await waiting(store, hand, 2)).jobs == [b"soon"]


async def test_a_waiting_claim_that_a_later_call_has_passed_claims_nothing(store: RedisBackend, client: Any) -> None:
    hand = await worker(store)
    claim = waiting(store, hand, 1)
    await blocked(client)
    await store.exchange(hand.id, 2, [], ["q"], 0)
    await push(store, entry("a"))
    with pytest.raises(StaleCall):
        await claim
    assert await store.peek("q", 10) == [b"a"]
    assert (await store.exchange(hand.id, 3, [], ["q"], 10)).jobs == [b"a"]


async def test_a_waiting_claim_that_is_cancelled_claims_nothing(store: RedisBackend, client: Any) -> None:
    hand = await worker(store)
    claim = waiting(store, hand, 1)
    await blocked(client)
    claim.cancel()
    with pytest.raises(asyncio.CancelledError):
        await claim
    async with asyncio.timeout(10):
        while (await client.info("clients"))["blocked_clients"]:
            await asyncio.sleep(0.005)
    await push(store, entry("a"))
    assert await store.peek("q", 10) == [b"a"]
    assert (await store.exchange(hand.id, 1, [], ["q"], 10)).jobs == [b"a"]


async def test_a_waiting_claim_survives_that_the_server_forgets_its_scripts(store: RedisBackend, client: Any) -> None:
    hand = await worker(store)
    claim = waiting(store, hand, 1)
    await blocked(client)
    await client.script_flush()
    await push(store, entry("a"))
    assert (await claim).jobs == [b"a"]
