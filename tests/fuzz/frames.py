"""Frames on the socket of the memory broker: from clients that send anything, and from a server that answers anything."""

from __future__ import annotations

import asyncio
import shutil
import socket
import struct
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
from hypothesis import strategies as st

from fastjobs.backends.frames import FRAME_BYTES, HEADER, VERSION, Hello, Op, Refusal, Status, Welcome, encode
from fastjobs.backends.memory_core import Bundle, MemoryStore
from fastjobs.backends.remote import SocketBackend
from fastjobs.errors import BackendError
from fastjobs.model import Entry, Outcome, Settlement
from tests.fuzz.strategies import arrays, damaged, floats, huge, integers_64, noise, packed, texts
from tests.fuzz.surface import Check, Surface
from tests.stores import BrokerThread

SOON_S = 5.0

_ENTRY = Entry(bytes(16), "q", 5, b"envelope", None, 0.0)
_BODIES: dict[int, tuple[Any, ...] | object] = {
    Op.HELLO: Hello(VERSION),
    Op.PUSH: ("p", 1, 0, [Bundle("q", 5, [b"e"])], [_ENTRY], 0.0),
    Op.REGISTER: "lease.1",
    Op.EXCHANGE: ("lease.1", 1, [Settlement(1, [Outcome(0, 2, _ENTRY)], [], 0)], ["q"], 10, 0.0),
    Op.WAIT: (["q"], 0.0, 0.0),
    Op.RENEW: "lease",
    Op.LEASES: None,
    Op.WORKERS: "lease",
    Op.ADOPT: ("lease.1", 2, "lease.2", None, 10),
    Op.RETIRE: "lease.1",
    Op.HOUSEKEEP: 0.0,
    Op.STATS: None,
    Op.PEEK: ("q", 3),
    Op.DEAD_LIST: (None, None, 10),
    Op.DEAD_GET: bytes(16),
    Op.DEAD_REQUEUE: ([_ENTRY], 0.0),
    Op.DEAD_DELETE: [bytes(16)],
    Op.PURGE: "q",
    Op.CANCEL: None,
}
_SAMPLES = {op: encode(body) for op, body in _BODIES.items()}

_numbers = st.sampled_from((0.0, 0.0, 1.0, -1.0)) | floats
_queue = st.sampled_from(("q", "r")) | texts
_worker = st.sampled_from(("lease.1", "lease.2", "lease.1")) | texts
_entry = st.tuples(
    st.binary(max_size=16) | st.just(bytes(16)), _queue, st.integers(-1, 10), noise, st.none() | _numbers, _numbers
)
_outcome = st.tuples(st.integers(-1, 3), st.integers(0, 4), _entry)
_settlement = st.tuples(
    st.integers(0, 4), st.lists(_outcome, max_size=2), st.lists(st.integers(-1, 3), max_size=2), st.integers(0, 9)
)
_shaped = {
    Op.PUSH: arrays(
        texts,
        integers_64,
        integers_64,
        st.lists(st.tuples(_queue, st.integers(-1, 10), st.lists(noise, max_size=2)), max_size=2),
        st.lists(_entry, max_size=2),
        _numbers,
    ),
    Op.EXCHANGE: arrays(
        _worker,
        st.integers(0, 9) | integers_64,
        st.lists(_settlement, max_size=2),
        st.lists(_queue, max_size=2),
        integers_64,
        _numbers,
    ),
    Op.ADOPT: arrays(
        _worker,
        st.integers(0, 9),
        _worker,
        st.none() | st.lists(st.integers(0, 9), max_size=2),
        st.integers(-1, 9) | integers_64,
    ),
    Op.PEEK: arrays(_queue, st.integers(-1, 9) | integers_64),
    Op.DEAD_LIST: arrays(st.none() | _queue, st.none() | st.tuples(_numbers, noise), st.integers(-1, 9) | integers_64),
    Op.DEAD_REQUEUE: arrays(st.lists(_entry, max_size=2), _numbers),
    Op.HOUSEKEEP: _numbers.map(encode),
    Op.WAIT: arrays(st.lists(_queue, max_size=2), st.just(0.0) | floats, _numbers),
    Op.REGISTER: _worker.map(encode),
}
_plain = st.sampled_from(sorted(_SAMPLES.items()))
_bodies = (
    _plain
    | st.sampled_from(sorted(_shaped)).flatmap(lambda op: st.tuples(st.just(int(op)), _shaped[op]))
    | st.tuples(st.integers(0, 255), noise | huge | packed.map(encode) | damaged([*_SAMPLES.values()]))
)


def _frame(code: int, id: int, body: bytes, size: int | None = None) -> bytes:
    return HEADER.pack(len(body) if size is None else size, id, code) + body


_id = st.integers(1, 5) | st.sampled_from((0, 2**64 - 1))
_size = st.none() | st.none() | st.none() | st.sampled_from((0, 1, FRAME_BYTES, FRAME_BYTES + 1, 2**32 - 1))
_frames = st.builds(lambda body, number, size: _frame(body[0], number, body[1], size), _bodies, _id, _size)
_hello = _frame(Op.HELLO, 9, _SAMPLES[Op.HELLO])
streams = st.builds(
    lambda hello, parts: (_hello if hello else b"") + b"".join(parts),
    st.sampled_from((True, True, True, False)),
    st.lists(_frames | noise, max_size=4),
)


@contextmanager
def _broker() -> Iterator[Check]:
    core = MemoryStore()
    broker = BrokerThread(core)
    good = Client(broker.path)
    try:
        yield lambda stream: judge_requests(stream, broker.path, good)
    finally:
        good.close()
        broker.stop()


class Client:
    """A client of the broker, by hand."""

    def __init__(self, path: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(SOON_S)
        self.socket.connect(path)
        self._last_id = 0
        self.call(Op.HELLO, Hello(VERSION))

    def call(self, op: Op, body: object) -> Any:
        """What the broker replies."""
        self._last_id += 1
        self.socket.sendall(_frame(op, self._last_id, encode(body)))
        size, id, status = HEADER.unpack(self._read(HEADER.size))
        assert (id, status) == (self._last_id, Status.OK)
        return msgspec.msgpack.decode(self._read(size))

    def close(self) -> None:
        self.socket.close()

    def _read(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            piece = self.socket.recv(size - len(data))
            assert piece, "the broker closed the connection of a client that did nothing wrong"
            data += piece
        return data


def judge_requests(stream: bytes, path: str, good: Client) -> bool:
    """Replies to requests that were sent, or a closed connection; and for everybody else nothing has happened."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as bad:
        bad.settimeout(SOON_S)
        bad.connect(path)
        replies = _answers(bad, stream)
    sent = _ids(stream)
    while replies:
        size, id, status = HEADER.unpack_from(replies)
        assert size <= FRAME_BYTES
        assert id in sent
        body = replies[HEADER.size : HEADER.size + size]
        assert len(body) == size
        msgspec.msgpack.decode(body) if status == Status.OK else msgspec.msgpack.decode(body, type=Refusal)
        replies = replies[HEADER.size + size :]
        sent.remove(id)
    good.call(Op.STATS, None)
    good.call(Op.PURGE, "q")
    return len(_ids(stream)) > len(sent)


def _answers(bad: socket.socket, stream: bytes) -> bytes:
    """All that the broker says until it closes the connection."""
    said = b""
    try:
        bad.sendall(stream)
        bad.shutdown(socket.SHUT_WR)
        while piece := bad.recv(65_536):
            said += piece
    except (ConnectionResetError, BrokenPipeError, OSError) as error:
        assert not isinstance(error, TimeoutError), "the broker neither answers nor closes the connection"
        return b""  # a reset takes along what was not read yet
    return said


def _ids(stream: bytes) -> list[int]:
    """Of the whole frames in *stream*."""
    found = []
    while len(stream) >= HEADER.size:
        size, id, _ = HEADER.unpack_from(stream)
        if len(stream) < HEADER.size + size:
            break
        found.append(id)
        stream = stream[HEADER.size + size :]
    return found


_REPLIES = (
    encode(Welcome(bytes(16), 1)),
    encode(Refusal("WorkerGone", "gone")),
    encode(Refusal("Nonsense", "x")),
    encode(([True], [b"job"], False, None)),
    encode({"lease": 1}),
    encode([b"job"]),
    encode(True),
    encode(None),
    encode(7),
)
_reply = st.tuples(
    st.sampled_from((0, 0, 1, 2, 255)), st.sampled_from(_REPLIES) | damaged(_REPLIES) | noise | huge | packed.map(encode)
)
_RIGHT = (
    *(([True], [b"job"], False, None), True, None, ([("q", 1, 0, 0)], 3), {"lease": 1}, {"lease.1": [1]}, ([b"job"], False)),
    *([(bytes(16), 1.0, b"job")], (bytes(16), 1.0, b"job"), [True], [b"job"], 7, True),
)
_right = tuple((0, encode(value)) for value in _RIGHT)
_answer = st.lists(st.tuples(st.integers(1, 3), _reply, _size), max_size=3)
_calls = st.integers(0, 12).flatmap(
    lambda call: st.tuples(st.just(call), _answer | st.just([(2, _right[call], None)]) | st.just([(1, _right[call], None)] * 2))
)
replies = st.tuples(
    _calls,
    st.none() | st.none() | _reply,
    st.sampled_from((b"", b"", b"", b"\0", struct.pack("<IQB", 2**32 - 1, 1, 0))),
)
"""Which call and the frames that answer it, the reply to the hello (None: the right one), and what comes behind them."""


@contextmanager
def _server() -> Iterator[Check]:
    directory = tempfile.mkdtemp(prefix="fj-", dir="/tmp")
    path = f"{directory}/s"
    said: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """The reply to the hello, then all others at once, whatever is asked."""
        hello, rest = said
        try:
            for reply in (hello, rest):
                size, _, _ = HEADER.unpack(await reader.readexactly(HEADER.size))
                await reader.readexactly(size)
                writer.write(reply)
            await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # it has heard enough
        writer.close()

    with asyncio.Runner() as runner:
        server = runner.run(asyncio.start_unix_server(answer, path))

        def judge(given: tuple[tuple[int, list[Any]], Any, bytes]) -> bool:
            (call, frames), hello, tail = given
            status, body = hello if hello is not None else (Status.OK, _REPLIES[0])
            rest = b"".join(_frame(code, id, body, size) for id, (code, body), size in frames) + tail
            said[:] = [_frame(status, 1, body), rest]
            return runner.run(judge_replies(call, path))

        try:
            yield judge
        finally:
            server.close()
            runner.run(asyncio.sleep(0))
    shutil.rmtree(directory)


async def judge_replies(call: int, path: str) -> bool:
    """A result of the right type, or a BackendError; soon."""
    backend = SocketBackend(path)
    try:
        async with asyncio.timeout(SOON_S):
            await _CALLS[call](backend)
    except BackendError:
        return False
    finally:
        await backend.close()
    return True


_CALLS: tuple[Callable[[SocketBackend], Awaitable[Any]], ...] = (
    lambda backend: backend.exchange("lease.1", 1, [], ["q"], 10),
    lambda backend: backend.wait(["q"], 1.0),
    lambda backend: backend.push("p", 1, 0, [_ENTRY]),
    lambda backend: backend.stats(),
    lambda backend: backend.leases(),
    lambda backend: backend.workers("lease"),
    lambda backend: backend.adopt("lease.1", 1, "lease.2", None, 10),
    lambda backend: backend.dead_list(None, None, 10),
    lambda backend: backend.dead_get(bytes(16)),
    lambda backend: backend.dead_delete([bytes(16)]),
    lambda backend: backend.peek("q", 1),
    lambda backend: backend.purge("q"),
    lambda backend: backend.renew("lease"),
)

SURFACES = (
    Surface(name="frames to the broker", inputs=streams, opened=_broker, weight=8, offspring=9),
    Surface(name="replies of a broker", inputs=replies, opened=_server, weight=2),
)
