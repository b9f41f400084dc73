"""What one job costs in this process, step by step. Run: pytest bench --benchmark-only -o addopts= (or tox -e bench)."""

from __future__ import annotations

import asyncio
import contextvars
import uuid
from random import Random

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from fastjobs import JobContext, JobQueue, RetryPolicy
from fastjobs.claims import OpenClaim
from fastjobs.codec import codec
from fastjobs.envelope import decode_job, encode_job
from fastjobs.execution import Execution, Runner
from fastjobs.ids import id_text, new_id
from fastjobs.model import ENVELOPE_VERSION, Job
from fastjobs.registry import Registry

jobs = JobQueue("memory://")


@jobs.job
async def three(path: str, width: int, crop: bool) -> None:
    """Three simple fields."""


@jobs.job
async def with_context(ctx: JobContext[None], path: str) -> None:
    """One field and the context."""


JOB = Job(ENVELOPE_VERSION, 5, new_id(), "three", "default", b'{"path":"a.png","width":400,"crop":true}', 1.7e9)
ENVELOPE = encode_job(JOB)


def test_id(benchmark: BenchmarkFixture) -> None:
    benchmark(new_id)


def test_id_as_text(benchmark: BenchmarkFixture) -> None:
    benchmark(id_text, JOB.id)


def test_uuid4_for_comparison(benchmark: BenchmarkFixture) -> None:
    benchmark(uuid.uuid4)


def test_envelope_encode(benchmark: BenchmarkFixture) -> None:
    benchmark(encode_job, JOB)


def test_envelope_decode(benchmark: BenchmarkFixture) -> None:
    benchmark(decode_job, ENVELOPE)


@pytest.mark.parametrize("name", ["orjson", "msgspec"])
def test_payload_encode(benchmark: BenchmarkFixture, name: str) -> None:
    encode = codec("orjson" if name == "orjson" else "msgspec").encode
    benchmark(encode, {"path": "a.png", "width": 400, "crop": True})


def test_bind_encode_and_check(benchmark: BenchmarkFixture) -> None:
    three.handler.resolve()
    benchmark(three.handler.bind, "a.png", 400, crop=True)


def test_prepare(benchmark: BenchmarkFixture) -> None:
    benchmark(three.prepare, "a.png", 400, True)


def test_prepare_to_entry(benchmark: BenchmarkFixture) -> None:
    benchmark(lambda: three.prepare("a.png", 400, True).entry())


def test_payload_decode(benchmark: BenchmarkFixture) -> None:
    three.handler.resolve()
    benchmark(three.handler.decode, JOB.payload)


def test_retry_delay(benchmark: BenchmarkFixture) -> None:
    policy, rng = RetryPolicy(jitter=0.1), Random(1)
    benchmark(policy.delay_s, 7, rng)


def test_registry_dispatch(benchmark: BenchmarkFixture) -> None:
    benchmark(jobs.registry.get, "three")


def test_context_comparison(benchmark: BenchmarkFixture) -> None:
    """What the check costs that no context variable leaks into the next job."""
    before = contextvars.copy_context()
    benchmark(lambda: contextvars.copy_context() != before)


@pytest.mark.parametrize("handler", [three, with_context], ids=["plain", "with context"])
def test_execution_of_1000_jobs(benchmark: BenchmarkFixture, handler: object) -> None:
    """Resolve, decode, run, judge: per 1,000 no-op jobs, awaited inline."""
    registry = Registry()
    for one in (three, with_context):
        one.handler.resolve()
        registry.add(one.handler)
    execution, runner = Execution(registry, {}, worker="bench.1-0"), Runner()
    job = JOB
    if handler is with_context:
        job = Job(ENVELOPE_VERSION, 5, new_id(), "with_context", "default", b'{"path":"a.png"}', 1.7e9)

    async def run() -> None:
        for _ in range(1000):
            await execution.run(job, runner)

    loop = asyncio.new_event_loop()
    benchmark(lambda: loop.run_until_complete(run()))
    loop.close()


def test_1000_tasks_for_comparison(benchmark: BenchmarkFixture) -> None:
    """What a task per job would cost."""

    async def job() -> None: ...

    async def run() -> None:
        await asyncio.gather(*[asyncio.create_task(job()) for _ in range(1000)])

    loop = asyncio.new_event_loop()
    benchmark(lambda: loop.run_until_complete(run()))
    loop.close()


def test_settlement_of_a_split_claim(benchmark: BenchmarkFixture) -> None:
    claim = OpenClaim(1, 1000)
    for index in range(0, 1000, 2):
        claim.end(index, None)
    benchmark(claim.settlement, 2)
