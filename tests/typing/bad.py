"""What mypy --strict and pyright must refuse: each line with a comment `E: <mypy code> | <pyright rule>`, and no other line."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TypedDict

from pydantic import BaseModel

from fastjobs import EnqueueOptions, Job, JobContext, JobQueue, WorkerOptions


class Pool:
    """What a lifespan yields."""


@asynccontextmanager
async def lifespan() -> AsyncIterator[Pool]:
    yield Pool()


jobs = JobQueue("memory://", lifespan=lifespan)


@dataclass
class Size:
    width: int


class Options(TypedDict):
    quality: int


class Order(BaseModel):
    number: int


@jobs.job
async def resize(path: str, width: int = 800, *, crop: bool = False) -> str:
    return path


@jobs.job(queue="mail")
def send_mail(to: str, body: str) -> None: ...


@jobs.job
async def sync_stock(ctx: JobContext[Pool], shop_id: int) -> None:
    ctx.state.close()  # E: attr-defined | reportAttributeAccessIssue
    ctx.attempt = 3  # E: misc | reportAttributeAccessIssue


@jobs.job(priority=3)
def with_context(ctx: JobContext, text: str) -> None: ...


@jobs.job(ctx=False)
async def first_is_object(value: object, other: int = 0) -> None: ...


@jobs.job
async def rich(size: Size, options: Options, order: Order) -> None: ...


class Resize(Job[Size]):
    async def execute(self, ctx: JobContext[Pool], data: Size) -> None:
        data.height  # E: attr-defined | reportAttributeAccessIssue


class WrongData(Job[Size]):
    async def execute(self, ctx: JobContext[Pool], data: str) -> None: ...  # E: override | reportIncompatibleMethodOverride


async def wrong_arguments() -> None:
    await resize.enqueue()  # E: call-arg | reportCallIssue
    await resize.enqueue(5)  # E: arg-type | reportArgumentType
    await resize.enqueue("a", "wide")  # E: arg-type | reportArgumentType
    await resize.enqueue("a", 5, True)  # E: call-arg | reportCallIssue
    await resize.enqueue("a", height=5)  # E: call-arg | reportCallIssue
    await resize.enqueue("a", crop="yes")  # E: arg-type | reportArgumentType
    resize.prepare(width=5)  # E: call-arg | reportCallIssue
    resize.prepare(b"a")  # E: arg-type | reportArgumentType
    await resize.options(delay=5).enqueue(5)  # E: arg-type | reportArgumentType
    resize.options(priority=3).prepare()  # E: call-arg | reportCallIssue
    await send_mail.enqueue("a")  # E: call-arg | reportCallIssue
    await send_mail.enqueue("a", 5)  # E: arg-type | reportArgumentType
    await first_is_object.enqueue(1, other="x")  # E: arg-type | reportArgumentType
    await rich.enqueue({"width": 5}, {"quality": 5}, Order(number=1))  # E: arg-type | reportArgumentType
    await rich.enqueue(Size(5), {"speed": 5}, Order(number=1))  # E: typeddict-item | reportArgumentType
    await rich.enqueue(Size(5), {"quality": 5}, 1)  # E: arg-type | reportArgumentType


async def the_context_is_no_argument() -> None:
    await sync_stock.enqueue(JobContext.for_test(), 7)  # E: call-arg | reportCallIssue
    await sync_stock.enqueue("seven")  # E: arg-type | reportArgumentType
    await sync_stock.enqueue(ctx=JobContext.for_test(), shop_id=7)  # E: call-arg | reportCallIssue
    await with_context.enqueue(5)  # E: arg-type | reportArgumentType
    with_context.prepare(JobContext.for_test(), "text")  # E: call-arg | reportCallIssue


async def the_function_keeps_its_own_signature() -> None:
    await resize(5)  # E: arg-type | reportArgumentType
    await sync_stock(7)  # E: call-arg | reportCallIssue
    send_mail("a")  # E: call-arg | reportCallIssue
    number: int = await resize("a")  # E: assignment | reportAssignmentType
    print(number)


async def wrong_options() -> None:
    resize.options(prio=3)  # E: call-arg | reportCallIssue
    resize.options(priority="high")  # E: arg-type | reportArgumentType
    resize.options(path="a")  # E: call-arg | reportCallIssue
    jobs.job(que="mail")  # E: call-overload | reportCallIssue
    jobs.job(max_attempts="3")  # E: call-overload | reportArgumentType
    EnqueueOptions(run_at="tomorrow")  # E: arg-type | reportArgumentType
    WorkerOptions(5)  # E: call-arg | reportCallIssue
    JobQueue(worker=5)  # E: arg-type | reportArgumentType


async def the_words_of_other_libraries() -> None:
    resize.delay("a.png")  # E: attr-defined | reportAttributeAccessIssue
    resize.apply_async("a.png")  # E: attr-defined | reportAttributeAccessIssue
    resize.enqueu("a.png")  # E: attr-defined | reportAttributeAccessIssue
    await jobs.enqueue(resize("a.png"))  # E: call-overload | reportCallIssue


async def wrong_data_for_a_class() -> None:
    await jobs.enqueue(Resize, "a.png")  # E: misc | reportArgumentType
    await jobs.enqueue(Resize, {"width": 5})  # E: misc | reportArgumentType
    await jobs.enqueue(Resize)  # E: call-overload | reportCallIssue
    jobs.register_job(Resize)  # E: arg-type | reportArgumentType
    jobs.register_job(Resize(), tries=3)  # E: call-arg | reportCallIssue


async def a_call_has_its_arguments() -> None:
    await jobs.enqueue(resize.prepare("a"), {"path": "b"})  # E: call-overload | reportArgumentType
    await jobs.enqueue_many(resize.prepare("a"))  # E: arg-type | reportArgumentType
    await jobs.enqueue_many(["resize"])  # E: list-item | reportArgumentType
    await jobs.enqueue("resize", "a.png")  # E: call-overload | reportArgumentType
    jobs.sync.enqueue(resize("a.png"))  # E: call-overload | reportCallIssue
