"""The store of a contract test: every kind, plain and with every reply lost once; nothing may be left in it afterwards."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

import pytest

from fastjobs.backends.base import Store
from tests.contract.kit import LostReplies, empty
from tests.stores import KINDS, PARTITIONED, Place


@pytest.fixture(params=[*KINDS, PARTITIONED])
def store_kind(request: pytest.FixtureRequest) -> str:
    """Every kind, and several stores as one; but for tests of what holds in each of them only: those say so."""
    if request.param == PARTITIONED and (marker := request.node.get_closest_marker("one_store")) is not None:
        pytest.skip(marker.args[0])
    return str(request.param)


@pytest.fixture(params=["plain", "lost"])
def replies(request: pytest.FixtureRequest) -> str:
    """What becomes of the first reply to each call."""
    return str(request.param)


@pytest.fixture
async def another(place: Place, replies: str) -> AsyncIterator[Callable[[], Store]]:
    """Makes one more backend on the test's store, with connections of its own."""
    made: list[Store] = []

    def make() -> Store:
        backend = place.backend()
        made.append(backend if replies == "plain" else LostReplies(backend))
        return made[-1]

    yield make
    for backend in made:
        await backend.close()


@pytest.fixture
async def store(another: Callable[[], Store], place: Place) -> AsyncIterator[Store]:
    """An empty store. After the test it is emptied by the protocol's own calls, and then nothing may be left in it."""
    backend = another()
    yield backend
    await empty(backend)
    assert await place.leftovers() == []
