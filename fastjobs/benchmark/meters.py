"""What stores have used: CPU time, from their own counts or the system's."""

from __future__ import annotations

from typing import Any, Protocol

import asyncpg

from fastjobs.backends import scheme_of
from fastjobs.backends.postgres_wire import parse_address
from fastjobs.benchmark.rediscli import client_of, cpu_s
from fastjobs.benchmark.usage import children_of, cpu_of, name_of, parent_of


class StoreMeter(Protocol):
    """CPU seconds that a store has used so far."""

    async def cpu_s(self) -> float | None:
        """None where nobody tells: a Postgres on another machine."""
        ...

    async def close(self) -> None: ...


class ProcessMeter:
    """Of a store that is one process here: the broker of memory://."""

    def __init__(self, pid: int) -> None:
        self._pid = pid

    async def cpu_s(self) -> float | None:
        return cpu_of(self._pid)

    async def close(self) -> None:
        return None


class RedisMeter:
    """By INFO cpu: the servers' own count, wherever they run."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._client: Any = None

    async def cpu_s(self) -> float | None:
        if self._client is None:
            self._client = await client_of(self._url)
        return await cpu_s(self._client)

    async def close(self) -> None:
        if self._client is not None:
            await self._client.aclose()


class PostgresMeter:
    """The processes of a server on this machine: the parent of our backend, and its children, alive and gone."""

    def __init__(self, url: str) -> None:
        address = parse_address(url, schema="fastjobs", pgbouncer=False, connect_timeout_s=5, call_timeout_s=30)
        self._dsn = address.dsn
        self._connection: Any = None

    async def cpu_s(self) -> float | None:
        if self._connection is None:
            self._connection = await asyncpg.connect(self._dsn)
        backend = await self._connection.fetchval("select pg_backend_pid()")
        server = parent_of(backend) if name_of(backend).startswith("postgres") else None
        if server is None:
            return None
        return sum(used for pid in (server, *children_of(server)) if (used := cpu_of(pid)) is not None)

    async def close(self) -> None:
        if self._connection is not None:
            await self._connection.close()


def meter_of(url: str, broker: int | None) -> StoreMeter:
    """The meter for the store at *url*; *broker*: its process, if it is the broker of memory://."""
    if broker is not None:
        return ProcessMeter(broker)
    return PostgresMeter(url) if scheme_of(url).startswith("postgres") else RedisMeter(url)
