"""Redis Sentinel: the primary is found, verified, and followed through failovers; URLs and errors say what is wrong."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Literal, TypeVar

import pytest
import redis.asyncio

from fastjobs import JobQueue, WorkerOptions, rescue
from fastjobs.backends import make_store, mask_password, redis_sentinel
from fastjobs.backends.base import Store
from fastjobs.backends.redis_link import Links
from fastjobs.backends.redis_url import Watched, split_sentinels
from fastjobs.errors import BackendError, ConfigError, StoreUnavailable
from tests.contract.kit import entries, entry, numbered, push, worker
from tests.servers.ports import free_port
from tests.servers.sentinel import SERVICE, RedisSentinel
from tests.stores import names
from tests.working import SOON_S, until

T = TypeVar("T")

Connect = Callable[[str], Store]


@pytest.fixture(scope="module")
def fleet() -> Iterator[RedisSentinel]:
    """A primary and a replica; nobody harms them but by a failover."""
    made = RedisSentinel()
    try:
        yield made.start()
    finally:
        made.stop()


@pytest.fixture
async def connect() -> AsyncIterator[Connect]:
    """Makes backends on a namespace of the test; they are closed after it."""
    made: list[Store] = []
    namespace = next(names)

    def make(url: str) -> Store:
        made.append(make_store(f"{url}{'&' if '?' in url else '?'}namespace={namespace}"))
        return made[-1]

    yield make
    for backend in made:
        await backend.close()


async def drained(store: Store, id: str = "here.1") -> list[str]:
    return await (await worker(store, id)).drain()


# -- URLs ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "server", "watched"),
    [
        ("redis+sentinel://a/m", "redis://localhost/", Watched("m", (("a", 26379),), None, None)),
        (
            "redis+sentinel://a:1,b,[::1]:2/my%20primary/3",
            "redis://localhost/3",
            Watched("my primary", (("a", 1), ("b", 26379), ("::1", 2)), None, None),
        ),
        (
            "rediss+sentinel://me:s%40y@a:1,b:2/m/0?sentinel_username=u&sentinel_password=p%26q&ssl_ca_certs=ca.pem",
            "rediss://me:s%40y@localhost/0?ssl_ca_certs=ca.pem",
            Watched("m", (("a", 1), ("b", 2)), "u", "p&q"),
        ),
        ("redis://a:1,b:2/0", "redis://a:1,b:2/0", None),
    ],
)
def test_a_url_names_sentinels_a_service_a_database_and_credentials(url: str, server: str, watched: Watched | None) -> None:
    assert split_sentinels(url) == (server, watched)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        (
            "redis+sentinel://a:26379",
            "must name the primary as the sentinels do, redis[+]sentinel://host:26379,host:26379/mymaster",
        ),
        ("redis+sentinel://a:26379/", "must name the primary"),
        ("rediss+sentinel://a/m/0/1", "must name the primary as the sentinels do, rediss[+]sentinel://"),
        ("redis+sentinel://a/m/zero", "its database must be a number"),
        ("redis+sentinel://a:x/m", "is no Redis URL"),
        ("redis+sentinel://a/m?colour=red", "no such option: 'colour'"),
    ],
)
def test_a_url_that_cannot_be_meant_is_refused(url: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        make_store(url)


def test_no_password_of_a_url_is_shown() -> None:
    url = "valkeys+sentinel://me:hush@a,b/m/0?sentinel_password=hush&ssl_password=hush&namespace=shop"
    assert mask_password(url) == "valkeys+sentinel://me:***@a,b/m/0?sentinel_password=***&ssl_password=***&namespace=shop"
    assert make_store(url).url == mask_password(url).replace("valkeys", "rediss")


def test_tls_is_for_servers_and_sentinels_alike(tmp_path: Path) -> None:
    ca = str(tmp_path / "ca.pem")
    links = Links(f"rediss+sentinel://me:one@a,b/m?sentinel_password=two&ssl_ca_certs={ca}", 5.0, 30.0)
    assert links._sentinels is not None
    assert links._source.connection_class is links._sentinels._kind is redis.asyncio.SSLConnection
    for options, credentials in ((links._source.connection_kwargs, ("me", "one")), (links._sentinels._options, (None, "two"))):
        assert options["ssl_ca_certs"] == ca
        assert (options["username"], options["password"]) == credentials


# -- finding the primary ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["redis", "valkey"])
async def test_jobs_go_to_the_primary_and_come_from_it(fleet: RedisSentinel, connect: Connect, scheme: str) -> None:
    store = connect(fleet.url.replace("redis", scheme))
    await store.open()
    await push(store, *entries(numbered(3)))
    assert await store.wait(["q"], 0.01) is True
    assert await drained(store) == numbered(3)
    assert await store.wait(["q"], 0.01) is False


async def test_partitions_are_found_in_the_same_way(fleet: RedisSentinel, connect: Connect) -> None:
    store = connect(f"{fleet.url}?partitions=3")
    await push(store, *entries(numbered(30)))
    assert sorted(await drained(store)) == sorted(numbered(30))


async def test_a_name_that_no_sentinel_knows_is_an_error_that_says_so(fleet: RedisSentinel, connect: Connect) -> None:
    store = connect(fleet.url.replace(SERVICE, "other"))
    with pytest.raises(BackendError, match=rf"{fleet.hosts}: knows no primary named 'other'") as refused:
        await store.open()
    assert not isinstance(refused.value, StoreUnavailable)


async def test_without_any_sentinel_the_store_is_unavailable(connect: Connect) -> None:
    one, other = free_port(), free_port()
    store = connect(f"redis+sentinel://127.0.0.1:{one},127.0.0.1:{other}/{SERVICE}")
    with pytest.raises(StoreUnavailable, match=rf"no sentinel answers: 127.0.0.1:{one}: .*; 127.0.0.1:{other}: "):
        await store.open()


async def test_sentinels_that_are_away_or_silent_are_passed_over(
    fleet: RedisSentinel, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_sentinel, "ANSWER_S", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # connections wait in its backlog
        port = silent.getsockname()[1]
        store = connect(f"redis+sentinel://127.0.0.1:{free_port()},127.0.0.1:{port},{fleet.hosts}/{SERVICE}")
        await push(store, entry("a"))
        assert await drained(store) == ["a"]


async def test_a_server_where_a_sentinel_should_be_and_the_reverse(fleet: RedisSentinel, connect: Connect) -> None:
    with pytest.raises(BackendError, match=r"the sentinels name no primary: .* unknown command"):
        await connect(f"redis+sentinel://{fleet.primary.address}/{SERVICE}").open()
    with pytest.raises(BackendError, match=r"is a sentinel: use redis[+]sentinel://host:26379/mymaster"):
        await connect(f"redis://{fleet.hosts}").open()


async def test_servers_and_sentinels_have_passwords_of_their_own(connect: Connect) -> None:
    fleet = RedisSentinel("redis", replicas=0)
    try:
        fleet.start()
        for server, password in ((fleet.servers[0], "one"), (fleet.sentinels[0], "two")):
            server.command("ACL", "SETUSER", "me", "on", f">{password}", "~*", "+@all", "-role")
            server.command("ACL", "SETUSER", "default", "off")
        store = connect(fleet.url.replace("//", "//me:one@") + "?sentinel_username=me&sentinel_password=two")
        await push(store, entry("a"))
        assert await drained(store) == ["a"]
        for url in (fleet.url.replace("//", "//me:one@"), fleet.url + "?sentinel_username=me&sentinel_password=two"):
            with pytest.raises(BackendError) as refused:
                await connect(url).open()
            assert not isinstance(refused.value, StoreUnavailable)
            assert "two" not in str(refused.value)
    finally:
        fleet.stop()


async def test_a_sentinel_that_names_a_replica_is_not_believed(fleet: RedisSentinel, connect: Connect) -> None:
    """It may have been cut off from the others since before a failover."""
    host, _, port = fleet.replicas[0].address.partition(":")
    asked = 0

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        with contextlib.suppress(OSError):
            while data := await reader.read(4096):
                named = b"*2\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n" % (len(host), host.encode(), len(port), port.encode())
                if is_asked := b"GET-MASTER-ADDR-BY-NAME" in data:
                    asked += 1
                writer.write(named if is_asked else b"+OK\r\n" * data.count(b"*"))
        writer.close()

    stale = await asyncio.start_server(answer, "127.0.0.1")
    try:
        store = connect(f"redis+sentinel://127.0.0.1:{stale.sockets[0].getsockname()[1]},{fleet.hosts}/{SERVICE}")
        with pytest.raises(StoreUnavailable, match=f"the sentinels name {fleet.replicas[0].address}, which is a slave now"):
            await store.open()
        await push(store, entry("a"))
        assert await drained(store) == ["a"]
        assert asked == 1
    finally:
        stale.close()


# -- failovers ----------------------------------------------------------------------------------------------------------------


async def replicated(fleet: RedisSentinel) -> None:
    """Wait until what is stored now is on a replica too."""
    async with redis.asyncio.from_url(fleet.primary.url) as client:
        assert await client.wait(1, 10_000) == 1


async def answered(call: Callable[[], Awaitable[T]]) -> T:
    """The reply to *call*, repeated while the store is unavailable, as every caller does."""
    async with asyncio.timeout(SOON_S):
        while True:
            try:
                return await call()
            except StoreUnavailable:
                await asyncio.sleep(0.02)


async def test_a_failover_by_hand_is_followed(fleet: RedisSentinel, connect: Connect) -> None:
    store = connect(fleet.url)
    await push(store, entry("a"), entry("b"))
    hand = await worker(store)
    claim = await hand.claim(limit=1)
    await replicated(fleet)
    before = fleet.primary
    fleet.fail_over()
    host, _, port = fleet.primary.address.partition(":")
    before.command("REPLICAOF", host, port)  # what the sentinel does after some 10 s
    assert (await answered(lambda: store.exchange(hand.id, 2, [claim.done()], ["q"], 0))).kept == [True]
    hand.n = 2
    assert await hand.drain() == ["b"]


async def test_a_primary_that_becomes_a_replica_is_left_by_all_connections(fleet: RedisSentinel, connect: Connect) -> None:
    store = connect(fleet.url)
    await push(store, entry("a"))
    await asyncio.gather(*[store.stats() for _ in range(5)])  # connections that lie idle now
    primary = fleet.primary
    primary.command("REPLICAOF", "127.0.0.1", "1")
    try:
        with pytest.raises(StoreUnavailable, match=r"read only|READONLY"):
            await push(store, entry("b"))
        with pytest.raises(StoreUnavailable, match=f"the sentinels name {primary.address}, which is a slave now"):
            await push(store, entry("b"))
    finally:
        primary.command("REPLICAOF", "NO", "ONE")
    await push(store, entry("b"))
    assert await drained(store) == ["a", "b"]


@pytest.mark.parametrize("kind", ["redis", "valkey"])
async def test_the_primary_is_killed_under_load(kind: Literal["redis", "valkey"], monkeypatch: pytest.MonkeyPatch) -> None:
    """What a replica had and what was accepted afterwards runs. Asynchronous copies: what came in between may be lost."""
    monkeypatch.setattr(rescue, "CLAIMS_S", 0.2)
    fleet = RedisSentinel(kind)
    ran: Counter[int] = Counter()
    try:
        jobs = JobQueue(f"{fleet.start().url}?namespace=load")

        @jobs.job
        async def work(number: int) -> None:
            ran[number] += 1
            await asyncio.sleep(0.001)

        async with jobs:
            await jobs.enqueue_many(work.prepare(number) for number in range(2_000))
            await replicated(fleet)
            crew = asyncio.create_task(jobs.start_worker(WorkerOptions(concurrency=10)))
            await until(lambda: len(ran) >= 300)
            killed = fleet.primary
            killed.kill()
            between = range(2_000, 2_010)
            await asyncio.gather(*[work.enqueue(number) for number in between])  # they wait for the new primary
            assert fleet.primary is not killed
            assert len(ran) < 2_010
            await jobs.enqueue_many(work.prepare(number) for number in range(2_010, 2_100))
            await until(lambda: len(ran) == 2_100, 20.0)
            async with asyncio.timeout(SOON_S):
                while (stats := await jobs.stats()).running or any(queue.ready for queue in stats.queues):
                    await asyncio.sleep(0.05)
            assert not any(queue.delayed or queue.dead for queue in stats.queues)
            crew.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await crew
    finally:
        fleet.stop()
    assert sum(ran.values()) < 2_100 + 300 + 1_000  # what had been settled or claimed but not copied may run again
