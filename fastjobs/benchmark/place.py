"""Where a measurement keeps its jobs: apart from the user's, empty at the start, gone at the end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import IO, Final, NamedTuple
from urllib.parse import parse_qsl, urlencode

import asyncpg
import redis.asyncio

from fastjobs.backends import scheme_of
from fastjobs.backends.postgres_wire import parse_address
from fastjobs.backends.remote import URL_SCHEME
from fastjobs.benchmark.rediscli import client_of
from fastjobs.bequest import leave
from fastjobs.errors import BackendError, StoreUnavailable

NAME: Final = "fastjobs_bench"
"""Namespace or schema."""

TOLD: Final = "FASTJOBS_BENCH_TOLD"

LOCK_S: Final = 20
BUSY: Final = "another `fastjobs bench` is at work on this store: wait for its end"


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
    async with _alone_on_postgres(own) if postgres else _alone_on_redis(own):
        await empty(own)
        try:
            yield Place(own)
        finally:
            await empty(own)


@asynccontextmanager
async def _alone_on_postgres(url: str) -> AsyncIterator[None]:
    """Hold a lock that ends with this process. BackendError while another has it."""
    address = parse_address(url, schema=NAME, pgbouncer=False, connect_timeout_s=5, call_timeout_s=30)
    connection = await address.behind_pooler().connect()
    try:
        if not await connection.fetchval("select pg_try_advisory_lock(hashtext($1))", NAME):
            raise BackendError(BUSY)
        yield
    finally:
        await connection.close()


@asynccontextmanager
async def _alone_on_redis(url: str) -> AsyncIterator[None]:
    """Hold a lock that ends LOCK_S seconds after this process. BackendError while another has it."""
    key = f"{NAME}_lock"
    async with await client_of(url) as client:
        try:
            if not await client.set(key, "1", nx=True, ex=LOCK_S):
                raise BackendError(f"{BUSY} (a killed one holds the store for {LOCK_S} s more)")
        except (redis.exceptions.RedisError, OSError) as error:
            raise StoreUnavailable(f"the store cannot be reached: {error}") from error

        async def renew() -> None:
            while True:
                await asyncio.sleep(LOCK_S / 4)
                with contextlib.suppress(redis.exceptions.RedisError, OSError):  # the measurement itself will say so
                    await client.set(key, "1", ex=LOCK_S)

        renewing = asyncio.create_task(renew())
        try:
            yield
        finally:
            renewing.cancel()
            await asyncio.wait([renewing])
            with contextlib.suppress(redis.exceptions.RedisError, OSError):
                await client.delete(key)


def _with(url: str, key: str, value: str) -> str:
    """*url* with the option *key* set to *value*."""
    address, _, options = url.partition("?")
    others = [(name, text) for name, text in parse_qsl(options, keep_blank_values=True) if name != key]
    return f"{address}?{urlencode([*others, (key, value)], safe='/')}"


async def start_own(
    module: str, *arguments: str, told: bytes = b"", stderr: IO[bytes] | None = None
) -> asyncio.subprocess.Process:
    """Start ``fastjobs.benchmark.<module>``, which ends with this process; its stdout is a pipe. ^C does not reach it.

    *told*: what it takes from `TOLD`, out of sight of ``ps``: a URL with a password.
    """
    pipe = asyncio.subprocess.PIPE
    command = (sys.executable, "-m", f"fastjobs.benchmark.{module}", *arguments)
    fd = leave(told)
    try:
        return await asyncio.create_subprocess_exec(
            *command,
            stdin=pipe,
            stdout=pipe,
            stderr=stderr,
            start_new_session=True,
            pass_fds=(fd,),
            env={**os.environ, TOLD: str(fd)},
        )
    finally:
        os.close(fd)


@asynccontextmanager
async def _broker() -> AsyncIterator[Place]:
    directory = tempfile.mkdtemp(prefix="fastjobs-bench-")
    path = f"{directory}/broker.sock"
    process = await start_own("broker", path)
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
    async with await client_of(url) as client:
        try:
            async for key in client.scan_iter(f"{{{NAME}[}}:]*", count=1000):  # of partitions too
                await client.unlink(key)
        except (redis.exceptions.RedisError, OSError) as error:
            raise StoreUnavailable(f"the store cannot be reached: {error}") from error
