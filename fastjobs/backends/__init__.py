"""Stores by URL. A store's library is imported when the first URL of its kind is opened."""

from __future__ import annotations

import importlib
import re
from typing import Final, cast
from urllib.parse import unquote

from fastjobs.backends.base import Store
from fastjobs.errors import ConfigError

_KINDS: Final = {
    "memory": ("fastjobs.backends.memory", "MemoryBackend"),
    "memory+unix": ("fastjobs.backends.remote", "SocketBackend"),
    "redis": ("fastjobs.backends.redis_partitions", "redis_store"),
    "rediss": ("fastjobs.backends.redis_partitions", "redis_store"),
    "valkey": ("fastjobs.backends.redis_partitions", "redis_store"),
    "valkeys": ("fastjobs.backends.redis_partitions", "redis_store"),
    "redis+unix": ("fastjobs.backends.redis_partitions", "redis_store"),
    "unix": ("fastjobs.backends.redis_partitions", "redis_store"),
    "redis+sentinel": ("fastjobs.backends.redis_partitions", "redis_store"),
    "rediss+sentinel": ("fastjobs.backends.redis_partitions", "redis_store"),
    "valkey+sentinel": ("fastjobs.backends.redis_partitions", "redis_store"),
    "valkeys+sentinel": ("fastjobs.backends.redis_partitions", "redis_store"),
    "postgres": ("fastjobs.backends.postgres", "PostgresBackend"),
    "postgresql": ("fastjobs.backends.postgres", "PostgresBackend"),
}

_ALIASES: Final = {
    "valkey": "redis",
    "valkeys": "rediss",
    "redis+unix": "unix",
    "valkey+sentinel": "redis+sentinel",
    "valkeys+sentinel": "rediss+sentinel",
    "postgres": "postgresql",
}


def scheme_of(url: str) -> str:
    """The part before ``://``, in lower case. ConfigError if *url* has none that fastjobs knows."""
    scheme, separator, _ = url.partition("://")
    if not separator or scheme.lower() not in _KINDS:
        shown = mask_password(url)
        raise ConfigError(f"{shown!r} names no store: use memory://, redis://host:6379/0 or postgresql://host/database")
    return scheme.lower()


def make_store(url: str, *, create: bool = True) -> Store:
    """An unopened backend for *url*. ConfigError if no store is of that kind or its options are wrong.

    Without *create* it does not make a schema that is missing.
    """
    scheme = scheme_of(url)
    module, name = _KINDS[scheme]
    kind = getattr(importlib.import_module(module), name)
    if scheme == "memory":
        return cast(Store, kind())
    rest = url.partition("://")[2]
    if scheme == "memory+unix":
        if not rest.startswith("/"):
            raise ConfigError(
                f"{mask_password(url)!r} names no store: after memory+unix:// comes the absolute path of a socket"
            )
        return cast(Store, kind(rest))
    options = {"migrate": create} if _KINDS[scheme][1] == "PostgresBackend" else {}
    return cast(Store, kind(f"{_ALIASES.get(scheme, scheme)}://{rest}", **options))


_HOST: Final = re.compile(r"([^:\[\]]*|\[[^\[\]]*\])(:\d+)?", re.ASCII)


def check_password(url: str) -> None:
    """ConfigError for a URL in which a password, or something else, holds a sign that means something else in a URL.

    Libraries would take its halves for host, port and database, and say them in their errors.
    """
    rest = url.partition("://")[2]
    address = re.split(r"[/?#]", rest, maxsplit=1)[0]
    behind = rest[len(address) :]
    user, at, _ = address.rpartition("@")
    brackets = re.search(r"[\[\]]", user)
    inside = address and "@" in behind and (at or "@" in behind.partition("?")[0] or not _are_hosts(address))
    if brackets or inside:
        raise ConfigError(
            f"{mask_password(url)!r} is no URL: in a password write / as %2F, ? as %3F, # as %23, [ as %5B, ] as %5D"
            " and @ as %40; @ so elsewhere too"
        )


def _are_hosts(address: str) -> bool:
    return all(map(_HOST.fullmatch, address.split(",")))


def mask_password(url: str) -> str:
    """*url* with any password in it replaced by ***.

    A password that should have been percent-encoded may hold any sign, so it goes from the first colon to the last @.
    """
    scheme, separator, rest = url.partition("://")
    if not separator:
        scheme, rest = "", url
    address, mark, query = rest.partition("?")
    rest = address + mark + "&".join(_mask_option(option) for option in query.split("&"))
    before, at, after = rest.rpartition("@")
    if at and ":" in before:
        rest = f"{before.partition(':')[0]}:***@{after}"
    return f"{scheme}{separator}{rest}"


def _mask_option(option: str) -> str:
    name, _, _ = option.partition("=")
    known = unquote(name).lower()
    return f"{name}=***" if "pass" in known and known != "passfile" else option
