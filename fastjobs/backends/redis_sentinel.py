"""Redis Sentinel: who is the primary is asked anew for each connection, and the server itself is asked whether it is."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Final

from redis import exceptions as refusals

from fastjobs.backends.redis_url import Watched
from fastjobs.errors import BackendError, StoreUnavailable

ANSWER_S: Final = 1.0
"""Longest wait for one sentinel: the others are to be asked yet."""

_REFUSALS: Final = (refusals.ResponseError, refusals.AuthenticationError, refusals.AuthorizationError)
"""Of a sentinel, which asking again will not change."""


class Sentinels:
    """The sentinels of one primary. *options*: of redis-py connections of the class *kind*, TLS included; *shown*: the URL."""

    def __init__(self, watched: Watched, kind: Any, options: Mapping[str, Any], shown: str) -> None:
        own = {"db": 0, "username": watched.username, "password": watched.password, "client_name": None}
        self._service = watched.service
        self._order = list(watched.sentinels)  # the one that answered last time is asked first
        self._kind = kind
        self._options = {**options, **own}
        self._shown = shown

    async def connect(self, connection: Any) -> None:
        """Connect the redis-py *connection* to the primary.

        StoreUnavailable if no sentinel answers, or what they name is no primary (any more, or yet). BackendError if they know
        none of that name, or refuse us. redis-py's errors if the server named cannot be reached.
        """
        connection.host, connection.port = await self.primary()
        try:
            await connection.connect()
            role = await _role(connection)
        except (refusals.RedisError, OSError):
            self._doubt()
            raise
        if role not in (b"master", b""):
            self._doubt()
            raise StoreUnavailable(
                f"{self._shown}: the sentinels name {connection.host}:{connection.port}, which is a {role.decode()} now"
            )

    async def primary(self) -> tuple[str, int]:
        """Host and port, as the first sentinel that answers has them. Raises as `connect`."""
        failures = []
        refused = False
        for sentinel in list(self._order):
            try:
                async with asyncio.timeout(ANSWER_S):
                    found = await self._ask(*sentinel)
            except (refusals.RedisError, OSError) as error:  # a TimeoutError is an OSError
                refused |= isinstance(error, _REFUSALS)
                words = str(error) or f"no answer within {ANSWER_S:g} s"
            else:
                if found is not None:
                    self._order.remove(sentinel)
                    self._order.insert(0, sentinel)
                    return found
                refused = True
                words = f"knows no primary named {self._service!r}"
            failures.append(f"{sentinel[0]}:{sentinel[1]}: {words}")
        why = "; ".join(failures)
        if refused:
            raise BackendError(f"{self._shown}: the sentinels name no primary: {why}")
        raise StoreUnavailable(f"{self._shown}: no sentinel answers: {why}")

    async def _ask(self, host: str, port: int) -> tuple[str, int] | None:
        connection = self._kind(**{**self._options, "host": host, "port": port})
        try:
            await connection.connect()
            await connection.send_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._service)
            reply = await connection.read_response()
        finally:
            await connection.disconnect(nowait=True)
        return None if reply is None else (reply[0].decode(), int(reply[1]))

    def _doubt(self) -> None:
        """The sentinel that was asked may be cut off from the others: it comes last."""
        self._order.append(self._order.pop(0))


async def _role(connection: Any) -> bytes:
    """The server's role; empty where asking is not allowed, as a replica refuses all writes anyway."""
    await connection.send_command("ROLE")
    try:
        role: bytes = (await connection.read_response())[0]
    except refusals.NoPermissionError:
        return b""
    return role
