"""The private Redis and Postgres of a run; each measurement finds its store empty."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from contextlib import contextmanager

import asyncpg
import redis

from tests.servers.postgres import PostgresServer
from tests.servers.redis import RedisServer


class Stores:
    """Two servers."""

    def __init__(self, redis_server: str | None) -> None:
        self.redis = RedisServer("valkey", bin=redis_server)
        self.postgres = PostgresServer.durable()

    @contextmanager
    def run(self) -> Iterator[Stores]:
        """Started, and stopped at the end."""
        try:
            self.redis.start()
            self.postgres.start()
            yield self
        finally:
            self.redis.stop()
            self.postgres.stop()

    def versions(self) -> dict[str, str]:
        """Of both servers."""
        with redis.Redis.from_url(self.redis.tcp_url) as client:
            info = client.info("server")
        version = info.get("valkey_version") or info["redis_version"]
        return {
            "redis": f"{'Valkey' if 'valkey_version' in info else 'Redis'} {version}",
            "postgres": asyncio.run(self._postgres_version()),
        }

    async def _postgres_version(self) -> str:
        connection = await asyncpg.connect(self.postgres.url)
        try:
            full = str(await connection.fetchval("select version()"))
        finally:
            await connection.close()
        found = re.match(r"PostgreSQL [\d.]+", full)
        return found[0] if found else full

    @contextmanager
    def empty(self, kind: str) -> Iterator[str]:
        """The URL of an empty store."""
        if kind == "redis":
            with redis.Redis.from_url(self.redis.tcp_url) as client:
                client.flushall()
            yield self.redis.tcp_url
            return
        url = asyncio.run(self.postgres.fresh_url())
        try:
            yield url
        finally:
            asyncio.run(self._execute(self.postgres.url, f"drop database {_name(url)} with (force)"))

    def settle(self, kind: str, url: str) -> None:
        """Between enqueue and drain: what a server would do by itself some time later."""
        if kind == "postgres":
            asyncio.run(self._execute(url, "analyze", "checkpoint"))

    @staticmethod
    async def _execute(url: str, *statements: str) -> None:
        connection = await asyncpg.connect(url)
        try:
            for statement in statements:
                await connection.execute(statement)
        finally:
            await connection.close()


def _name(url: str) -> str:
    return url.partition("?")[0].rpartition("/")[2]
