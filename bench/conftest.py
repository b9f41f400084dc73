"""Real servers for the benchmarks, the same private ones that the tests start."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from fastjobs.ids import fresh_name
from tests.conftest import postgres_server, redis_server, valkey_server
from tests.stores import Server

__all__ = ["postgres_server", "redis_server", "store_url", "valkey_server"]


@pytest.fixture(params=["memory", "redis", "valkey", "postgres"])
def store_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """A URL of an empty store of each kind."""
    if request.param == "memory":
        yield "memory://"
        return
    server: Server = request.getfixturevalue(f"{request.param}_server")
    separator = "&" if "?" in server.url else "?"
    yield f"{server.url}{separator}{'schema' if request.param == 'postgres' else 'namespace'}=bench_{fresh_name()}"
