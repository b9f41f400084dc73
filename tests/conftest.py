"""Servers, stores and event loops for all tests.

`any_store` and `store_url` run a test on every kind of store; choose some with ``-k "memory or redis"``. The servers are
private ones that the tests start, or yours: FASTJOBS_TEST_REDIS_URL, FASTJOBS_TEST_POSTGRES_URL. A server that cannot be
started fails the run. FASTJOBS_TEST_EXAMPLES (default 100) is how long property tests search.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass

import pytest
import uvloop
from hypothesis import settings

from fastjobs import JobQueue
from fastjobs.backends.base import Store
from tests.faults import FaultyBackend
from tests.servers.postgres import PostgresServer
from tests.servers.redis import RedisCluster, RedisServer
from tests.stores import KINDS, EmptySchema, Place, Server, fresh_place
from tests.working import fresh_store

settings.register_profile(
    "fastjobs", max_examples=int(os.environ.get("FASTJOBS_TEST_EXAMPLES", "100")), deadline=None, print_blob=True
)
settings.load_profile("fastjobs")


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--block-orjson``: the whole run with the pure-C codec, while orjson cannot be imported. ``--every-step``: see help."""
    parser.addoption("--every-step", action="store_true", help="network faults at every step, not at a sample: minutes")
    parser.addoption("--block-orjson", action="store_true", help="use the msgspec codec and make `import orjson` fail")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--block-orjson"):
        sys.modules["orjson"] = None  # type: ignore[assignment]
        os.environ["FASTJOBS_CODEC"] = "msgspec"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What is about orjson itself is left out, and counted as deselected, where orjson is blocked."""
    if config.getoption("--block-orjson"):
        about = [
            item
            for item in items
            if item.get_closest_marker("orjson") or "orjson" in getattr(getattr(item, "callspec", None), "params", {}).values()
        ]
        config.hook.pytest_deselected(items=about)
        items[:] = [item for item in items if item not in set(about)]


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """All async tests run on uvloop, as workers do."""
    return {"uvloop": uvloop.new_event_loop}


@dataclass(frozen=True)
class UsersServer:
    """A server that somebody else keeps."""

    url: str


@pytest.fixture(scope="session")
def redis_server() -> Iterator[Server]:
    """The lowest supported Redis, or the user's."""
    yield from _redis("redis")


@pytest.fixture(scope="session")
def valkey_server() -> Iterator[Server]:
    """The newest Valkey."""
    yield from _redis("valkey")


def _redis(kind: str) -> Iterator[Server]:
    url = os.environ.get("FASTJOBS_TEST_REDIS_URL")
    if url and kind == "redis":
        yield UsersServer(url)
        return
    server = RedisServer("redis" if kind == "redis" else "valkey")
    try:
        server.start()
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="session")
def cluster_server() -> Iterator[Server]:
    """A Redis Cluster of three primaries."""
    cluster = RedisCluster()
    try:
        yield cluster.start()
    finally:
        cluster.stop()


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Server]:
    """The wheel's Postgres, or the user's."""
    url = os.environ.get("FASTJOBS_TEST_POSTGRES_URL")
    if url:
        yield UsersServer(url)
        return
    server = PostgresServer()
    try:
        server.start()
        yield server
    finally:
        server.stop()


@pytest.fixture
def store() -> FaultyBackend:
    """An empty memory store that can be made to fail."""
    return fresh_store()


@pytest.fixture
def jobs(store: FaultyBackend) -> JobQueue:
    """An app without handlers on `store`."""
    return JobQueue(store)


@pytest.fixture(params=KINDS)
def store_kind(request: pytest.FixtureRequest) -> str:
    """The kind of the store that a test runs on."""
    return str(request.param)


@pytest.fixture
async def place(store_kind: str, request: pytest.FixtureRequest) -> AsyncIterator[Place]:
    """Where the test's jobs are; nobody else uses it."""
    async with fresh_place(store_kind, lambda kind: request.getfixturevalue(f"{kind}_server")) as fresh:
        yield fresh


@pytest.fixture
async def any_store(place: Place) -> AsyncIterator[Store]:
    """An empty store of each kind in turn."""
    backend = place.backend()
    yield backend
    await backend.close()


@pytest.fixture
def store_url(place: Place) -> str:
    """A URL of the same store as `any_store`'s that other processes can use too."""
    return place.url()


@pytest.fixture
async def empty(postgres_server: Server) -> AsyncIterator[EmptySchema]:
    place = EmptySchema(postgres_server)
    yield place
    await place.drop()
