"""The connections of one backend object to a Redis or Valkey server, its scripts, and its errors as ours."""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final, cast

import hiredis
import redis.asyncio
from redis import exceptions as refusals

from fastjobs.backends import mask_password
from fastjobs.backends.redis_sentinel import Sentinels
from fastjobs.backends.redis_url import check_database, split_hosts, split_sentinels
from fastjobs.backends.redis_wire import Wire
from fastjobs.errors import BackendError, ConfigError, StaleCall, StoreUnavailable, WorkerGone
from fastjobs.forks import socket_of, watch

MAX_CONNECTIONS: Final = 32
"""Connections of one backend object for calls; more calls at once wait. Those of `wait` come on top."""

MOST_MOVES: Final = 5
"""A call is sent on to another node at most so often: two nodes that send it to each other do not know themselves."""

Argument = str | bytes | int | float

_LUA: Final = Path(__file__).with_name("lua")

# In C: 0.1 µs an argument. Its stub knows tuples of one argument only.
_pack: Final = cast(Callable[[tuple[Argument, ...]], bytes], hiredis.pack_command)


class Script:
    """A Lua script as the server knows it."""

    def __init__(self, name: str, text: str) -> None:
        self.name = name
        self.text = text
        self.sha = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()


def load_script(name: str, *, moves: bool = False) -> Script:
    """The script `lua/<name>.lua`; *moves*: with `lua/_moves.lua` before it."""
    text = (_LUA / f"{name}.lua").read_text("utf-8")
    return Script(name, (_LUA / "_moves.lua").read_text("utf-8") + text if moves else text)


class Links:
    """Connections to one server, each lent to one call at a time and dropped after any doubt about its state.

    In a cluster it is the node that holds the keys of its first call, found by asking any node, and again after a failover.
    So all keys of one object must share a hash tag. With sentinels it is the primary that they name.

    Dedicated connections instead of redis-py's client: a call through that costs several times more, and its own retries
    would repeat a script behind its caller's back. They belong to the event loop that made them.
    """

    def __init__(self, url: str, connect_timeout_s: float, call_timeout_s: float) -> None:
        self.shown = mask_password(url)
        self.call_timeout_s = call_timeout_s
        url, watched = split_sentinels(url)
        url, nodes = split_hosts(url)
        self._nodes = nodes if watched is None else []
        self.many = len(self._nodes) > 1  #: the URL names several: they must be nodes of one cluster
        check_database(url, self.shown)
        try:
            self._source: Any = redis.asyncio.ConnectionPool.from_url(url)
            self._source.connection_kwargs.update(
                socket_connect_timeout=connect_timeout_s,
                socket_timeout=None,  # one deadline around each call, below: redis-py would set two timers
                decode_responses=False,
                health_check_interval=0,
                protocol=2,
            )
            if self._nodes:  # those of redis-py's defaults that the URL leaves out
                host, port = self._nodes[0]
                self._source.connection_kwargs = {"host": host, "port": port, **self._source.connection_kwargs}
            first = self._source.connection_class(**self._source.connection_kwargs)  # refuses options that there are not
            if (driver := getattr(first, "driver_info", None)) is not None:
                # Each would look up redis-py's version for itself, in its files: 0.4 ms.
                self._source.connection_kwargs["driver_info"] = driver
        except (ValueError, TypeError) as error:
            words = re.sub(r"^.*unexpected keyword argument", "no such option:", str(error).replace(url, self.shown))
            raise ConfigError(f"{self.shown!r} is no Redis URL: {words}") from None
        options = self._source.connection_kwargs
        kind = self._source.connection_class
        self._sentinels = None if watched is None else Sentinels(watched, kind, options, self.shown)
        self._idle: list[Wire] = []
        self._lent: set[Wire] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._free = asyncio.Semaphore(MAX_CONNECTIONS)
        watch(self)

    async def call(self, *command: Argument) -> Any:
        """The reply to one command. BackendError, or StoreUnavailable when it may be repeated."""
        try:
            return await self._bounded(_pack(command))
        except refusals.NoScriptError as error:
            raise translate(error, self.shown) from error

    async def run(self, script: Script, keys: tuple[str, ...], *arguments: Argument) -> Any:
        """The reply of *script*, which the server is taught when it does not know it (a restart, a failover)."""
        packed = _pack(("EVALSHA", script.sha, len(keys), *keys, *arguments))
        try:
            return await self._bounded(packed)
        except refusals.NoScriptError:
            await self.call("SCRIPT", "LOAD", script.text)
        try:
            return await self._bounded(packed)
        except refusals.NoScriptError as error:
            raise StoreUnavailable(f"{self.shown}: the server forgot a script just loaded; is it restarting?") from error

    async def block(self, timeout_s: float, *command: Argument) -> Any:
        """The reply to a command that blocks for up to *timeout_s* seconds on the server, on a connection of its own."""
        return await self._ask(_pack(command), timeout_s + self.call_timeout_s)

    async def block_and_run(
        self, timeout_s: float, command: tuple[Argument, ...], script: Script, keys: tuple[str, ...], *arguments: Argument
    ) -> Any:
        """The reply of *script*, which the server runs as soon as *command*, which blocks for up to *timeout_s*, has ended.

        It lies there behind the blocked command: no round trip is lost between the two.
        """
        packed = _pack(command) + _pack(("EVALSHA", script.sha, len(keys), *keys, *arguments))
        try:
            return await self._ask(packed, timeout_s + self.call_timeout_s, commands=2)
        except refusals.NoScriptError:
            return await self.run(script, keys, *arguments)

    def sockets(self) -> list[int]:
        """Descriptors of all connections."""
        return [fd for wire in (*self._idle, *self._lent) for fd in socket_of(wire.transport)]

    async def close(self) -> None:
        """Close all connections; calls under way end with StoreUnavailable."""
        for connection in [*self._idle, *self._lent]:
            connection.drop()
        self._idle.clear()

    async def _bounded(self, packed: bytes) -> Any:
        self._check_loop()
        async with self._free:
            return await self._ask(packed, self.call_timeout_s)

    def learn(self, nodes: Iterable[tuple[str, int]]) -> None:
        """Further nodes of the cluster, to be asked when the one in use does not answer."""
        self._nodes += [node for node in nodes if node not in self._nodes]

    async def _ask(self, packed: bytes, timeout_s: float, *, commands: int = 1, moves: int = 0) -> Any:
        self._check_loop()
        connection = self._idle.pop() if self._idle else self._new()
        self._lent.add(connection)
        try:
            async with asyncio.timeout(timeout_s):
                reply = await connection.ask(packed, commands)
        except refusals.ResponseError as error:  # a complete reply: the connection is in order
            self._lent.discard(connection)
            if isinstance(error, refusals.NoScriptError):
                self._idle.append(connection)
                raise
            if isinstance(error, refusals.MovedError) and moves < MOST_MOVES:
                connection.drop()
                self._turn_to(error.host, error.port)
                return await self._ask(packed, timeout_s, commands=commands, moves=moves + 1)
            found = translate(error, self.shown)
            if isinstance(found, StoreUnavailable):  # it may have become a replica, or lost its cluster: ask anew who it is
                connection.drop()
                if self._sentinels is not None:
                    self._drop_idle()
                self._try_another(connection)
            else:
                self._idle.append(connection)
            raise found from error
        except BaseException as error:
            self._lent.discard(connection)
            connection.drop()
            if isinstance(error, TimeoutError):
                self._try_another(connection)
                raise StoreUnavailable(f"{self.shown} has not answered for {timeout_s:g} s") from error
            if isinstance(error, (refusals.RedisError, OSError)):
                self._drop_idle()  # of the same lost server: each would fail one more call
                self._try_another(connection)
                raise translate(error, self.shown) from error
            raise
        self._lent.discard(connection)
        self._idle.append(connection)
        return reply

    def _new(self) -> Wire:
        return Wire(self._source.connection_class(**self._source.connection_kwargs), self._sentinels)

    def _turn_to(self, host: str, port: int) -> None:
        """Call this node from now on. BackendError for a node that a Unix socket belongs to: others have no path here."""
        options = self._source.connection_kwargs
        if "host" not in options:
            raise BackendError(f"{self.shown} is a node of a Redis Cluster: name it by redis://host:port, not by a socket")
        node = (host or options["host"], port)  # "MOVED 5 :7001": the same host
        self.learn([node])
        if node != (options["host"], options["port"]):
            options["host"], options["port"] = node
            self._drop_idle()

    def _try_another(self, failed: Wire) -> None:
        """After a failure in a cluster: the next node will tell who holds the keys now. Of calls failing at once one turns."""
        if len(self._nodes) > 1:
            options = self._source.connection_kwargs
            lost = failed.node
            if lost == (options["host"], options["port"]):
                at = self._nodes.index(lost) if lost in self._nodes else -1
                self._turn_to(*self._nodes[(at + 1) % len(self._nodes)])

    def _drop_idle(self) -> None:
        idle, self._idle = self._idle, []
        for connection in idle:
            connection.drop()

    def _check_loop(self) -> None:
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            self._loop = loop
            self._idle = []  # they belong to a loop that is gone; use close() before leaving one
            self._free = asyncio.Semaphore(MAX_CONNECTIONS)


_OWN_CODES: Final = {"FJ_STALE": StaleCall, "FJ_GONE": WorkerGone, "FJ_BAD": BackendError}

_PASSING_ERRORS: Final = (
    refusals.ConnectionError,  # with BusyLoadingError
    refusals.TimeoutError,
    refusals.ReadOnlyError,
    refusals.MasterDownError,
    refusals.ClusterDownError,
    refusals.TryAgainError,
    refusals.AskError,  # with MovedError: keys on the move
    OSError,
)

# Inside a script's error, and for codes redis-py has no class for. BUSY: somebody's script runs for seconds; MISCONF: no disk
# space for a snapshot; NOREPLICAS and UNBLOCKED: a failover. All refuse before anything is done, and pass.
_PASSING_CODES: Final = re.compile(
    r"\b(LOADING|READONLY|MASTERDOWN|CLUSTERDOWN|TRYAGAIN|BUSY|MISCONF|NOREPLICAS|UNBLOCKED) |non local key|cluster is down"
)


def translate(error: Exception, shown: str) -> BackendError:
    """Any error of redis-py or the socket as ours; *shown* is the server's URL without its password."""
    text = str(error)
    code, _, rest = text.partition(" ")
    if code in _OWN_CODES:
        return _OWN_CODES[code](rest)
    said = text.removeprefix("FJ_FAILED ") or type(error).__name__
    if isinstance(error, refusals.OutOfMemoryError) or "OOM command not allowed" in text:
        return BackendError(
            f"{shown} is out of memory and stored nothing: raise its maxmemory, or let workers empty the queues first"
        )
    if isinstance(error, (refusals.AuthenticationError, refusals.AuthorizationError)):
        return BackendError(f"{shown} refused the user or password: {said}")
    if isinstance(error, _PASSING_ERRORS) or (isinstance(error, refusals.ResponseError) and _PASSING_CODES.search(text)):
        return StoreUnavailable(f"{shown}: {said}")
    return BackendError(f"{shown} refused a call: {said}")
