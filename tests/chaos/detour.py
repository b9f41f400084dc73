"""The way to a store by a proxy: its steps are counted, and at one of them something happens."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import parse_qs, urlsplit

from fastjobs.backends.base import Store
from fastjobs.backends.frames import Op
from fastjobs.backends.postgres import PostgresBackend
from fastjobs.backends.redis import SCRIPTS
from fastjobs.backends.redis_partitions import redis_store
from fastjobs.backends.remote import SocketBackend
from tests.chaos.proxy import UP, Link, Proxy, Tap, Way

SCRIPT_NAMES = {script.sha: name for name, script in SCRIPTS.items()}

OP_NAMES = {int(op): op.name for op in Op}

Harm = Callable[[Link], None]
"""What may happen to a link at a step."""


def cut(link: Link) -> None:
    """The connection ends. A request that is on its way does not arrive; the reply to one that was served is lost."""
    link.cut()


def stall(link: Link) -> None:
    """Nothing comes through any more, nothing is said."""
    link.stall()


def half_open(link: Link) -> None:
    """What is sent is lost, nothing is said."""
    link.swallow()


class Steps:
    """The pieces that pass a proxy, counted: a request or a reply, whole unless it is large; what is sent together is one step.

    A tap of the proxy, so called in its thread.
    """

    def __init__(self) -> None:
        self.count = 0
        self.hit = ""  #: where the harm was done; empty: nowhere yet
        self.asked: Counter[str] = Counter()  #: steps by the call that they belong to, "up" the request and "down" the reply
        self._at: tuple[int, ...] = ()
        self._call: tuple[str, int] | None = None
        self._harm: Harm = cut

    def plan(self, harm: Harm, *at: int, call: tuple[str, int] | None = None) -> None:
        """Count anew, and do *harm* at the steps *at*, or at the n-th one of a *call*."""
        self.count, self.hit, self.asked = 0, "", Counter()
        self._at, self._call, self._harm = at, call, harm

    def of_each_call(self) -> list[tuple[str, int]]:
        """One request and one reply of each call that was made, chosen at random; each for `plan`."""
        return [(asked, random.randint(1, times)) for asked, times in self.asked.items()]

    def __call__(self, link: Link, way: Way, data: bytes) -> None:
        if link.tag is None:
            link.tag = Calls()
        assert isinstance(link.tag, Calls)
        asked = f"{way.value} {link.tag.name(data) if way is UP else link.tag.last}"
        self.count += 1
        self.asked[asked] += 1
        if self.count in self._at or self._call == (asked, self.asked[asked]):
            self.hit += f" step {self.count}, {asked} {self.asked[asked]} ({data[:60]!r}…)"
            self._harm(link)


class Calls:
    """Reads of one connection's requests which calls they are, in any store's protocol, well enough to tell them apart."""

    def __init__(self) -> None:
        self.last = ""
        self._statements: dict[bytes, str] = {}

    def name(self, data: bytes) -> str:
        """Of the request *data*."""
        if data[:1] == b"*":
            words = [word.decode(errors="replace") for word in data.split(b"\r\n", 5)[2:5:2]]
            self.last = " ".join(SCRIPT_NAMES.get(word, word) for word in words)
        elif data[:1] == b"P":
            name, query = data[5:].split(b"\0", 2)[:2]
            self.last = self._statements[name] = " ".join(query.decode(errors="replace").split()[:6])
        elif data[:1] in b"BDE" and data[1:2] == b"\0":
            name = data[5:].split(b"\0", 2)[1 if data[:1] == b"B" else 0].lstrip(b"S")
            self.last = f"{data[:1].decode()} {self._statements.get(name, '')}"
        else:  # a frame of the broker, or what stands at the beginning of a connection
            self.last = OP_NAMES.get(data[12], "hello") if len(data) > 12 else str(data[:1])
        return self.last


@dataclass(frozen=True, slots=True)
class Detour:
    """A store behind a proxy."""

    url: str  #: by the proxy
    proxy: Proxy
    steps: Steps

    def backend(self, call_timeout_s: float) -> Store:
        """Unopened."""
        if self.url.startswith("memory+unix://"):
            return SocketBackend(self.url.removeprefix("memory+unix://"), call_timeout_s=call_timeout_s)
        if self.url.startswith("postgres"):
            return PostgresBackend(self.url, call_timeout_s=call_timeout_s, connect_timeout_s=call_timeout_s)
        return redis_store(self.url, call_timeout_s=call_timeout_s, connect_timeout_s=call_timeout_s)


@contextmanager
def detour(url: str, tap: Tap | None = None) -> Iterator[Detour]:
    """To the store *url*, of any kind that has a server, but for TLS. *tap*: another one than that which counts steps."""
    parts = urlsplit(url)
    hosts = parse_qs(parts.query).get("host", [""])
    steps = Steps()
    tap = tap or steps
    if parts.scheme.startswith("postgres") and hosts[0].startswith("/"):
        with Proxy(f"{hosts[0]}/.s.PGSQL.5432", listen="unix", name=".s.PGSQL.5432", tap=tap) as proxy:
            yield Detour(url.replace(hosts[0], proxy.directory), proxy, steps)
    elif parts.scheme in ("unix", "memory+unix"):
        listen = "tcp" if parts.scheme == "unix" else "unix"
        with Proxy(parts.path, listen=listen, tap=tap) as proxy:
            by = f"redis://{proxy.address}/0" if listen == "tcp" else f"{parts.scheme}://{proxy.address}"
            yield Detour(f"{by}?{parts.query}" if parts.query else by, proxy, steps)
    else:
        port = parts.port or (5432 if parts.scheme.startswith("postgres") else 6379)
        with Proxy(f"{parts.hostname or 'localhost'}:{port}", tap=tap) as proxy:
            user, at, _ = parts.netloc.rpartition("@")
            yield Detour(parts._replace(netloc=f"{user}{at}{proxy.address}").geturl(), proxy, steps)
