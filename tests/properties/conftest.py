"""An app on each kind of store, and a clock that is moved by hand."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator

import pytest
from hypothesis import HealthCheck, settings

from fastjobs import JobQueue, clock
from fastjobs.backends.base import Store
from tests.stores import Place

few = settings(
    max_examples=15,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
"""Real servers: a few examples on each. They share the test's store, so each uses a queue of its own."""

EARLY_S = 0.010
"""A job must not be there so long before it is due."""

fresh = (f"q{number}" for number in itertools.count())
"""Names of queues that no other example uses."""


class Clock:
    """The store's clock as this test moves it: only ahead, and in step with the real one otherwise."""

    def __init__(self, store: Store) -> None:
        self._store = store

    @property
    def now(self) -> float:
        """Seconds on the store's clock, from an arbitrary start."""
        return clock.monotonic() + self._store.time_shift_s

    def move_to(self, moment: float) -> None:
        """Make `now` *moment*, unless it is later already."""
        self._store.time_shift_s = max(self._store.time_shift_s, moment - clock.monotonic())


@pytest.fixture
async def jobs(any_store: Store) -> AsyncIterator[JobQueue]:
    """An app without handlers on the test's store."""
    queue = JobQueue(any_store)
    yield queue
    await queue.close()


@pytest.fixture
def hand(any_store: Store) -> Clock:
    """The hand at the clock."""
    return Clock(any_store)


@pytest.fixture
async def elsewhere(place: Place) -> AsyncIterator[JobQueue]:
    """Another app on the same store, with connections of its own."""
    backend = place.backend()
    queue = JobQueue(backend)
    yield queue
    await queue.close()
    await backend.close()
