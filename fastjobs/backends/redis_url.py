"""Redis URLs, taken apart: the app's namespace, the nodes of a cluster, the sentinels of a service."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

from fastjobs.backends import mask_password
from fastjobs.errors import ConfigError

_SENTINEL: Final = {"redis+sentinel": "redis", "rediss+sentinel": "rediss"}
"""Schemes, each with that of the servers."""


def split_namespace(url: str, namespace: str | None) -> tuple[str, str]:
    """*url* as redis-py takes it, and the app's namespace: *namespace*, or the one in the URL's query, or "fj"."""
    address, _, options = url.partition("?")
    query = parse_qsl(options, keep_blank_values=True)
    named = [value for key, value in query if key == "namespace"]
    chosen = namespace if namespace is not None else named[-1] if named else "fj"
    if not re.fullmatch(r"[\w.-]{1,64}", chosen, re.ASCII):
        raise ConfigError(f"namespace: must be 1 to 64 letters, digits, '_', '-' or '.', got {chosen!r:.100}")
    rest = urlencode([(key, value) for key, value in query if key != "namespace"])
    return f"{address}?{rest}" if rest else address, chosen


def check_database(url: str, shown: str) -> None:
    """ConfigError for a database that is no number: redis-py takes database 0 then, without a word."""
    try:
        parts = urlsplit(url)
    except ValueError:  # its words may hold half of a password
        raise ConfigError(f"{shown!r} is no Redis URL: its host is none") from None
    if parts.scheme in ("redis", "rediss") and not re.fullmatch(r"/?[0-9]*", parts.path):
        raise ConfigError(
            f"{shown!r} is no Redis URL: its database must be a number, as in redis://host:6379/0, got {parts.path[1:]!r}"
        )
    named = dict(parse_qsl(parts.query)).get("db", "0")
    if not named.isdecimal():
        raise ConfigError(f"{shown!r} is no Redis URL: db must be a number, got {named!r}")


def split_hosts(url: str, default_port: int = 6379) -> tuple[str, list[tuple[str, int]]]:
    """*url* with only its first host, and the (host, port) of all that it names: ``redis://a:7000,b:7001/0`` names two nodes.

    [] for a Unix socket. ConfigError for an address that is none.
    """
    head, separator, rest = url.partition("://")
    if head == "unix":
        return url, []
    address = re.split(r"[/?#]", rest, maxsplit=1)[0]
    tail = rest[len(address) :]
    user, at, hosts = address.rpartition("@")
    found = []
    for host in hosts.split(","):
        try:
            parts = urlsplit(f"//{host}")
            found.append((parts.hostname or "localhost", parts.port or default_port))
        except ValueError as error:
            raise ConfigError(f"{mask_password(url)!r} is no Redis URL: {host!r}: {error}") from None
    return f"{head}{separator}{user}{at}{hosts.partition(',')[0]}{tail}", found


@dataclass(frozen=True, slots=True)
class Watched:
    """A primary that sentinels know by the name *service*."""

    service: str
    sentinels: tuple[tuple[str, int], ...]
    username: str | None  #: for the sentinels
    password: str | None


def split_sentinels(url: str) -> tuple[str, Watched | None]:
    """*url* with only its first host, as `split_hosts`, and what it says about sentinels; None if it is of another kind.

    ``redis+sentinel://user:password@a:26379,b/service/0``: the credentials are the servers', those of the sentinels are the
    options ``sentinel_username`` and ``sentinel_password``. The host in the URL returned stands for none. ConfigError if no
    service is named.
    """
    scheme = url.partition("://")[0]
    if scheme not in _SENTINEL:
        return url, None
    one, hosts = split_hosts(url, 26379)
    address, _, options = one.partition("?")
    head, *path = address.partition("://")[2].split("/")
    service = unquote(path[0]) if path else ""
    if not service or len(path) > 2:
        raise ConfigError(
            f"{mask_password(url)!r} is no URL of a Redis Sentinel: it must name the primary as the sentinels do,"
            f" {scheme}://host:26379,host:26379/mymaster, and after that perhaps a database, /0"
        )
    query = parse_qsl(options, keep_blank_values=True)
    given = dict(query)
    rest = urlencode([(key, value) for key, value in query if key not in ("sentinel_username", "sentinel_password")])
    user, at, _ = head.rpartition("@")
    server = f"{_SENTINEL[scheme]}://{user}{at}localhost/{path[1] if len(path) > 1 else ''}"
    watched = Watched(service, tuple(hosts), given.get("sentinel_username"), given.get("sentinel_password"))
    return f"{server}?{rest}" if rest else server, watched
