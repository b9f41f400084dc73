"""The store of a contract test: every kind, plain and with every reply lost once; nothing may be left in it afterwards."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

import pytest

from fastjobs.backends.base import Store
from tests.contract.kit import LostReplies, empty
from tests.stores import Place


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
