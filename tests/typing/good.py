"""What must pass mypy --strict and pyright: the calls that README and docs show, each with the type it gives."""

from __future__ import annotations

from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, TypedDict, assert_type

from pydantic import BaseModel

from fastjobs import (
    Call,
    EnqueueOptions,
    Job,
    JobContext,
    JobFunction,
    JobHandle,
    JobQueue,
    QueueOptions,
    RetryPolicy,
    Stats,
    TimeLimitExceeded,
    WorkerOptions,
)


class Pool:
    """What a lifespan yields."""

    async def fetch(self, query: str) -> list[int]:
        return [len(query)]


@asynccontextmanager
async def lifespan() -> AsyncIterator[Pool]:
    yield Pool()


jobs = JobQueue("memory://", lifespan=lifespan, queues={"mail": QueueOptions(priority=3)}, worker=WorkerOptions(concurrency=5))


@dataclass
class Size:
    width: int
    height: int = 600


class Options(TypedDict, total=False):
    quality: int


class Order(BaseModel):
    number: int


@jobs.job
async def resize(path: str, width: int = 800, *, crop: bool = False) -> str:
    return path


@jobs.job(queue="mail", max_attempts=10, timeout="30s", priority=7, retry=RetryPolicy(base=3))
def send_mail(to: str, body: str) -> int:
    return len(body)


@jobs.job
async def sync_stock(ctx: JobContext[Pool], shop_id: int) -> None:
    assert_type(ctx.state, Pool)
    assert_type(await ctx.state.fetch("stock"), list[int])
    assert_type(ctx.attempt, int)
    ctx.log.info("attempt %d of %d", ctx.attempt, ctx.max_attempts)


@jobs.job(isolate=True)
def plain_with_context(ctx: JobContext, text: str) -> None:
    ctx.log.info(text)


@jobs.job(ctx=False)
async def first_is_anything(value: Any, other: int = 0) -> None: ...


@jobs.job
async def rich(
    size: Size, options: Options, order: Order, when: datetime | None = None, tags: list[str] | None = None
) -> None: ...


@jobs.job
async def nothing() -> None: ...


@jobs.job
async def positional(first: int, /, second: str) -> None: ...


class Resize(Job[Size]):
    name = "resize-class"

    async def execute(self, ctx: JobContext[Pool], data: Size) -> None:
        assert_type(data, Size)
        assert_type(ctx.state, Pool)


jobs.register_job(Resize())
jobs.register_job(Resize(), name="other", queue="images", max_attempts=3)


async def calls() -> None:
    # The function itself keeps its type.
    assert_type(await resize("a.png", 5, crop=True), str)
    assert_type(send_mail("a@b", "c"), int)
    await sync_stock(JobContext.for_test(state=Pool()), 5)
    plain_with_context(JobContext.for_test(), "text")
    coroutine: Coroutine[Any, Any, str] = resize("a")
    coroutine.close()

    # Enqueueing takes the same arguments without the context.
    handle = await resize.enqueue("a.png", width=400)
    assert_type(handle, JobHandle)
    assert_type(handle.id, str)
    await resize.enqueue(path="a.png", crop=True)
    await send_mail.enqueue("a@b", body="hello")
    await sync_stock.enqueue(7)
    await sync_stock.enqueue(shop_id=7)
    await plain_with_context.enqueue("text")
    await first_is_anything.enqueue(object(), other=3)
    await nothing.enqueue()
    await positional.enqueue(1, "b")
    await positional.enqueue(1, second="b")
    await rich.enqueue(Size(1), {"quality": 5}, Order(number=1), when=datetime.now(UTC), tags=["a"])

    # Options stand apart.
    await resize.options(delay="5m", priority=9).enqueue("b.png")
    await resize.options(delay=timedelta(minutes=5), queue="images", max_attempts=2).enqueue("b.png", 5)
    await sync_stock.options(run_at=datetime.now(UTC), timeout=1.5, retry=RetryPolicy(cap="1h"), max_losses=2).enqueue(3)

    # A prepared call is one type, whatever it calls.
    call = resize.prepare("a.png")
    assert_type(call, Call)
    assert_type(send_mail.options(delay=5).prepare("a", "b"), Call)
    assert_type(await jobs.enqueue(call), JobHandle)
    assert_type(await jobs.enqueue_many(resize.prepare(path, 400) for path in ("a", "b")), int)
    await jobs.enqueue_many([resize.prepare("a"), sync_stock.prepare(1)])
    await jobs.enqueue_many(source())

    # By name and by class.
    await jobs.enqueue("resize", {"path": "c.png"})
    await jobs.enqueue("resize", {"path": "c.png"}, EnqueueOptions(priority=3))
    await jobs.enqueue("resize", {"path": "c.png"}, delay="5m", priority=1)
    await jobs.enqueue(resize, {"path": "c.png"})
    await jobs.enqueue(Resize, Size(1, 2))
    await jobs.enqueue(Resize, Size(1, 2), EnqueueOptions(max_attempts=3))
    await jobs.enqueue(Resize, Size(1, 2), max_attempts=3)
    await jobs.enqueue(Resize(), Size(1, 2))
    assert_type(jobs.prepare("resize", {"path": "c"}), Call)
    assert_type(jobs.prepare(Resize, Size(1)), Call)

    # The queue.
    async with jobs as same:
        assert_type(same, JobQueue)
    with jobs.override("memory://") as swapped:
        assert_type(swapped, JobQueue)
    assert_type(await jobs.process_one(), bool)
    assert_type(await jobs.stats(), Stats)
    await jobs.start_worker(WorkerOptions(concurrency=3))


async def source() -> AsyncIterator[Call]:
    yield resize.prepare("a.png")


def from_plain_code() -> None:
    assert_type(jobs.sync.enqueue(resize.prepare("d.png")), JobHandle)
    assert_type(jobs.sync.enqueue("resize", {"path": "d.png"}, priority=2), JobHandle)
    assert_type(jobs.sync.enqueue_many(resize.prepare(path) for path in ("a", "b")), int)
    jobs.sync.enqueue(Resize, Size(1))


def kept(function: JobFunction[[str], [str], Coroutine[Any, Any, None]]) -> None:
    """A handle's type can be written down."""
    function.prepare("a")


@jobs.job(ctx=True)
async def context_without_annotation(ctx, number: int) -> None:  # type: ignore[no-untyped-def]
    ctx.log.info("%d", number)


async def several_queues_and_filters() -> None:
    await context_without_annotation.enqueue(5)
    await jobs.process_one(["mail", "video"])
    WorkerOptions(queues=["mail", "video"])
    RetryPolicy(retry_on=ValueError, dead_on=[KeyError, TimeLimitExceeded])


@jobs.job
async def one_text(text: str) -> None: ...


kept(one_text)
