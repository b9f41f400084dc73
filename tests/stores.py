"""A fresh, empty store of each kind for one test, and a look at what is left in it afterwards."""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
import tempfile
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Protocol

import asyncpg
import redis.asyncio
import uvloop

from fastjobs.backends.base import Store
from fastjobs.backends.broker import serve
from fastjobs.backends.memory import MemoryBackend
from fastjobs.backends.memory_core import MemoryStore
from fastjobs.backends.postgres import PostgresBackend
from fastjobs.backends.redis import RedisBackend
from fastjobs.backends.redis_partitions import redis_store, tags
from fastjobs.backends.redis_url import split_hosts
from fastjobs.backends.remote import SocketBackend

KINDS = ("memory", "socket", "redis", "valkey", "postgres")
PARTITIONED = "cluster"
"""A Redis Cluster of three primaries and as many partitions."""

names = (f"t{os.getpid()}x{count}" for count in itertools.count())
"""Namespaces and schemas: unlike those of other test processes on the same server."""


class Server(Protocol):
    """What the fixtures need of a running server."""

    @property
    def url(self) -> str: ...


class Place(Protocol):
    """Where one test keeps its jobs."""

    def backend(self) -> Store:
        """A new, unopened backend."""
        ...

    def url(self) -> str:
        """For another process."""
        ...

    async def leftovers(self) -> list[str]:
        """What a store still holds that has no jobs, no workers and no producers any more. Should be []."""
        ...


class BrokerThread:
    """A broker on an event loop of its own, in a private directory."""

    def __init__(self, core: MemoryStore) -> None:
        self.directory = tempfile.mkdtemp(prefix="fj-", dir="/tmp")
        self.path = f"{self.directory}/broker.sock"
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self._started = threading.Event()
        self._thread = threading.Thread(target=lambda: uvloop.run(self._run(core)), name="broker", daemon=True)
        self._thread.start()
        if not self._started.wait(10):
            raise RuntimeError("the broker did not start")

    async def _run(self, core: MemoryStore) -> None:
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.create_task(serve(self.path, store=core, started=self._started.set))
        await asyncio.wait([self._task])
        if not self._task.cancelled():
            self._task.result()

    def stop(self) -> None:
        """Idempotent."""
        if self._thread.is_alive():
            assert self._loop is not None
            assert self._task is not None
            self._loop.call_soon_threadsafe(self._task.cancel)
        self._thread.join(10)
        shutil.rmtree(self.directory, ignore_errors=True)


class MemoryPlace:
    """The memory store in this process; a broker serves it when another process asks."""

    def __init__(self) -> None:
        self.core = MemoryStore()
        self._broker: BrokerThread | None = None

    def backend(self) -> Store:
        return MemoryBackend(self.core)

    def url(self) -> str:
        if self._broker is None:
            self._broker = BrokerThread(self.core)
        return f"memory+unix://{self._broker.path}"

    async def leftovers(self) -> list[str]:
        core = self.core
        with core._lock:
            left = [f"worker {name}" for name in core._workers]
            left += [f"lease {name}" for name in core._leases]
            left += [f"producer {name}" for name in core._producers]
            left += [f"waiter on {name}" for name in core._watched]
            left += [f"dead letter {id.hex()}" for id in core._dead]
            for name, queue in core._queues.items():
                left += [f"job in {name}"] * (queue.ready() + len(queue.delayed) + len(queue.dead))
        return left

    def close(self) -> None:
        if self._broker is not None:
            self._broker.stop()


class SocketPlace(MemoryPlace):
    """The same, reached through the broker by everybody."""

    def backend(self) -> Store:
        return SocketBackend(self.url().removeprefix("memory+unix://"))


class RedisPlace:
    """A namespace of its own on a Redis or Valkey server."""

    def __init__(self, server: Server) -> None:
        self._server = server.url
        self._namespace = next(names)

    def backend(self) -> Store:
        return RedisBackend(self._server, namespace=self._namespace)

    def url(self) -> str:
        return f"{self._server}{'&' if '?' in self._server else '?'}namespace={self._namespace}"

    def _servers(self) -> list[str]:
        """That may hold keys."""
        return [self._server]

    def _prefixes(self) -> list[str]:
        """Of all keys."""
        return [f"{{{self._namespace}}}:"]

    async def leftovers(self) -> list[str]:
        left = []
        async for client, key in self._keys():
            name = key.decode().partition("}:")[2]
            ttl_s = await client.ttl(key)
            hint = name.startswith(("producer:", "wake:"))  # push records and wake-up markers: they expire by themselves
            if not (hint and 0 < ttl_s <= 7200) and name not in ("queues", "partitions"):  # names of queues that held jobs
                left.append(f"{key.decode()} (expires in {ttl_s} s)")
        return left

    async def drop(self) -> None:
        async for client, key in self._keys():
            await client.unlink(key)

    async def _keys(self) -> AsyncIterator[tuple[Any, bytes]]:
        """Every key, with a client of its server."""
        for url in self._servers():
            async with redis.asyncio.from_url(url) as client:
                for prefix in self._prefixes():
                    for key in [key async for key in client.scan_iter(match=f"{prefix}*", count=1000)]:
                        yield client, key


async def redis_snapshot(client: Any) -> dict[bytes, Any]:
    """Everything on the server but times to live; lists and sets of the same content are equal."""
    found: dict[bytes, Any] = {}
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


class ClusterPlace(RedisPlace):
    """A namespace of its own on a Redis Cluster, cut into *partitions*."""

    def __init__(self, server: Server, partitions: int = 3) -> None:
        super().__init__(server)
        self._partitions = partitions

    def backend(self) -> Store:
        return redis_store(f"{self._server}?partitions={self._partitions}", namespace=self._namespace)

    def url(self) -> str:
        return f"{self._server}?partitions={self._partitions}&namespace={self._namespace}"

    def _servers(self) -> list[str]:
        return [f"redis://{host}:{port}" for host, port in split_hosts(self._server)[1]]

    def _prefixes(self) -> list[str]:
        return [f"{{{tag}}}:" for tag in (self._namespace, *tags(self._namespace, self._partitions))]


class PostgresPlace:
    """A schema of its own on a Postgres server."""

    def __init__(self, server: Server) -> None:
        self._server = server.url
        self._schema = next(names)

    def backend(self) -> Store:
        return PostgresBackend(self._server, schema=self._schema)

    def url(self) -> str:
        return f"{self._server}{'&' if '?' in self._server else '?'}schema={self._schema}"

    async def leftovers(self) -> list[str]:
        connection = await asyncpg.connect(self._server)
        try:
            tables = await connection.fetch(
                "select relname from pg_class where relkind in ('r', 'p') and relnamespace = $1::text::regnamespace",
                self._schema,
            )
            left = []
            for (table,) in tables:
                if table not in ("meta", "queue"):  # the version, and the names of queues that held jobs
                    left += [f"{table}: {row!r}" for row in await connection.fetch(f'select * from "{self._schema}"."{table}"')]
            return left
        finally:
            await connection.close()

    async def drop(self) -> None:
        connection = await asyncpg.connect(self._server)
        try:
            await connection.execute(f'drop schema if exists "{self._schema}" cascade')
        finally:
            await connection.close()


class EmptySchema(PostgresPlace):
    """A schema that is not there yet."""

    @property
    def schema(self) -> str:
        return self._schema

    def store(self, *, pgbouncer: bool = False, migrate: bool = True, url: str | None = None) -> PostgresBackend:
        return PostgresBackend(url or self._server, schema=self._schema, pgbouncer=pgbouncer, migrate=migrate)

    async def connect(self) -> asyncpg.Connection[asyncpg.Record]:
        connection: asyncpg.Connection[asyncpg.Record] = await asyncpg.connect(self._server)
        return connection

    async def sql(self, *statements: str) -> list[asyncpg.Record]:
        """The rows of the last statement; {} stands for the schema."""
        connection = await self.connect()
        try:
            rows: list[asyncpg.Record] = []
            for statement in statements:
                rows = await connection.fetch(statement.replace("{}", f'"{self._schema}"'))
            return rows
        finally:
            await connection.close()


@asynccontextmanager
async def fresh_place(kind: str, server: Callable[[str], Server]) -> AsyncIterator[Place]:
    """An empty store of *kind*, its schema in place; gone afterwards. *server* starts or finds the server of a kind."""
    if kind in ("memory", "socket"):
        memory = MemoryPlace() if kind == "memory" else SocketPlace()
        try:
            yield memory
        finally:
            memory.close()
        return
    places = {"postgres": PostgresPlace, PARTITIONED: ClusterPlace}
    place = places.get(kind, RedisPlace)(server(kind))
    try:
        backend = place.backend()
        try:
            await backend.migrate()
        finally:
            await backend.close()
        yield place
    finally:
        await place.drop()
