"""The way to a store by a proxy: its steps are counted, and at one of them something happens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import parse_qs, urlsplit

from fastjobs.backends.base import Store
from fastjobs.backends.postgres import PostgresBackend
from fastjobs.backends.redis_partitions import redis_store
from fastjobs.backends.remote import SocketBackend
from tests.chaos.proxy import UP, Link, Proxy, Tap, Way

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
        self._at: Iterator[int] = iter(())
        self._next = 0
        self._harm: Harm = cut

    def plan(self, harm: Harm, *at: int) -> None:
        """Count anew, and do *harm* at the steps *at*, ascending."""
        self.count, self.hit, self._harm = 0, "", harm
        self._at = iter(at)
        self._next = next(self._at, 0)

    def __call__(self, link: Link, way: Way, data: bytes) -> None:
        self.count += 1
        if self.count == self._next:
            self._next = next(self._at, 0)
            self.hit += f" {'request' if way is UP else 'reply'} {self.count} ({data[:60]!r}…)"
            self._harm(link)


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


def spread(count: int, sample: int, start: int) -> list[int]:
    """About *sample* of the steps 1..*count*, evenly; *start* chooses the first."""
    stride = max(count // sample, 1)
    return list(range(1 + start % stride, count + 1, stride))
