"""One connection to a Redis server: redis-py opens it, then its bytes come straight to hiredis.

redis-py knows addresses, TLS, passwords and databases. Its way to read a reply, through asyncio's stream reader, costs as much
as the rest of a call, and a job at an idle worker waits for three replies.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

import hiredis
from redis import exceptions as refusals

from fastjobs.backends.redis_sentinel import Sentinels

_MORE: Final = object()
"""What the reader says when a reply is not complete. None and False are replies."""


class Wire(asyncio.Protocol):
    """One call at a time. *opener*: a redis-py connection, not yet connected; *sentinels* tell where to, if there are any."""

    def __init__(self, opener: Any, sentinels: Sentinels | None = None) -> None:
        self._opener = opener
        self._sentinels = sentinels
        self._streams: Any = None  # kept: a stream writer that goes closes its transport
        self._transport: asyncio.Transport | None = None
        self._reply: asyncio.Future[Any] | None = None
        self._due = 0  # replies to come before that one
        self._lost = False
        self._reader: Any = hiredis.Reader(
            protocolError=refusals.InvalidResponse, replyError=opener._parser.parse_error, notEnoughData=_MORE
        )

    @property
    def node(self) -> tuple[str, int] | None:
        """Host and port that it was opened to; None for a Unix socket."""
        return (self._opener.host, self._opener.port) if hasattr(self._opener, "host") else None

    @property
    def transport(self) -> asyncio.Transport | None:
        """None before the first call."""
        return self._transport

    async def ask(self, packed: bytes, commands: int = 1) -> Any:
        """The reply to the last of so many *commands*; what the others reply is left out, also if it is an error.

        Raises redis-py's errors; after any but its ResponseError the wire must be dropped.
        """
        if self._transport is None:
            self._transport = await self._open()
        if self._lost:
            raise refusals.ConnectionError("the server has closed the connection")
        reply = self._reply = asyncio.get_running_loop().create_future()
        self._due = commands - 1
        self._transport.write(packed)
        answer = await reply
        if isinstance(answer, refusals.RedisError):
            raise answer
        return answer

    def drop(self) -> None:
        """Close it at once, whatever is still to be sent or to come. Idempotent."""
        self._lost = True
        if self._transport is not None:
            self._transport.abort()

    async def _open(self) -> asyncio.Transport:
        opener = self._opener
        try:
            await (opener.connect() if self._sentinels is None else self._sentinels.connect(opener))
        except BaseException:
            if opener._writer is not None:  # it was to go no further: a cancellation, a replica
                opener._writer.transport.abort()
                opener._reader = opener._writer = None
            raise
        self._streams = reader, writer = opener._reader, opener._writer
        opener._reader = opener._writer = None  # its own end would close them
        transport: asyncio.Transport = writer.transport
        transport.set_protocol(self)
        if transport.is_closing() or reader.at_eof():  # what its old protocol heard we shall not
            transport.abort()
            raise refusals.ConnectionError("the server has closed the connection")
        return transport

    # -- called by the transport

    def data_received(self, data: bytes) -> None:
        try:
            self._reader.feed(data)
            answer = self._reader.gets()
            while self._due and answer is not _MORE:
                self._due -= 1
                answer = self._reader.gets()
        except Exception as error:  # no Redis speaks there
            readable = isinstance(error, refusals.RedisError)
            self._end(error if readable else refusals.InvalidResponse(f"a reply that cannot be read: {error}"))
            self.drop()
            return
        if answer is not _MORE and self._reply is not None and not self._reply.done():
            self._reply.set_result(answer)

    def connection_lost(self, error: Exception | None) -> None:
        self._lost = True
        self._end(refusals.ConnectionError(f"the connection was lost: {error or 'closed by the server'}"))

    def _end(self, error: Exception) -> None:
        if self._reply is not None and not self._reply.done():
            self._reply.set_exception(error)
