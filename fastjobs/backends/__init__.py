"""Stores by URL. A store's library is imported when the first URL of its kind is opened."""

from __future__ import annotations

import importlib
import re
from typing import Final, cast

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
        return cast(Store, kind(rest))
    options = {"migrate": create} if _KINDS[scheme][1] == "PostgresBackend" else {}
    return cast(Store, kind(f"{_ALIASES.get(scheme, scheme)}://{rest}", **options))


def mask_password(url: str) -> str:
    """*url* with any password in it replaced by ***."""
    masked = re.sub(r"(?<=://)([^/?#@]*?):[^/?#]*@", r"\1:***@", url)
    return re.sub(r"(?i)([?&]\w*(?:password|passwd)=)[^&#]*", r"\1***", masked)
