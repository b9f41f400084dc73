"""What only the Redis backend promises: warnings, errors, memory, scripts that fail half-way. The rest: tests/contract."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
import redis.asyncio
from redis import exceptions as refusals

from fastjobs.backends.redis import RedisBackend
from fastjobs.backends.redis_link import Links, translate
from fastjobs.errors import BackendError, ConfigError, StoreUnavailable, WorkerGone
from fastjobs.model import Entry, Settlement
from tests.contract.kit import (
    HOUR,
    Worker,
    dead,
    entries,
    entry,
    numbered,
    open_claims,
    push,
    retry,
    worker,
)
from tests.servers.redis import RedisServer
from tests.stores import redis_snapshot

namespaces = (f"r{count}" for count in itertools.count())

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
    assert {key.partition(b":")[0] for key in await redis_snapshot(client)} == {b"{shop}", b"{bank}"}


async def test_a_queue_named_twice_is_served_once(store: RedisBackend) -> None:
    hand = await worker(store)
    await push(store, *entries(numbered(15)), entry("due", delay_s=HOUR), entry("later", delay_s=9 * HOUR))
    store.time_shift_s = 2 * HOUR
    assert (await hand.claim(limit=20, queues=["q", "q"])).jobs == [*numbered(15), "due"]
    assert [(queue.ready, queue.delayed) for queue in (await store.stats()).queues] == [(0, 1)]


async def test_an_id_that_is_no_id_is_refused_before_anything_is_stored(store: RedisBackend, client: Any) -> None:
    with pytest.raises(BackendError, match="16 bytes"):
        await push(store, Entry(b"short", "q", 5, b"a", None, 60.0))
    assert await redis_snapshot(client) == {}


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


def test_the_password_of_a_key_file_is_shown_nowhere() -> None:
    url = "rediss://h/0?ssl_password=hush&ssl_ca_certs=ca"
    try:
        shown = RedisBackend(url).url
    except ConfigError as error:  # redis-py 6.0 does not know the option yet
        shown = str(error)
    assert "rediss://h/0?ssl_password=***&ssl_ca_certs=ca" in shown
    assert "hush" not in shown


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
    before = await redis_snapshot(client)
    with pytest.raises(BackendError, match="out of memory and stored nothing: raise its maxmemory") as refused:
        await push(store, entry("refused"), entry("refused too", delay_s=HOUR))
    assert not isinstance(refused.value, StoreUnavailable)
    assert await redis_snapshot(client) == before
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


@pytest.mark.parametrize("timeout_s", [0.0001, 0.001, 0.0019])
async def test_the_shortest_wait_ends_too(store: RedisBackend, timeout_s: float) -> None:
    hand = await worker(store)
    async with asyncio.timeout(10):
        assert await store.wait(["q"], timeout_s) is False
        assert (await store.claim_when_ready(hand.id, 1, ["q"], 10, timeout_s)).jobs == []


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
