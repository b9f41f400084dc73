"""Private, fresh stores for the scripts of bench/: the servers of the tests."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tests.servers.postgres import PostgresServer  # noqa: E402
from tests.servers.redis import RedisServer  # noqa: E402

STORES = ("memory", "redis", "postgres")


@contextmanager
def store_at(kind: str) -> Iterator[str]:
    """The URL of a private, empty store: memory, redis (Valkey, without persistence) or postgres (fsync and all)."""
    if kind == "memory":
        yield "memory://"
        return
    server = RedisServer("valkey") if kind == "redis" else PostgresServer.durable()
    try:
        server.start()
        yield server.url
    finally:
        server.stop()
