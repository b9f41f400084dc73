"""Backend calls by batch size, on real servers: push, and the exchange that settles one claim and makes the next."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from typing import Any

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from fastjobs.backends import make_store
from fastjobs.envelope import encode_job
from fastjobs.ids import fresh_name, new_id
from fastjobs.model import ENVELOPE_VERSION, Entry, Job, Settlement
from fastjobs.slots import worker_id

BATCHES = [1, 10, 100, 500, 1000]


def entries(count: int) -> list[Entry]:
    """*count* jobs with a payload of about 40 bytes."""
    found = []
    for index in range(count):
        id = new_id()
        job = Job(ENVELOPE_VERSION, 5, id, "noop", "default", b'{"path":"a.png","width":400,"n":%d}' % index, time.time())
        found.append(Entry(id, "default", 5, encode_job(job)))
    return found


class Calls:
    """A store driven from sync code, one call at a time."""

    def __init__(self, url: str) -> None:
        self.loop = asyncio.new_event_loop()
        self.store = make_store(url)
        self.worker, self.producer = worker_id(fresh_name(), 1, 0), fresh_name()
        self.n = self.seq = 0
        self.run(self.store.register(self.worker))

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(work)

    def push(self, batch: list[Entry]) -> None:
        self.seq += 1
        self.run(self.store.push(self.producer, self.seq, self.seq, batch))

    def exchange(self, settled: int | None, limit: int) -> int:
        self.n += 1
        settlements = [] if settled is None else [Settlement(settled)]
        return len(self.run(self.store.exchange(self.worker, self.n, settlements, ["default"], limit)).jobs)

    def close(self) -> None:
        self.run(self.store.close())
        self.loop.close()


@pytest.fixture
def calls(store_url: str) -> Any:
    made = Calls(store_url)
    yield made
    made.close()


@pytest.mark.parametrize("batch", BATCHES)
def test_push(benchmark: BenchmarkFixture, calls: Calls, batch: int) -> None:
    pushed = entries(batch)
    benchmark(calls.push, pushed)


@pytest.mark.parametrize("batch", BATCHES)
def test_exchange(benchmark: BenchmarkFixture, calls: Calls, batch: int) -> None:
    """Settle the last claim and make the next, of *batch* jobs each."""
    rounds = 30
    for _ in range(rounds + 2):
        calls.push(entries(batch))
    assert calls.exchange(None, batch) == batch

    def once() -> None:
        assert calls.exchange(calls.n, batch) == batch

    benchmark.pedantic(once, rounds=rounds, iterations=1, warmup_rounds=1)
    calls.exchange(calls.n, 0)
