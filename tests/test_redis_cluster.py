"""Redis Cluster: nodes are found, again after a failover, and partitions lie evenly over them."""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
import redis.asyncio

from fastjobs.backends import make_store
from fastjobs.backends.base import Store
from fastjobs.backends.redis_partitions import MOST, SLOTS, slot_of, tags
from fastjobs.errors import BackendError, ConfigError, StoreUnavailable
from fastjobs.model import Settlement
from tests.contract.kit import counts, entries, entry, numbered, push, worker
from tests.servers.redis import RedisCluster, RedisServer
from tests.stores import names

Connect = Callable[[str], Store]


@pytest.fixture(scope="module")
def cluster() -> Iterator[RedisCluster]:
    """Of this module alone: some tests move its slots."""
    made = RedisCluster()
    try:
        yield made.start()
    finally:
        made.stop()


@pytest.fixture
async def connect() -> AsyncIterator[Connect]:
    """Makes backends that are closed after the test."""
    made: list[Store] = []

    def make(url: str) -> Store:
        made.append(make_store(url))
        return made[-1]

    yield make
    for backend in made:
        await backend.close()


@pytest.fixture
def namespace() -> str:
    return next(names)


async def drained(store: Store, id: str = "here.1") -> list[str]:
    return await (await worker(store, id)).drain()


def node(server: RedisServer) -> str:
    """Its URL."""
    return f"redis://{server.address}/0"


# -- where partitions lie -----------------------------------------------------------------------------------------------------


def test_slots_are_as_the_specification_has_them() -> None:
    assert slot_of("123456789") == 0x31C3  # its own example of the CRC
    assert slot_of("foo") == 12_182  # CLUSTER KEYSLOT foo


@pytest.mark.parametrize("partitions", [2, 3, 5, 6, 64, MOST])
def test_each_partition_has_its_own_equal_range_of_slots(partitions: int) -> None:
    found = list(tags("shop", partitions))
    assert len(set(found)) == partitions
    assert [slot_of(tag) * partitions // SLOTS for tag in found] == list(range(partitions))


async def test_three_partitions_lie_on_three_primaries(cluster: RedisCluster, connect: Connect, namespace: str) -> None:
    store = connect(f"{cluster.url}?partitions=3&namespace={namespace}")
    for seq in range(30):
        await store.push("one", seq, 0, entries(numbered(5, str(seq))))
    keys = [primary.command("KEYS", f"{{{namespace}:*ready:q:5") for primary in cluster.primaries]
    assert keys == ["1", "1", "1"]  # an array's length
    assert len(await drained(store)) == 150


# -- finding the node ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", [0, 1, 2])
async def test_any_node_leads_to_the_one_that_holds_the_jobs(
    cluster: RedisCluster, connect: Connect, namespace: str, first: int
) -> None:
    store = connect(f"{node(cluster.nodes[first])}?namespace={namespace}")
    await push(store, *entries(numbered(3)))
    assert await drained(store) == numbered(3)
    assert await store.wait(["q"], 0.01) is False


async def test_a_node_that_is_away_at_the_start_is_passed_over(cluster: RedisCluster, connect: Connect, namespace: str) -> None:
    store = connect(f"redis://127.0.0.1:1,{cluster.nodes[0].address}/0?namespace={namespace}")
    with pytest.raises(StoreUnavailable):
        await store.open()
    await store.open()
    await push(store, entry("a"))
    assert await drained(store) == ["a"]


async def test_jobs_are_followed_when_their_slot_moves(cluster: RedisCluster, connect: Connect, namespace: str) -> None:
    store = connect(f"{node(cluster.nodes[0])}?namespace={namespace}")
    await push(store, entry("a"))
    hand = await worker(store)
    claim = await hand.claim()
    slot = slot_of(namespace)
    owner = next(one for one in cluster.primaries if int(one.command("CLUSTER", "COUNTKEYSINSLOT", str(slot))))
    other = next(one for one in cluster.primaries if one is not owner)
    await move_slot(owner, other, slot, cluster)
    assert (await hand.exchange(claim.done(), limit=10)).kept == [True]
    await push(store, entry("b"))
    assert (await hand.claim()).jobs == ["b"]
    assert int(other.command("CLUSTER", "COUNTKEYSINSLOT", str(slot))) > 0
    assert await hand.settle(Settlement(hand.n)) == [True]


async def move_slot(owner: RedisServer, other: RedisServer, slot: int, cluster: RedisCluster) -> None:
    """With all its keys, as `valkey-cli --cluster reshard` does."""
    from_id, to_id = owner.command("CLUSTER", "MYID"), other.command("CLUSTER", "MYID")
    other.command("CLUSTER", "SETSLOT", str(slot), "IMPORTING", from_id)
    owner.command("CLUSTER", "SETSLOT", str(slot), "MIGRATING", to_id)
    host, _, port = other.address.partition(":")
    async with client_of(owner) as client:
        keys = await client.execute_command("CLUSTER GETKEYSINSLOT", slot, 1000)
        await client.execute_command("MIGRATE", host, port, "", 0, 5000, "KEYS", *keys)
    for one in (other, owner, *cluster.primaries):
        one.command("CLUSTER", "SETSLOT", str(slot), "NODE", to_id)


def client_of(server: RedisServer) -> Any:
    return redis.asyncio.from_url(node(server), decode_responses=True)


async def test_a_failover_loses_nothing_that_was_copied(connect: Connect, namespace: str) -> None:
    cluster = RedisCluster(3, replicas=1, **{"cluster-node-timeout": "500", "cluster-replica-validity-factor": "0"})
    try:
        cluster.start()
        store = connect(f"{cluster.url}?partitions=3&namespace={namespace}")
        await store.open()
        hand = await worker(store)
        for seq in range(12):
            await store.push("one", seq, 0, entries(numbered(10, str(seq))))
        claim = await hand.claim(limit=5)
        for primary in cluster.primaries:
            primary.command("WAIT", "1", "5000")
        cluster.primaries[0].kill()

        async def patiently(call: Callable[[], Any]) -> Any:
            async with asyncio.timeout(60):
                while True:
                    try:
                        return await call()
                    except StoreUnavailable:
                        await asyncio.sleep(0.1)  # as workers do, though these back off

        ran = list(claim.jobs)
        settlements = [claim.done()]
        while True:
            n = hand.number()
            answer = await patiently(lambda n=n, done=settlements: store.exchange(hand.id, n, done, ["q"], 50))
            assert all(answer.kept)
            if not answer.jobs:
                break
            ran += [job.decode() for job in answer.jobs]
            settlements = [Settlement(n)]
        assert Counter(ran) == Counter(name for seq in range(12) for name in numbered(10, str(seq)))
    finally:
        cluster.stop()


async def test_a_node_that_has_lost_its_cluster_is_passed_over(cluster: RedisCluster, connect: Connect, namespace: str) -> None:
    async def cut_off(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while commands := (await reader.read(4096)).count(b"*"):
            writer.write(b"-CLUSTERDOWN The cluster is down\r\n" * commands)
        writer.close()

    node = await asyncio.start_server(cut_off, "127.0.0.1", 0)
    try:
        port = node.sockets[0].getsockname()[1]
        store = connect(f"redis://127.0.0.1:{port},{cluster.nodes[0].address}/0?namespace={namespace}")
        with pytest.raises(StoreUnavailable, match="cluster is down"):
            await store.open()
        await push(store, entry("a"))
        assert await drained(store) == ["a"]
        await store.close()
    finally:
        node.close()


async def test_a_measurement_runs_over_partitions_and_leaves_no_key(cluster: RedisCluster) -> None:
    command = (sys.executable, "-m", "fastjobs", "bench", "--backend", f"{cluster.url}?partitions=3", "--scenario", "noop")
    process = await asyncio.create_subprocess_exec(*command, "--jobs", "500", "--json", stdout=asyncio.subprocess.PIPE)
    said, _ = await process.communicate()
    (found,) = json.loads(said)["results"]
    assert found["jobs"] == 500
    assert found["store_drain_cpu_us"] is not None
    assert [primary.command("KEYS", "*fastjobs_bench*") for primary in cluster.primaries] == ["0", "0", "0"]


# -- what is refused ----------------------------------------------------------------------------------------------------------


async def test_another_number_of_partitions_is_refused_by_everybody(
    cluster: RedisCluster, connect: Connect, namespace: str
) -> None:
    await push(connect(f"{cluster.url}?partitions=3&namespace={namespace}"), entry("a"))
    for options, said in (("&partitions=4", "in 3 partitions, not 4"), ("", "in 3 partitions: add partitions=3")):
        stranger = connect(f"{cluster.url}?namespace={namespace}{options}")
        for call in (stranger.open, lambda one=stranger: push(one, entry("b")), lambda one=stranger: one.register("there.1")):
            with pytest.raises(BackendError, match=said):
                await call()
    assert (await counts(connect(f"{cluster.url}?partitions=3&namespace={namespace}"))).ready == 1


async def test_jobs_of_a_time_without_partitions_are_not_left_behind(
    cluster: RedisCluster, connect: Connect, namespace: str
) -> None:
    whole = connect(f"{cluster.url}?namespace={namespace}")
    await push(whole, *entries(numbered(2)))
    cut = f"{cluster.url}?partitions=3&namespace={namespace}"
    with pytest.raises(BackendError, match="holds 2 jobs of a time without partitions"):
        await connect(cut).open()
    assert await drained(whole) == numbered(2)
    hand = await worker(whole, "there.1")
    assert await whole.retire(hand.id)
    await push(connect(cut), entry("a"))
    assert await drained(connect(cut)) == ["a"]


async def test_one_partition_is_no_partition(cluster: RedisCluster, connect: Connect, namespace: str) -> None:
    await push(connect(f"{cluster.url}?partitions=1&namespace={namespace}"), entry("a"))
    assert await drained(connect(f"{cluster.url}?namespace={namespace}")) == ["a"]


@pytest.mark.parametrize("count", ["0", "-1", "x", "", str(MOST + 1), "3.5", "³", "9" * 5000])
def test_a_bad_number_of_partitions_is_refused(count: str) -> None:
    with pytest.raises(ConfigError, match=f"partitions: must be 1 to {MOST}"):
        make_store(f"redis://h/0?partitions={count}")


@pytest.mark.parametrize("url", ["redis://h:1,i:x/0", "redis://h:1,i:99999/0", "redis://[::1,i/0"])
def test_a_bad_address_among_several_is_named(url: str) -> None:
    with pytest.raises(ConfigError, match="is no Redis URL"):
        make_store(url)


async def test_servers_that_are_no_cluster_are_not_taken_for_one(connect: Connect) -> None:
    server = RedisServer("valkey").start()
    try:
        store = connect(f"redis://{server.address},{server.address}/0")
        for call in (store.open, lambda: push(store, entry("a"))):
            with pytest.raises(BackendError, match="several servers, but the first that answers is no node of a Redis Cluster"):
                await call()
    finally:
        server.stop()


async def test_a_cluster_named_by_a_socket_says_what_to_do(cluster: RedisCluster, connect: Connect, namespace: str) -> None:
    elsewhere = next(one for one in cluster.primaries if not one.holds(slot_of(namespace)))
    with pytest.raises(BackendError, match="name it by redis://host:port, not by a socket"):
        await push(connect(f"{elsewhere.url}?namespace={namespace}"), entry("a"))
