"""The proxy of the chaos tests does to connections what it says, and nothing else."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

import pytest

from tests.chaos.proxy import DOWN, UP, Link, Proxy, Way

PATIENCE_S = 20.0


class Echo:
    """A server that answers each line with the same line."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self.listener.getsockname()[1]}"
        self.heard: list[bytes] = []
        self.news = threading.Condition()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self._talk, args=(client,), daemon=True).start()

    def _talk(self, client: socket.socket) -> None:
        with client, client.makefile("rb") as file:
            try:
                for line in file:
                    with self.news:
                        self.heard.append(line)
                        self.news.notify_all()
                    client.sendall(line)
            except OSError:
                pass

    def stop(self) -> None:
        """Hear of no further connection, also in a thread that waits for one. Idempotent."""
        with contextlib.suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()

    def wait_for(self, line: bytes) -> None:
        with self.news:
            assert self.news.wait_for(lambda: line in self.heard, PATIENCE_S), self.heard


@pytest.fixture
def echo() -> Iterator[Echo]:
    server = Echo()
    yield server
    server.stop()


def connect(proxy: Proxy, timeout_s: float = PATIENCE_S) -> socket.socket:
    if proxy.address.startswith("/"):
        client = socket.socket(socket.AF_UNIX)
        client.settimeout(timeout_s)
        client.connect(proxy.address)
        return client
    host, _, port = proxy.address.rpartition(":")
    return socket.create_connection((host, int(port)), timeout_s)


def say(client: socket.socket, line: bytes) -> bytes:
    """The answer; b"" if the connection ends first."""
    try:
        client.sendall(line)
        return read(client, len(line))
    except ConnectionError:
        return b""


def read(client: socket.socket, size: int) -> bytes:
    got = b""
    while len(got) < size:
        data = client.recv(size - len(got))
        if not data:
            break
        got += data
    return got


@pytest.mark.parametrize("listen", ["tcp", "unix"])
def test_everything_passes_unchanged_until_told_otherwise(echo: Echo, listen: str) -> None:
    with Proxy(echo.address, listen=listen) as proxy, connect(proxy) as client:
        large = b"x" * 3_000_000 + b"\n"
        sender = threading.Thread(target=client.sendall, args=(large,))
        sender.start()
        assert read(client, len(large)) == large
        sender.join()
        (link,) = proxy.links()
        assert link.passed == {UP: len(large), DOWN: len(large)}


def test_a_cut_connection_ends_and_the_next_one_works(echo: Echo) -> None:
    with Proxy(echo.address) as proxy, connect(proxy) as client:
        assert say(client, b"one\n") == b"one\n"
        assert proxy.cut() == 1
        assert say(client, b"two\n") == b""
        with connect(proxy) as again:
            assert say(again, b"three\n") == b"three\n"


def test_a_lost_reply_means_that_the_server_has_heard_and_the_client_has_not(echo: Echo) -> None:
    with Proxy(echo.address) as proxy, connect(proxy) as client:
        assert say(client, b"one\n") == b"one\n"
        assert proxy.lose_replies() == 1
        assert say(client, b"two\n") == b""
        echo.wait_for(b"two\n")


def test_a_tap_acts_at_the_very_piece_that_it_sees(echo: Echo) -> None:
    def at_the_second(link: Link, way: Way, data: bytes) -> None:
        if way is UP and data == b"two\n":
            link.lose_reply()
        if way is UP and data == b"never\n":
            link.cut()

    with Proxy(echo.address, tap=at_the_second) as proxy:
        with connect(proxy) as client:
            assert say(client, b"one\n") == b"one\n"
            assert say(client, b"two\n") == b""
        with connect(proxy) as client:
            assert say(client, b"never\n") == b""
    assert echo.heard == [b"one\n", b"two\n"]


def test_a_stalled_line_loses_nothing(echo: Echo) -> None:
    with Proxy(echo.address) as proxy, connect(proxy) as client:
        assert say(client, b"one\n") == b"one\n"
        proxy.stall(DOWN)
        client.sendall(b"two\n")
        echo.wait_for(b"two\n")
        client.settimeout(0.05)
        with pytest.raises(TimeoutError):
            client.recv(1)
        client.settimeout(PATIENCE_S)
        proxy.resume()
        assert read(client, 4) == b"two\n"


def test_a_half_open_connection_swallows_one_way_and_is_cut_in_the_end(echo: Echo) -> None:
    with Proxy(echo.address) as proxy, connect(proxy) as client:
        assert say(client, b"one\n") == b"one\n"
        proxy.swallow(UP)
        client.sendall(b"two\n")
        client.settimeout(0.05)
        with pytest.raises(TimeoutError):
            client.recv(1)
        client.settimeout(PATIENCE_S)
        proxy.resume()
        assert say(client, b"three\n") == b""
    assert b"two\n" not in echo.heard
    assert b"three\n" not in echo.heard


def test_a_slow_line_passes_byte_by_byte(echo: Echo) -> None:
    pieces: list[bytes] = []

    with Proxy(echo.address) as inner, Proxy(inner.address, tap=lambda link, way, data: pieces.append(data)) as proxy:
        inner.slow(DOWN, delay_s=0.002)
        with connect(proxy) as client:
            assert say(client, b"a longer line\n") == b"a longer line\n"
    assert len(pieces) > 5  # one up, the rest in pieces


def test_a_proxy_that_refuses_lets_nobody_in_until_it_resumes(echo: Echo) -> None:
    with Proxy(echo.address) as proxy, connect(proxy) as client:
        assert say(client, b"one\n") == b"one\n"
        proxy.refuse()
        assert say(client, b"two\n") == b""
        with connect(proxy) as refused:
            assert say(refused, b"three\n") == b""
        proxy.resume()
        with connect(proxy) as client:
            assert say(client, b"four\n") == b"four\n"


def test_a_server_that_is_away_ends_the_connection(echo: Echo) -> None:
    echo.stop()
    with Proxy(echo.address) as proxy, connect(proxy) as client:
        assert say(client, b"one\n") == b""
