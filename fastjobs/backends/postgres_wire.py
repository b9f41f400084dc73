"""Connections to Postgres: addresses, one-at-a-time lanes, and the end of asyncpg's exceptions."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Final, TypeAlias, TypeVar
from urllib.parse import parse_qsl, quote, urlencode

import asyncpg

from fastjobs.backends import check_password, mask_password
from fastjobs.errors import BackendError, ConfigError, FastjobsError, SchemaError, StoreUnavailable
from fastjobs.forks import socket_of, watch

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"
T = TypeVar("T")

# Names that need no escape in SQL's quotes; with "fastjobs:" before it, the name of a channel, at most 63 bytes.
_SCHEMA_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,53}")

_SWITCH: Final = {"1": True, "true": True, "on": True, "yes": True, "0": False, "false": False, "off": False, "no": False}

_SESSION: Final = {
    "application_name": "fastjobs",
    "default_transaction_isolation": "read committed",
    # A machine that vanishes in the middle of a reply holds its worker's row locked: 10 s, not the kernel's 15 minutes.
    "tcp_user_timeout": "10000",
}

# By SQLSTATE: the same call may succeed later. 08 connection, 53 resources, 57 operator intervention (shutdown, recovery, a
# cancelled statement); serialization failure, deadlock, lock timeout; a primary that has become a standby; a transaction that
# the server found too long, or idle for too long.
_TRANSIENT_CLASSES: Final = ("08", "53", "57")
_TRANSIENT: Final = frozenset({"40001", "40P01", "55P03", "25006", "25P03", "25P04"})

# Undefined table, column, function or schema.
_MISSING: Final = frozenset({"42P01", "42703", "42883", "3F000"})


@dataclass(frozen=True, slots=True)
class Address:
    """Where a store is and how it is to be talked to."""

    dsn: str = field(repr=False)  #: for asyncpg, password included: never shown
    url: str  #: as the user gave it, password masked
    schema: str
    pgbouncer: bool  #: no prepared statements, no LISTEN, no session settings
    settings: tuple[tuple[str, str], ...]  #: of the session, but for those the URL sets itself
    connect_timeout_s: float
    call_timeout_s: float

    @property
    def quoted_schema(self) -> str:
        """The schema as it stands in SQL."""
        return f'"{self.schema}"'

    @property
    def channel(self) -> str:
        """The channel of this schema's notifications."""
        return f"fastjobs:{self.schema}"

    def behind_pooler(self) -> Address:
        """The same address with the pgbouncer switch on."""
        return replace(self, pgbouncer=True, settings=())

    async def connect(self) -> Connection:
        """A new connection. Raises what `error` makes of asyncpg's exceptions, and ConfigError for a DSN it cannot read."""
        try:
            connection: Connection = await asyncpg.connect(
                self.dsn,
                timeout=self.connect_timeout_s,
                command_timeout=self.call_timeout_s,
                statement_cache_size=0 if self.pgbouncer else 100,
                server_settings=dict(self.settings),
            )
        except ValueError as error:  # asyncpg's ClientConfigurationError is one
            raise ConfigError(f"{self.url}: {error}") from error
        except (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError) as error:
            raise self.error(error, connecting=True) from error
        return connection

    def error(self, error: BaseException, *, connecting: bool = False, closed: bool = False) -> FastjobsError:
        """fastjobs' exception for one of asyncpg's, a TimeoutError or an OSError; the server's own words are kept.

        *closed*: the connection is, so whatever the driver says about its own states, the connection was lost.
        """
        words = str(error) or type(error).__name__
        if isinstance(error, asyncpg.PostgresError):
            state = error.sqlstate or ""
            if state in _TRANSIENT or state.startswith(_TRANSIENT_CLASSES):
                return StoreUnavailable(f"{self.url}: {words}")
            if state in _MISSING:
                return SchemaError(
                    f"{self.url}: {words}; schema {self.quoted_schema} is missing or not whole: run `fastjobs migrate`"
                )
            return BackendError(f"{self.url}: {words} (SQLSTATE {state})")
        if isinstance(error, TimeoutError):
            limit_s = self.connect_timeout_s if connecting else self.call_timeout_s
            return StoreUnavailable(f"{self.url}: no answer within {limit_s:g} s")
        if isinstance(error, OSError) or connecting:
            return StoreUnavailable(f"{self.url}: cannot be reached: {words}")
        if closed:
            return StoreUnavailable(f"{self.url}: the connection was lost: {words}")
        return BackendError(f"{self.url}: {words}")


def parse_address(url: str, *, schema: str, pgbouncer: bool, connect_timeout_s: float, call_timeout_s: float) -> Address:
    """The address in *url*. Its parameters ``schema=`` and ``pgbouncer=1`` win over the arguments; all others are asyncpg's.

    ConfigError for another scheme, a schema name that is none, or a switch that is neither on nor off.
    """
    check_password(url)
    shown = mask_password(url)
    base, _, query = url.partition("?")
    if not base.startswith(("postgres://", "postgresql://")):
        raise ConfigError(f"{shown!r} is no address of a Postgres: use postgresql://user@host:5432/database")
    rest = []
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name == "schema":
            schema = value
        elif name == "pgbouncer":
            if value.lower() not in _SWITCH:
                raise ConfigError(f"pgbouncer={value} in {shown!r}: use pgbouncer=1 or pgbouncer=0")
            pgbouncer = _SWITCH[value.lower()]
        else:
            rest.append((name, value))
    if not _SCHEMA_NAME.fullmatch(schema) or schema.startswith("pg_"):
        raise ConfigError(f"schema {schema!r}: use 1 to 54 letters, digits, - and _, not beginning with a digit, - or pg_")
    dsn = f"{base}?{urlencode(rest, quote_via=quote, safe='/')}" if rest else base
    settings = () if pgbouncer else tuple(item for item in _SESSION.items() if item[0] not in dict(rest))
    return Address(dsn, shown, schema, pgbouncer, settings, connect_timeout_s, call_timeout_s)


class Lane:
    """One connection for one call at a time, opened when first needed and again after it broke.

    A call that is cancelled or gets no answer in time leaves its connection in an unknown state: it is thrown away.
    """

    def __init__(self, address: Address) -> None:
        self.address = address
        self.generation = 0  #: of its connection: counts up with each new one
        self.calls = 0  #: running and waiting
        self._lock = asyncio.Lock()
        self._connection: Connection | None = None
        watch(self)

    def is_served_by(self, pid: int) -> bool:
        """Is *pid* the server's process at the other end?"""
        return self._connection is not None and self._connection.get_server_pid() == pid

    def sockets(self) -> list[int]:
        """The descriptor of the connection, if there is one."""
        return socket_of(getattr(self._connection, "_transport", None))

    async def run(self, work: Callable[[Connection], Awaitable[T]]) -> T:
        """What *work* returns, given the connection. asyncpg's exceptions and OSErrors come out as `Address.error` has them."""
        self.calls += 1
        try:
            async with self._lock:
                connection = self._connection
                if connection is None or connection.is_closed():
                    connection = self._connection = await self.address.connect()
                    self.generation += 1
                try:
                    return await work(connection)
                except asyncpg.PostgresError as error:
                    mapped = self.address.error(error)
                    if isinstance(mapped, StoreUnavailable) and (error.sqlstate or "")[:2] not in ("40", "55"):
                        self._drop()
                    raise mapped from error
                except (asyncpg.InterfaceError, asyncpg.InternalClientError) as error:
                    if isinstance(error, ValueError):  # asyncpg.DataError: an argument it cannot encode; nothing was sent
                        raise self.address.error(error) from error
                    self._drop()
                    lost = isinstance(error, asyncpg.InternalClientError)  # its words are about the driver's own states
                    words = "the connection was lost in the middle of a call" if lost else error
                    raise StoreUnavailable(f"{self.address.url}: {words}") from error
                except OSError as error:  # a TimeoutError is one
                    self._drop()
                    raise self.address.error(error) from error
                except asyncio.CancelledError:
                    self._drop()
                    raise
        finally:
            self.calls -= 1

    async def row(self, sql: str, *arguments: object) -> asyncpg.Record:
        """The one row of a statement that returns one."""
        row = await self.run(lambda connection: connection.fetchrow(sql, *arguments))
        assert row is not None, "a statement that always returns a row"
        return row

    async def rows(self, sql: str, *arguments: object) -> list[asyncpg.Record]:
        """All rows of a statement."""
        return await self.run(lambda connection: connection.fetch(sql, *arguments))

    async def close(self) -> None:
        """Close the connection after the call that runs. The lane may be used again."""
        async with self._lock:
            connection, self._connection = self._connection, None
            if connection is not None and not connection.is_closed():
                try:
                    await connection.close(timeout=2)
                except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
                    connection.terminate()  # it was to go anyway

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.terminate()
            self._connection = None
