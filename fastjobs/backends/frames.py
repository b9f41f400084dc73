"""What travels between the broker and its clients: length-prefixed frames of MessagePack, and the calls in them.

A frame is a header (body size, id, code) and a body. A request's code is an `Op`; its reply carries the same id and a
`Status`. Requests of one connection may be in flight side by side; each id is used once per connection. The first request
is `HELLO`. Bodies are arrays of the fields below: fields are only ever added at the end.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import sys
from enum import IntEnum
from typing import cast

import msgspec

from fastjobs.backends.bundles import Bundle
from fastjobs.errors import BackendError
from fastjobs.model import Entry, Settlement

VERSION = 1
"""Of everything in this module. Broker and clients speak the same version or not at all."""

FRAME_BYTES = 64 << 20
"""Largest body. Nobody sends a larger one; who receives the header of one closes the connection and reserves nothing."""

READ_BYTES = 256 << 10
"""Read buffer of a connection: a batch of 500 small jobs takes 60 kB. It grows for a larger frame, as that arrives."""

HEADER = struct.Struct("<IQB")
"""Body size, id (64 bits, so that a connection never runs out of them), code."""

UNREADABLE = (msgspec.MsgspecError, UnicodeError, RecursionError)
"""What reading a body raises when it is not what its code says."""

encode = msgspec.msgpack.Encoder().encode


class Op(IntEnum):
    """The calls. CANCEL has no reply: its id is that of a `WAIT` whose caller has gone."""

    HELLO = 0
    PUSH = 1
    REGISTER = 2
    EXCHANGE = 3
    WAIT = 4
    RENEW = 5
    LEASES = 6
    WORKERS = 7
    ADOPT = 8
    RETIRE = 9
    HOUSEKEEP = 10
    STATS = 11
    PEEK = 12
    DEAD_LIST = 13
    DEAD_GET = 14
    DEAD_REQUEUE = 15
    DEAD_DELETE = 16
    PURGE = 17
    CANCEL = 18


class Status(IntEnum):
    """Of a reply: the call's result, or a `Refusal`."""

    OK = 0
    REFUSED = 1


class Fields(msgspec.Struct, array_like=True, gc=False):
    """Base of all bodies that have fields. `shift_s` is the caller's `time_shift_s`."""


class Hello(Fields):
    version: int


class Welcome(Fields):
    incarnation: bytes  #: random; another one is another broker, whose predecessor took its jobs with it
    pid: int  #: of the broker


class Refusal(Fields):
    error: str  #: name of a class of errors.py
    message: str


class Push(Fields):
    producer: str
    seq: int
    acked: int
    bundles: list[Bundle]
    later: list[Entry]
    shift_s: float


class Exchange(Fields):
    worker: str
    n: int
    settlements: list[Settlement]
    queues: list[str]
    limit: int
    shift_s: float


class Wait(Fields):
    queues: list[str]
    timeout_s: float
    shift_s: float


class Adopt(Fields):
    into: str
    n: int
    worker: str
    claims: list[int] | None
    limit: int


class Peek(Fields):
    queue: str
    limit: int


class DeadList(Fields):
    queue: str | None
    before: tuple[float, bytes] | None
    limit: int


class DeadRequeue(Fields):
    entries: list[Entry]
    shift_s: float


class Frames(asyncio.BufferedProtocol):
    """One end of a connection: cuts what arrives into frames, sends frames, and stops reading while the peer does not.

    Subclasses define `frame` and `broken`.
    """

    transport: asyncio.Transport

    def __init__(self) -> None:
        self._buffer = bytearray(READ_BYTES)
        self._start = 0  # of what arrived and is not used
        self._end = 0
        self._paused = False

    def frame(self, code: int, id: int, body: memoryview) -> None:
        """One frame. *body* is valid during the call only."""
        raise NotImplementedError

    def broken(self, reason: str) -> None:
        """The peer does not speak this protocol; the connection is being closed."""
        raise NotImplementedError

    def send(self, code: int, id: int, body: bytes) -> None:
        """Send one frame. BackendError, and nothing sent, if *body* is too large."""
        if len(body) > FRAME_BYTES:
            raise BackendError(f"a message of {len(body):,} bytes is over the limit of {FRAME_BYTES:,}: use smaller batches")
        if not self.transport.is_closing():
            # One write of one object: joining costs a copy of 60 kB (5 µs), two writes cost a second system call or writev.
            self.transport.write(HEADER.pack(len(body), id, code) + body)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's are no subclass of it

    def get_buffer(self, sizehint: int) -> memoryview:
        return memoryview(self._buffer)[self._end :]

    def buffer_updated(self, nbytes: int) -> None:
        self._end += nbytes
        self._cut()

    def pause_writing(self) -> None:
        """The peer reads slower than it asks: take no more requests until it has caught up."""
        self._paused = True
        self.transport.pause_reading()

    def resume_writing(self) -> None:
        self._paused = False
        self.transport.resume_reading()
        self._cut()

    def _cut(self) -> None:
        buffer = self._buffer
        needed = HEADER.size
        while not self._paused:
            needed = HEADER.size
            if self._end - self._start < needed:
                break
            size, id, code = HEADER.unpack_from(buffer, self._start)
            if size > FRAME_BYTES:
                self._refuse(f"a frame of {size:,} bytes is over the limit of {FRAME_BYTES:,}")
                return
            needed += size
            if self._end - self._start < needed:
                break
            body = memoryview(buffer)[self._start + HEADER.size : self._start + needed]
            self._start += needed
            try:
                self.frame(code, id, body)
            except UNREADABLE as error:
                self._refuse(f"a body that cannot be read: {error}")
                return
        self._make_room(needed)

    def _refuse(self, reason: str) -> None:
        self._start = self._end = 0
        self.transport.abort()
        self.broken(reason)

    def _make_room(self, needed: int) -> None:
        """Leave space for at least one more byte of a frame of *needed* bytes."""
        held = self._end - self._start
        size = len(self._buffer)
        if not held:
            self._start = self._end = 0
            if size > READ_BYTES:
                self._buffer = bytearray(READ_BYTES)
        elif self._start + needed > size:
            grow = needed > size and held * 2 > size  # doubled as data arrives: a header alone reserves nothing
            if grow or self._start:
                kept = self._buffer[self._start : self._end]
                if grow:
                    self._buffer = bytearray(min(needed, 2 * size))
                self._buffer[:held] = kept
                self._start, self._end = 0, held


def peer_uid(transport: asyncio.BaseTransport) -> int:
    """User id of the process at the other end of a Unix socket, as the kernel tells it."""
    peer: socket.socket = transport.get_extra_info("socket")
    if sys.platform == "darwin":
        # struct xucred of LOCAL_PEERCRED (1) at level SOL_LOCAL (0): version, uid, …
        _, uid = struct.unpack_from("II", peer.getsockopt(0, 1, 76))
    else:
        _, uid, _ = struct.unpack("iII", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return int(uid)
