"""A proxy between clients and a server that can do to their connections whatever a network can.

It runs on an event loop in a thread of its own; every method may be called from any thread. A `Link` is one client's
connection and its counterpart to the server. What happens to links is said of all of them, those to come included
(`Proxy.stall`), or of one (`Link.stall`). A *tap* sees every piece before it is passed on and may act at that very point::

    def at_the_third_request(link, way, data):
        if way is UP and counts(data) == 3:
            link.lose_reply()  # the server gets it and does the work; the client sees the connection end

    with Proxy(server.address, tap=at_the_third_request) as proxy:
        store = make_store(f"redis://{proxy.address}/0")
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import os
import shutil
import socket
import struct
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum
from types import TracebackType
from typing import Self, TypeVar

import uvloop

T = TypeVar("T")

PIECE_BYTES = 256 * 1024
RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close sends a reset, what was not sent is lost


class Way(Enum):
    """Of bytes."""

    UP = "up"  #: from the client to the server
    DOWN = "down"  #: from the server to the client


UP, DOWN = Way.UP, Way.DOWN

Tap = Callable[["Link", Way, bytes], None]


@dataclass(frozen=True, slots=True)
class Line:
    """What one way of a link does to its bytes."""

    stalled: bool = False  #: keeps them
    swallowing: bool = False  #: loses them; the connection stays
    piece_bytes: int = PIECE_BYTES  #: passes on at most so many at a time
    delay_s: float = 0.0  #: before each piece


class Link:
    """One connection through the proxy. `tag` is for whoever has a tap to keep what they know of it."""

    def __init__(self, proxy: Proxy, number: int, lines: dict[Way, Line]) -> None:
        self.number = number  #: 1 for the first connection that was accepted, and so on
        self.passed = {UP: 0, DOWN: 0}  #: bytes
        self.tag: object = None
        self.over = False
        self._proxy = proxy
        self._lines = dict(lines)
        self._moved = asyncio.Event()  # the lines are not what they were
        self._ended = asyncio.Event()
        self._cut_on_reply = False
        self._reset = False

    # -- what can be done to it

    def cut(self, *, reset: bool = True) -> None:
        """End it now: with a reset, or in order. What has not been passed on is lost; in a tap the piece at hand too."""
        self._proxy._do(lambda: self._cut(reset))

    def lose_reply(self) -> None:
        """Nothing of the server comes through any more. Its next words end the connection: it has done what it was asked."""
        self._proxy._do(self._lose_reply)

    def stall(self, *ways: Way) -> None:
        """Nothing comes through (on *ways*; default: both), until `resume`; nothing is lost."""
        self.set(*ways, stalled=True)

    def resume(self) -> None:
        """As fast as can be again. What was swallowed stays lost."""
        self.set(stalled=False, piece_bytes=PIECE_BYTES, delay_s=0.0)

    def swallow(self, *ways: Way) -> None:
        """Half-open: what is sent from now on is lost and nobody hears of it. Not to be undone: cut it in the end."""
        self.set(*ways, swallowing=True)

    def slow(self, *ways: Way, piece_bytes: int = 1, delay_s: float = 0.0) -> None:
        """Pieces of *piece_bytes*, each *delay_s* seconds late."""
        self.set(*ways, piece_bytes=piece_bytes, delay_s=delay_s)

    def set(self, *ways: Way, **changes: object) -> None:
        """Change the `Line` of *ways*, default both."""
        self._proxy._do(lambda: self._set(ways, changes))

    # -- in the proxy's thread

    def _cut(self, reset: bool) -> None:
        self.over, self._reset = True, reset
        self._ended.set()

    def _lose_reply(self) -> None:
        self._cut_on_reply = True

    def _set(self, ways: tuple[Way, ...], changes: dict[str, object]) -> None:
        for way in ways or (UP, DOWN):
            self._lines[way] = replace(self._lines[way], **changes)  # type: ignore[arg-type]
        self._moved.set()
        self._moved = asyncio.Event()

    async def _run(self, client: socket.socket, server: socket.socket) -> None:
        """Until either end closes both ways, or it is cut."""
        pumps = [asyncio.create_task(self._pump(client, server, UP)), asyncio.create_task(self._pump(server, client, DOWN))]
        both = asyncio.gather(*pumps)
        ended = asyncio.create_task(self._ended.wait())
        try:
            await asyncio.wait({both, ended}, return_when=asyncio.FIRST_COMPLETED)
            self.over = True
        finally:
            for task in (both, ended, *pumps):
                task.cancel()
            await asyncio.gather(both, ended, *pumps, return_exceptions=True)
            for end in (client, server):
                if self._reset and end.family != socket.AF_UNIX:
                    with contextlib.suppress(OSError):
                        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)

    async def _pump(self, source: socket.socket, target: socket.socket, way: Way) -> None:
        loop = asyncio.get_running_loop()
        tap = self._proxy._tap
        try:
            while True:
                await self._flowing(way)  # what is not read fills the sender's buffers, as it would on a line that stalls
                data = await loop.sock_recv(source, PIECE_BYTES)
                if tap is not None and data:
                    tap(self, way, data)
                if way is DOWN and self._cut_on_reply:
                    self._cut(reset=True)
                if self.over:
                    return
                if not data:
                    break
                await self._pass_on(target, data, way)
            await self._flowing(way)
            if not self._lines[way].swallowing:
                target.shutdown(socket.SHUT_WR)
        except OSError:  # either end has gone: so does the other
            self._cut(reset=True)

    async def _pass_on(self, target: socket.socket, data: bytes, way: Way) -> None:
        loop = asyncio.get_running_loop()
        view = memoryview(data)
        while view:
            await self._flowing(way)
            line = self._lines[way]
            if line.swallowing:
                return
            if line.delay_s:
                await asyncio.sleep(line.delay_s)
            piece, view = view[: line.piece_bytes], view[line.piece_bytes :]
            await loop.sock_sendall(target, piece)
            self.passed[way] += len(piece)

    async def _flowing(self, way: Way) -> None:
        while self._lines[way].stalled:
            await self._moved.wait()


class Proxy:
    """Listens and passes on to *upstream*: "host:port", or the path of a Unix socket.

    *listen*: such an address too, or "tcp" (the default) for a port of the loopback that is free, or "unix" for a socket in a
    private directory, named *name*. A context manager; `start` and `stop` do the same.
    """

    def __init__(self, upstream: str, *, listen: str = "tcp", name: str = "s", tap: Tap | None = None) -> None:
        self.upstream = upstream
        self.address = listen  #: of the proxy, once it runs: as *upstream*
        self.accepted = 0  #: connections so far
        self._name = name
        self._tap = tap
        self._directory = ""
        self._lines = {UP: Line(), DOWN: Line()}
        self._refusing = False
        self._links: dict[Link, asyncio.Task[None]] = {}
        self._listener: socket.socket | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping: asyncio.Event | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def start(self) -> Self:
        """Listen, and serve in a thread. Returns itself."""
        self._listener = self._listen()
        started = threading.Event()
        self._thread = threading.Thread(target=lambda: uvloop.run(self._serve(started)), name="proxy", daemon=True)
        self._thread.start()
        if not started.wait(10):
            raise RuntimeError("the proxy did not start")
        return self

    def stop(self) -> None:
        """End all links and the thread. Idempotent."""
        if self._thread is not None and self._loop is not None and self._stopping is not None:
            with contextlib.suppress(RuntimeError):  # its loop has ended
                self._loop.call_soon_threadsafe(self._stopping.set)
            self._thread.join(10)
        if self._directory:
            shutil.rmtree(self._directory, ignore_errors=True)

    @property
    def directory(self) -> str:
        """Of its Unix socket."""
        return os.path.dirname(self.address)

    def links(self) -> list[Link]:
        """Those that are open now, oldest first."""
        return self._do(lambda: [link for link in self._links if not link.over])

    # -- what can be done to all links

    def cut(self, *, reset: bool = True) -> int:
        """End all links now. Returns how many."""
        return self._do(lambda: self._each(lambda link: link._cut(reset)))

    def lose_replies(self) -> int:
        """Each link that there is ends when the server next says something, which is lost. Returns how many."""
        return self._do(lambda: self._each(Link._lose_reply))

    def stall(self, *ways: Way) -> None:
        """As `Link.stall`, also of links to come."""
        self.set(*ways, stalled=True)

    def resume(self) -> None:
        """All is well again, but for what was swallowed: links that lost bytes are cut."""
        self._do(self._resume)

    def swallow(self, *ways: Way) -> None:
        """As `Link.swallow`, also of links to come."""
        self.set(*ways, swallowing=True)

    def slow(self, *ways: Way, piece_bytes: int = 1, delay_s: float = 0.0) -> None:
        """As `Link.slow`, also of links to come."""
        self.set(*ways, piece_bytes=piece_bytes, delay_s=delay_s)

    def set(self, *ways: Way, **changes: object) -> None:
        """Change the `Line` of *ways*, default both, of all links and those to come."""
        self._do(lambda: self._set(ways, changes))

    def refuse(self) -> None:
        """Cut all links, and whoever connects from now on is cut at once, until `resume`."""
        self._do(self._refuse)

    # -- in the proxy's thread

    def _do(self, act: Callable[[], T]) -> T:
        """The result of *act*, run in the proxy's thread."""
        assert self._loop is not None, "not started"
        if threading.current_thread() is self._thread:
            return act()
        done: concurrent.futures.Future[T] = concurrent.futures.Future()

        def run() -> None:
            try:
                done.set_result(act())
            except BaseException as error:
                done.set_exception(error)

        self._loop.call_soon_threadsafe(run)
        return done.result(10)

    def _each(self, act: Callable[[Link], None]) -> int:
        links = [link for link in self._links if not link.over]
        for link in links:
            act(link)
        return len(links)

    def _set(self, ways: tuple[Way, ...], changes: dict[str, object]) -> None:
        for way in ways or (UP, DOWN):
            self._lines[way] = replace(self._lines[way], **changes)  # type: ignore[arg-type]
        self._each(lambda link: link._set(ways, changes))

    def _resume(self) -> None:
        self._refusing = False
        self._lines = {UP: Line(), DOWN: Line()}
        for link in list(self._links):
            if any(line.swallowing for line in link._lines.values()):
                link._cut(reset=True)
            else:
                link.resume()

    def _refuse(self) -> None:
        self._refusing = True
        self._each(lambda link: link._cut(True))

    def _listen(self) -> socket.socket:
        address = self.address
        if address == "unix":
            self._directory = tempfile.mkdtemp(prefix="fjx-", dir="/tmp")
            address = f"{self._directory}/{self._name}"
        if address == "tcp" or not address.startswith("/"):
            host, _, port = address.rpartition(":") if address != "tcp" else ("127.0.0.1", "", "0")
            listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((host, int(port)))
            bound: tuple[str, int] = listener.getsockname()
            address = f"{bound[0]}:{bound[1]}"
        else:
            listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            listener.bind(address)
        listener.listen(1024)
        listener.setblocking(False)
        self.address = address
        return listener

    async def _serve(self, started: threading.Event) -> None:
        assert self._listener is not None
        self._loop, self._stopping = asyncio.get_running_loop(), asyncio.Event()
        accepting = asyncio.create_task(self._accept(self._listener))
        started.set()
        await asyncio.wait({accepting, stopping := asyncio.create_task(self._stopping.wait())}, return_when="FIRST_COMPLETED")
        for task in (accepting, stopping, *self._links.values()):
            task.cancel()
        await asyncio.gather(accepting, stopping, *self._links.values(), return_exceptions=True)
        self._listener.close()
        self._links.clear()

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            client, _ = await loop.sock_accept(listener)
            self.accepted += 1
            if self._refusing:
                client.close()
                continue
            link = Link(self, self.accepted, self._lines)
            self._links[link] = task = asyncio.create_task(self._connect(link, client))
            task.add_done_callback(lambda _, link=link: self._links.pop(link, None))  # type: ignore[misc]

    async def _connect(self, link: Link, client: socket.socket) -> None:
        client.setblocking(False)
        to_path = self.upstream.startswith("/")
        with client, socket.socket(socket.AF_UNIX if to_path else socket.AF_INET, socket.SOCK_STREAM) as server:
            server.setblocking(False)
            host, _, port = self.upstream.rpartition(":")
            try:
                await asyncio.get_running_loop().sock_connect(server, self.upstream if to_path else (host, int(port)))
            except OSError:
                return
            for end in (client, server):
                if end.family != socket.AF_UNIX:
                    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await link._run(client, server)
