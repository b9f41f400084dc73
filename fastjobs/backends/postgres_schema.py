"""The schema of the Postgres backend: its files, its versions, and what a server must offer."""

from __future__ import annotations

import hashlib
from functools import cache
from importlib import resources
from typing import Final

import asyncpg

from fastjobs.backends.postgres_wire import Address, Connection
from fastjobs.errors import BackendError, SchemaError

MIN_SERVER: Final = 13
"""Lowest major version of Postgres."""

MIGRATIONS: Final = {1: "0001_tables", 2: "0002_quick_push"}
"""Files by the version they lead to. One that was released is never changed, only followed by another."""

VERSION: Final = max(MIGRATIONS)
"""The schema's version this code is written for."""

MIN_COMPATIBLE: Final = 1
"""The lowest `VERSION` of older code that may go on using this schema while a deploy is under way."""

# Stored functions, each in a file of its name; those called by others first. A migration that changes an argument list drops
# the old form first, or leaves it standing for older workers.
FUNCTIONS: Final = (
    *("store_time", "gate", "place", "name_queues", "push_begin", "push", "push_rung", "push_mixed", "push_in"),
    *("register", "forget", "retire", "settle", "next_due", "promote", "any_ready", "saved_hints", "save_hints"),
    *("take", "sweep", "exchange", "adopt", "waiting", "dead_requeue", "purge"),
)


_HAS_META: Final = """
select exists (
  select from pg_class c join pg_namespace n on n.oid = c.relnamespace
  where n.nspname = $1 and c.relname = 'meta' and c.relkind = 'r')
"""


@cache
def _file(name: str) -> str:
    return resources.files("fastjobs.backends").joinpath("sql", f"{name}.sql").read_text()


@cache
def statement(name: str, quoted_schema: str) -> str:
    """The SQL of a file, for the schema. The schema's name is the one thing ever put into SQL text."""
    return _file(name).replace("{schema}", quoted_schema)


async def read_version(connection: Connection, address: Address) -> tuple[int, int]:
    """(version, min_compatible) of the schema in the database; (0, 0) if there is none."""
    # From the tables of the catalogue: to_regclass answers from a cache, which does not hear of another's migration in time.
    if not await connection.fetchval(_HAS_META, address.schema):
        return 0, 0
    row = await connection.fetchrow(f"select version, min_compatible from {address.quoted_schema}.meta")  # nosec B608  # noqa: S608
    return (row["version"], row["min_compatible"]) if row is not None else (0, 0)


def check_version(version: int, min_compatible: int, address: Address) -> bool:
    """May this code use the schema as it is? False: it must be migrated first. SchemaError: the code is too old for it."""
    if version > VERSION and min_compatible > VERSION:
        raise SchemaError(
            f"schema {address.quoted_schema} is of version {version} and serves version {min_compatible} and later;"
            f" this fastjobs knows version {VERSION}: upgrade fastjobs"
        )
    return version >= VERSION


async def migrate(connection: Connection, address: Address) -> list[str]:
    """Bring the schema to `VERSION`, in one transaction, one caller at a time. Returns the steps done.

    Needs no superuser: the right to create a schema in the database, or a schema made beforehand that the user owns.
    """
    lock = int.from_bytes(hashlib.blake2b(address.channel.encode(), digest_size=8).digest(), signed=True)
    steps = []
    async with connection.transaction(isolation="read_committed"):
        await connection.fetchval("select pg_advisory_xact_lock($1)", lock)
        version, min_compatible = await read_version(connection, address)
        if check_version(version, min_compatible, address):
            return []
        # Asked first: "create schema if not exists" needs the right to create one even if it exists.
        if not await connection.fetchval("select exists (select from pg_namespace where nspname = $1)", address.schema):
            await connection.execute(f"create schema {address.quoted_schema}")
        for number, name in sorted(MIGRATIONS.items()):
            if number > version:
                await connection.execute(statement(name, address.quoted_schema))
                steps.append(name)
        await connection.execute("\n".join(statement(name, address.quoted_schema) for name in FUNCTIONS))
        steps.append("functions")
        await connection.execute(
            f"insert into {address.quoted_schema}.meta (version, min_compatible) values ($1, $2)"  # nosec B608  # noqa: S608
            " on conflict (single) do update set version = excluded.version, min_compatible = excluded.min_compatible",
            VERSION,
            MIN_COMPATIBLE,
        )
    return steps


async def check_server(connection: Connection, address: Address) -> list[str]:
    """Sentences on settings that can lose accepted jobs or slow the store down. BackendError if the server is too old."""
    row = await connection.fetchrow(
        "select current_setting('server_version_num')::int, current_setting('server_version'), current_setting('fsync'),"
        " current_setting('full_page_writes'), current_setting('synchronous_commit'), current_setting('autovacuum'),"
        " pg_is_in_recovery()"
    )
    assert row is not None
    number, name, fsync, full_pages, synchronous, autovacuum, standby = row
    if number < MIN_SERVER * 10000:
        raise BackendError(f"{address.url}: Postgres {name} is too old: fastjobs needs {MIN_SERVER} or later")
    if standby:
        raise BackendError(
            f"{address.url}: this server is a read-only standby: name the primary,"
            " or several hosts and target_session_attrs=primary"
        )
    warnings = {
        "fsync is off on this Postgres: a crash of its machine can lose accepted jobs or the whole database.": fsync == "off",
        "full_page_writes is off on this Postgres: a crash of its machine can damage the database.": full_pages == "off",
        "synchronous_commit is off on this Postgres: jobs enqueued inside your own transactions can be lost in a crash;"
        " enqueue itself commits durably all the same.": synchronous == "off",
        "autovacuum is off on this Postgres: the queue's tables will grow while no maintenance runs.": autovacuum == "off",
    }
    return [sentence for sentence, applies in warnings.items() if applies]


async def prepare(address: Address, *, may_migrate: bool) -> tuple[Address, list[str]]:
    """Check the server and its schema, creating or migrating it if *may_migrate*.

    Returns the address to use from now on, with the pgbouncer switch on if a pooler was found in between, and warnings.
    """
    # Until it is known who answers, behave as behind a pooler: there, prepared statements of two processes get mixed up, and
    # an earlier measurement saw 64 wrong results of 960 without any error.
    connection = await address.behind_pooler().connect()
    warnings = []
    try:
        if not address.pgbouncer and connection.get_server_pid() != await connection.fetchval("select pg_backend_pid()"):
            address = address.behind_pooler()
            warnings.append("A connection pooler stands before this Postgres: add pgbouncer=1 to the URL; it is assumed now.")
        warnings += await check_server(connection, address)
        version, min_compatible = await read_version(connection, address)
        if not check_version(version, min_compatible, address):
            if not may_migrate:
                state = f"is of version {version}, this fastjobs needs {VERSION}" if version else "is missing"
                raise SchemaError(f"{address.url}: schema {address.quoted_schema} {state}: run `fastjobs migrate`")
            await migrate(connection, address)
    except asyncpg.InsufficientPrivilegeError as error:
        raise SchemaError(
            f"{address.url}: {error}; run `fastjobs migrate` as a user who may create schema {address.quoted_schema},"
            " or have it created and owned by this one"
        ) from error
    except (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError) as error:
        raise address.error(error, closed=connection.is_closed()) from error
    finally:
        await close_quietly(connection)
    return address, warnings


async def close_quietly(connection: Connection) -> None:
    """Close it; if that fails, or the caller is cancelled, cut it."""
    try:
        await connection.close(timeout=2)
    except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
        connection.terminate()
