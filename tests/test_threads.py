"""Threads for sync handlers: reused while clean, stopped by an exception, never reused once targeted."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from fastjobs.threads import JobThread, ThreadPool


class Stop(BaseException):
    """What the tests interrupt with."""


@pytest.fixture
async def pool() -> AsyncIterator[ThreadPool]:
    made = ThreadPool()
    yield made
    made.close()


def job_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == "fastjobs-job"}


def turning(stopped: threading.Event, started: threading.Event) -> Callable[[], None]:
    """A handler that runs Python code until an exception stops it."""

    def run() -> None:
        started.set()
        try:
            while True:
                pass
        finally:
            stopped.set()

    return run


async def begun(event: threading.Event) -> None:
    assert await asyncio.to_thread(event.wait, 10)


async def test_a_call_gives_its_result_or_its_exception(pool: ThreadPool) -> None:
    _, future = pool.start(lambda: 42)
    assert await future == 42
    _, future = pool.start(lambda: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        await future


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), asyncio.CancelledError(), GeneratorExit(), Stop()])
async def test_exceptions_that_end_programs_end_only_the_call(pool: ThreadPool, error: BaseException) -> None:
    def fail() -> None:
        raise error

    _, future = pool.start(fail)
    await asyncio.wait([future])
    with pytest.raises(type(error)):
        future.result()
    _, future = pool.start(lambda: "next")
    assert await future == "next"


async def test_a_stop_iteration_becomes_an_error_that_a_future_can_carry(pool: ThreadPool) -> None:
    _, future = pool.start(lambda: next(iter(())))
    with pytest.raises(RuntimeError, match="StopIteration"):
        await future


async def test_an_idle_thread_is_used_again(pool: ThreadPool) -> None:
    idents = set()
    for _ in range(5):
        _, future = pool.start(threading.get_ident)
        idents.add(await future)
    assert len(idents) == 1
    assert pool.busy == 0


async def test_calls_that_run_at_the_same_time_have_threads_of_their_own(pool: ThreadPool) -> None:
    barrier = threading.Barrier(8)
    futures = [pool.start(lambda: barrier.wait(10))[1] for _ in range(8)]
    assert pool.busy == 8
    await asyncio.gather(*futures)
    assert pool.busy == 0


async def test_a_call_runs_in_a_copy_of_the_callers_context(pool: ThreadPool) -> None:
    var = contextvars.ContextVar("var", default="unset")
    var.set("caller")

    def look_and_change() -> str:
        seen = var.get()
        var.set("changed")
        return seen

    for _ in range(2):
        _, future = pool.start(look_and_change)
        assert await future == "caller"
    assert var.get() == "caller"


async def test_an_interrupt_stops_the_call_and_its_finally_blocks_run(pool: ThreadPool) -> None:
    stopped, started = threading.Event(), threading.Event()
    thread, future = pool.start(turning(stopped, started))
    await begun(started)
    assert thread.interrupt(future, Stop)
    with pytest.raises(Stop):
        await future
    assert stopped.is_set()
    assert pool.busy == 0


async def test_a_thread_that_was_targeted_is_not_used_again(pool: ThreadPool) -> None:
    stopped, started = threading.Event(), threading.Event()
    thread, future = pool.start(turning(stopped, started))
    await begun(started)
    thread.interrupt(future, Stop)
    with pytest.raises(Stop):
        await future
    other, future = pool.start(lambda: "fine")
    assert other is not thread
    assert await future == "fine"
    await asyncio.to_thread(thread._thread.join, 10)
    assert not thread._thread.is_alive()


async def test_a_call_that_swallows_its_interrupt_counts_as_it_ends(pool: ThreadPool) -> None:
    started = threading.Event()

    def stubborn() -> str:
        started.set()
        try:
            while True:
                pass
        except Stop:
            return "done all the same"

    thread, future = pool.start(stubborn)
    await begun(started)
    thread.interrupt(future, Stop)
    assert await future == "done all the same"
    other, future = pool.start(lambda: None)
    assert other is not thread
    await future


async def test_an_interrupt_of_a_call_that_has_ended_hits_nobody(pool: ThreadPool) -> None:
    thread, first = pool.start(lambda: None)
    await first
    again, second = pool.start(lambda: "mine")
    assert again is thread
    assert not thread.interrupt(first, Stop)
    assert await second == "mine"
    assert not thread.targeted


async def test_an_interrupt_before_the_call_has_begun_still_ends_it(pool: ThreadPool) -> None:
    for _ in range(200):
        thread, future = pool.start(lambda: None)
        thread.interrupt(future, Stop)
        await asyncio.wait_for(asyncio.wait([future]), 10)
        future.exception()
    assert pool.busy == 0


async def test_an_interrupt_at_any_moment_of_a_call_ends_it_exactly_once(pool: ThreadPool) -> None:
    def count(turns: int) -> None:
        for _ in range(turns):
            pass

    ends = []
    for round in range(500):
        thread, future = pool.start(lambda: count(round * 7 % 3_000))  # noqa: B023
        for _ in range(round % 40):
            await asyncio.sleep(0)
        hit = thread.interrupt(future, Stop)
        await asyncio.wait_for(asyncio.wait([future]), 10)
        ends.append((hit, type(future.exception())))
        assert hit or future.exception() is None
    assert pool.busy == 0
    _, future = pool.start(lambda: "clean")
    assert await future == "clean"


async def test_closing_ends_idle_threads() -> None:
    before = job_threads()
    pool = ThreadPool()
    await asyncio.gather(*[pool.start(lambda: None)[1] for _ in range(4)])
    mine = job_threads() - before
    pool.close()
    for thread in mine:
        await asyncio.to_thread(thread.join, 10)
    assert not any(thread.is_alive() for thread in mine)


async def test_a_thread_that_is_busy_when_the_pool_closes_ends_after_its_call() -> None:
    before = job_threads()
    pool, go = ThreadPool(), threading.Event()
    _, future = pool.start(go.wait)
    (mine,) = job_threads() - before
    pool.close()
    assert mine.is_alive()
    go.set()
    assert await future
    await asyncio.to_thread(mine.join, 10)
    assert not mine.is_alive()


def test_a_thread_whose_loop_was_closed_under_it_ends_quietly() -> None:
    go, threads = threading.Event(), []

    async def leave_behind() -> None:
        thread, _ = ThreadPool().start(go.wait)
        threads.append(thread)

    asyncio.run(leave_behind())
    go.set()
    thread: JobThread = threads[0]
    thread._thread.join(10)
    assert not thread._thread.is_alive()


async def test_a_call_that_blocks_does_not_hold_the_loop(pool: ThreadPool) -> None:
    go = threading.Event()
    _, future = pool.start(lambda: go.wait(10))
    turns: list[Any] = []
    for _ in range(10):
        await asyncio.sleep(0)
        turns.append(future.done())
    assert turns == [False] * 10
    go.set()
    assert await future
