"""What a store says that is not what fastjobs' own scripts and functions say: replies and notifications of any form."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
import redis.asyncio
from hypothesis import strategies as st
from redis import exceptions as refusals

from fastjobs.backends.postgres_bell import Bell, _Waiter, message
from fastjobs.backends.postgres_wire import parse_address
from fastjobs.backends.redis import RedisBackend
from fastjobs.backends.redis_link import translate
from fastjobs.backends.redis_wire import Wire
from fastjobs.errors import BackendError
from fastjobs.model import Entry, Outcome, Settlement
from tests.fuzz.strategies import damaged, noise, texts
from tests.fuzz.surface import Check, Surface

# -- notifications of Postgres

_MESSAGES = (
    message(["q", "mail"]),
    message(["q"], late=True),
    "[]",
    "[true]",
    '["q"]',
    "null",
    "5",
    '{"a":1}',
    "[false, 5, null]",
)
_samples = tuple(text.encode() for text in _MESSAGES)
notifications = st.sampled_from(_samples) | damaged(_samples) | noise | texts.map(str.encode)


@contextmanager
def _bell() -> Iterator[Check]:
    late: list[bool] = []
    address = parse_address("postgresql://nowhere/x", schema="s", pgbouncer=False, connect_timeout_s=1.0, call_timeout_s=1.0)
    bell = Bell(address, "", lambda queues: None, lambda: late.append(True), lambda pid: False)

    def judge(data: bytes) -> bool:
        """Whoever waits for a queue named in it wakes; where none is, everybody, who then look for themselves."""
        payload = data.decode("utf-8", "replace")
        late.clear()
        waiter = _waiter(bell)
        bell._heard(None, 7, "fastjobs:s", payload)
        is_late, ours = _meaning(payload)
        assert waiter.rung.is_set() == (not ours or "q" in ours)
        assert bool(late) == is_late
        bell._waiters.clear()
        bell._rung.clear()
        return bool(ours)

    yield judge


def _waiter(bell: Bell) -> Any:
    waiter = _Waiter(("q",), 0.0)
    bell._waiters.add(waiter)
    return waiter


def _meaning(payload: str) -> tuple[bool, set[str]]:
    """Whether it says that jobs may be late, and the queues in it; of what says nothing: late, and none."""
    try:
        late, *names = msgspec.json.decode(payload)
        return bool(late), {str(name) for name in names}
    except (ValueError, TypeError):
        return True, set()


# -- replies of Redis, each of a type of its own

_leaf = st.none() | st.integers(-3, 3) | noise | st.sampled_from((b"OK", b"1|0|", b"|1|0.5", b"nan", b"1", b"worker", 2**63))
_any: st.SearchStrategy[Any] = st.recursive(_leaf, lambda inner: st.lists(inner, max_size=4), max_leaves=8)
_exchanged = st.tuples(
    st.sampled_from((b"1|0|", b"|1|0.5", b"0|1|nan", b"", b"|", b"1|0|x")) | noise, st.lists(noise, max_size=3)
)
redis_replies = st.tuples(st.integers(0, 12), _any | _exchanged.map(list))

_ENTRY = Entry(bytes(16), "q", 5, b"envelope")
_SETTLEMENT = Settlement(1, [Outcome(0, 2, _ENTRY)])
_CALLS: tuple[Callable[[RedisBackend], Awaitable[Any]], ...] = (
    lambda backend: backend.exchange("lease.1", 2, [_SETTLEMENT], ["q"], 10),
    lambda backend: backend.exchange("lease.1", 2, [], ["q"], 10),
    lambda backend: backend.wait(["q"], 0.0),
    lambda backend: backend.stats(),
    lambda backend: backend.leases(),
    lambda backend: backend.workers("lease"),
    lambda backend: backend.adopt("lease.1", 1, "lease.2", None, 10),
    lambda backend: backend.dead_list(None, None, 10),
    lambda backend: backend.dead_get(bytes(16)),
    lambda backend: backend.dead_delete([bytes(16)]),
    lambda backend: backend.dead_requeue([_ENTRY]),
    lambda backend: backend.peek("q", 1),
    lambda backend: backend.open(),
)


class _Said:
    """Connections to a server that answers everything alike."""

    many = False

    def __init__(self, reply: Any) -> None:
        self._reply = reply

    async def call(self, *command: Any) -> Any:
        return self._reply

    async def run(self, script: Any, keys: Any, *arguments: Any) -> Any:
        return self._reply

    def learn(self, nodes: Any) -> None:
        list(nodes)


@contextmanager
def _redis() -> Iterator[Check]:
    backend: Any = RedisBackend("redis://nowhere")
    with asyncio.Runner() as runner:

        def judge(given: tuple[int, Any]) -> bool:
            """A result, or a BackendError: nothing that ends a worker."""
            call, reply = given
            backend._links, backend._introduced = _Said(reply), call != 12

            async def made() -> None:
                await _CALLS[call](backend)

            try:
                runner.run(made())
            except BackendError as error:
                assert len(str(error)) < 1_000
                return False
            return True

        yield judge


# -- bytes of a server that is said to be Redis

_RESP = (
    b"+OK\r\n",
    b"$3\r\nabc\r\n",
    b":5\r\n",
    b"-ERR no\r\n",
    b"-MOVED 5 a:7\r\n",
    b"*2\r\n:1\r\n$-1\r\n",
    b"_\r\n",
    b"#t\r\n",
)
resp = st.lists(st.sampled_from(_RESP) | noise, max_size=4).map(b"".join)


class _Transport:
    """Takes what is written and is closed when told."""

    def __init__(self) -> None:
        self.closed = False

    def write(self, data: bytes) -> None:
        pass

    def abort(self) -> None:
        self.closed = True


@contextmanager
def _wire() -> Iterator[Check]:
    opener = redis.asyncio.Connection()
    with asyncio.Runner() as runner:

        async def told(data: bytes) -> bool:
            """A reply, or one of redis-py's errors, which all become ours. Never silence."""
            wire: Any = Wire(opener)
            wire._transport = _Transport()
            asked = asyncio.ensure_future(wire.ask(b"", 1 + len(data) % 2))
            await asyncio.sleep(0)
            middle = len(data) // 2
            wire.data_received(data[:middle])
            wire.data_received(data[middle:])
            wire.connection_lost(None)
            try:
                await asked
            except refusals.RedisError as error:
                assert isinstance(translate(error, "redis://nowhere"), BackendError)
                return False
            return True

        yield lambda data: runner.run(told(data))


SURFACES = (
    Surface(name="notifications", inputs=notifications, opened=_bell, weight=10, offspring=9),
    Surface(name="replies of Redis", inputs=redis_replies, opened=_redis, weight=3),
    Surface(name="bytes from Redis", inputs=resp, opened=_wire, weight=10, offspring=4),
)
