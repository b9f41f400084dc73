"""Stores that refuse or cut off their clients: read-only, full, out of connections, impatient. Exact accounts."""

from __future__ import annotations

import asyncio
import random
import shutil
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from fastjobs.errors import BackendError, StoreUnavailable
from tests.processes import stores as look
from tests.servers.postgres import PostgresServer
from tests.servers.redis import RedisServer
from tests.stores import PostgresPlace, RedisPlace
from tests.test_accounts import balance
from tests.test_faults_stores import Tried, running

AWAY = "the store does not answer"


@pytest.fixture(scope="module", params=["redis", "valkey"])
def server(request: pytest.FixtureRequest) -> Iterator[RedisServer]:
    """For this module; a test undoes what it does."""
    # Valkey lets nobody change where it saves, unless told so.
    settings = {"enable-protected-configs": "yes"} if request.param == "valkey" else {}
    with running(RedisServer(request.param, **settings)) as server:
        yield server


@pytest.fixture
def fates(server: RedisServer, tmp_path: Path) -> Tried:
    return Tried(RedisPlace(server).url(), tmp_path / "ledger")


# -- Redis, Valkey -------------------------------------------------------------------------------------------------------


def test_a_redis_that_becomes_a_replica_for_a_while_costs_nothing_but_time(server: RedisServer, fates: Tried) -> None:
    fates.enqueue(300)
    with fates.supervise(workers=2) as fleet:
        fates.until(50, fleet)
        with fates.producing():
            server.command("REPLICAOF", "127.0.0.1", "1")
            try:
                assert "READONLY" in fleet.log(AWAY)
            finally:
                server.command("REPLICAOF", "NO", "ONE")
        fates.ends_well(fleet)
    balance(fates)


def test_a_redis_whose_snapshots_fail_for_a_while_costs_nothing_but_time(
    server: RedisServer, fates: Tried, tmp_path: Path
) -> None:
    """As on a full disk: it takes no writes then."""
    home = tmp_path / "dump"
    home.mkdir()
    fates.enqueue(300)
    with fates.supervise(workers=2) as fleet:
        fates.until(50, fleet)
        server.command("CONFIG", "SET", "dir", str(home))
        server.command("CONFIG", "SET", "save", "3600 1000000")
        with fates.producing():
            shutil.rmtree(home)
            server.command("BGSAVE")
            try:
                assert "MISCONF" in fleet.log(AWAY)
            finally:
                home.mkdir()
                server.command("CONFIG", "SET", "dir", str(home))
                server.command("CONFIG", "SET", "save", "")
                server.command("BGSAVE")
        fates.ends_well(fleet)
    balance(fates)


def test_a_redis_that_is_full_refuses_jobs_and_its_workers_empty_it(server: RedisServer, fates: Tried) -> None:
    fates.enqueue(300)
    server.command("CONFIG", "SET", "maxmemory", "1")
    try:
        with pytest.raises(BackendError, match="out of memory and stored nothing: raise its maxmemory") as refused:
            fates.enqueue(10)
        assert not isinstance(refused.value, StoreUnavailable)
        with fates.supervise(workers=2) as fleet:  # claims, settles, retries, registers, renews
            fates.until(100, fleet)
            fates.kill_one(fleet)
            fleet.log("the next one starts")
            fates.until(300, fleet)
            with pytest.raises(BackendError, match="stored nothing"):
                fates.enqueue(10)
            server.command("CONFIG", "SET", "maxmemory", "0")
            fates.enqueue(100)
            fates.until(400, fleet)
            fleet.send(signal.SIGTERM)
            assert fleet.ends() == 0
            assert AWAY not in fleet.stderr()
    finally:
        server.command("CONFIG", "SET", "maxmemory", "0")
    balance(fates)


def test_connections_that_redis_closes_at_random_cost_nothing_but_time(server: RedisServer, fates: Tried) -> None:
    fates.enqueue(300)
    with fates.supervise(workers=2) as fleet:
        with fates.producing():
            for finished in range(30, 300, 30):
                fates.until(finished, fleet)
                server.command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        fates.ends_well(fleet)
    balance(fates)


# -- Postgres ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresServer]:
    """For this module; a test undoes what it does."""
    with running(PostgresServer(max_connections=25)) as server:
        yield server


@pytest.fixture
def stored(postgres: PostgresServer, tmp_path: Path) -> Tried:
    """Fates on a schema of their own."""
    return Tried(PostgresPlace(postgres).url(), tmp_path / "ledger")


OTHERS = "select pid from pg_stat_activity where pid <> pg_backend_pid() and backend_type = 'client backend'"


def execute(server: PostgresServer, *statements: str) -> list[Any]:
    """What the last one returns."""

    async def go() -> list[Any]:
        connection = await asyncpg.connect(server.url, server_settings={"statement_timeout": "0", "transaction_timeout": "0"})
        try:
            for statement in statements:
                rows = await connection.fetch(statement)
            return rows
        finally:
            await connection.close()

    return asyncio.run(go())


@contextmanager
def setting(server: PostgresServer, name: str, value: str) -> Iterator[None]:
    """For all sessions, also those that are open."""
    execute(server, f"alter system set {name} = {value}", "select pg_reload_conf()")
    try:
        yield
    finally:
        execute(server, "set default_transaction_read_only = off", f"alter system reset {name}", "select pg_reload_conf()")


def test_a_postgres_that_is_read_only_for_a_while_costs_nothing_but_time(postgres: PostgresServer, stored: Tried) -> None:
    stored.enqueue(300)
    with stored.supervise(workers=2) as fleet:
        stored.until(50, fleet)
        with stored.producing(), setting(postgres, "default_transaction_read_only", "on"):
            assert "read-only transaction" in fleet.log(AWAY)
        stored.ends_well(fleet)
    balance(stored)


def test_backends_of_postgres_that_are_terminated_at_random_cost_nothing_but_time(
    postgres: PostgresServer, stored: Tried
) -> None:
    stored.enqueue(300)
    chance = random.Random(5)
    with stored.supervise(workers=2) as fleet:
        with stored.producing():
            for finished in range(20, 300, 20):
                stored.until(finished, fleet)
                pids = [row[0] for row in execute(postgres, OTHERS)]
                for pid in chance.sample(pids, min(len(pids), 3)):
                    execute(postgres, f"select pg_terminate_backend({pid})")
        stored.ends_well(fleet)
    balance(stored)


IMPATIENCE = {
    "idle_session_timeout": "50",
    "statement_timeout": "3",
    "transaction_timeout": "3",
    "idle_in_transaction_session_timeout": "1",
}
"""In ms; others may keep the processor from a statement for longer than that."""


def test_an_impatient_postgres_costs_nothing_but_time(postgres: PostgresServer, stored: Tried) -> None:
    stored.enqueue(200)
    with stored.supervise(workers=2) as fleet:
        stored.until(20, fleet)
        with ExitStack() as stack, stored.producing():
            for name, value in IMPATIENCE.items():
                stack.enter_context(setting(postgres, name, value))
            stored.until(200, fleet)
        stored.ends_well(fleet)
    balance(stored)


def test_a_postgres_without_a_free_connection_is_waited_for(postgres: PostgresServer, stored: Tried) -> None:
    stored.enqueue(300)
    with stored.supervise(workers=2) as fleet:
        stored.until(50, fleet)
        with stored.producing(), every_connection(postgres):
            fleet.log(AWAY)
            with pytest.raises(StoreUnavailable, match="too many clients"):
                look.stats(stored.url)
        stored.ends_well(fleet)
    balance(stored)


@contextmanager
def every_connection(server: PostgresServer) -> Iterator[None]:
    """Nobody else has one."""
    loop = asyncio.new_event_loop()
    held: list[asyncpg.Connection[asyncpg.Record]] = []

    async def take() -> None:
        first = await asyncpg.connect(server.url)
        held.append(first)
        while others := {row[0] for row in await first.fetch(OTHERS)} - {one.get_server_pid() for one in held}:
            await first.fetch("select pg_terminate_backend(pid) from unnest($1::int[]) pid", others)
            with suppress(asyncpg.TooManyConnectionsError):
                while True:
                    held.append(await asyncpg.connect(server.url))

    loop.run_until_complete(take())
    try:
        yield
    finally:
        for connection in held:
            connection.terminate()
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()
