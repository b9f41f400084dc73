"""Where a measurement keeps its jobs: apart from the user's, empty at the start, gone at the end."""

from __future__ import annotations

import asyncio
import shutil
import signal
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final, NamedTuple
from urllib.parse import parse_qsl, urlencode

import asyncpg
import redis.asyncio

from fastjobs.backends import scheme_of
from fastjobs.backends.postgres_wire import parse_address
from fastjobs.backends.redis_link import split_namespace
from fastjobs.backends.remote import URL_SCHEME
from fastjobs.errors import StoreUnavailable

NAME: Final = "fastjobs_bench"
"""Namespace or schema."""


class Place(NamedTuple):
    """A store that is the measurement's own."""

    url: str
    broker: int | None = None  #: process id of the broker of memory://


@asynccontextmanager
async def place_at(url: str) -> AsyncIterator[Place]:
    """A place at the store *url*, emptied before and after. ConfigError and BackendError as the store has them."""
    scheme = scheme_of(url)
    if scheme == "memory":
        async with _broker() as place:
            yield place
        return
    postgres = scheme.startswith("postgres")
    own = _with(url, "schema" if postgres else "namespace", NAME)
    empty = _drop_schema if postgres else _delete_keys
    await empty(own)
    try:
        yield Place(own)
    finally:
        await empty(own)


def _with(url: str, key: str, value: str) -> str:
    """*url* with the option *key* set to *value*."""
    address, _, options = url.partition("?")
    others = [(name, text) for name, text in parse_qsl(options, keep_blank_values=True) if name != key]
    return f"{address}?{urlencode([*others, (key, value)], safe='/')}"


@asynccontextmanager
async def _broker() -> AsyncIterator[Place]:
    directory = tempfile.mkdtemp(prefix="fastjobs-bench-")
    path = f"{directory}/broker.sock"
    command = (sys.executable, "-m", "fastjobs.benchmark.broker", path)
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    try:
        assert process.stdout is not None
        if not await process.stdout.readline():
            raise StoreUnavailable("the process that is to hold the jobs does not come up")
        yield Place(URL_SCHEME + path, process.pid)
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGKILL)
        await process.wait()
        shutil.rmtree(directory, ignore_errors=True)


async def _drop_schema(url: str) -> None:
    address = parse_address(url, schema=NAME, pgbouncer=False, connect_timeout_s=5, call_timeout_s=30)
    connection = await address.behind_pooler().connect()
    try:
        await connection.execute(f'drop schema if exists "{NAME}" cascade')
    except asyncpg.PostgresError as error:
        raise address.error(error) from error
    finally:
        await connection.close()


async def _delete_keys(url: str) -> None:
    server, namespace = split_namespace(url, None)
    async with redis.asyncio.from_url(server) as client:
        try:
            async for key in client.scan_iter(f"{{{namespace}}}:*", count=1000):
                await client.unlink(key)
        except (redis.exceptions.RedisError, OSError) as error:
            raise StoreUnavailable(f"the store cannot be reached: {error}") from error
