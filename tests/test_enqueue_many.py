"""`enqueue_many`: any number of calls from anything that can be iterated, in constant memory, with exact counts."""

from __future__ import annotations

import asyncio
import gc
import tracemalloc
from collections.abc import AsyncIterator, Iterator

import pytest

from fastjobs import Call, ConfigError, EnqueueManyError, JobQueue, SerializationError
from fastjobs.errors import BackendError, StoreUnavailable
from fastjobs.model import QueueStats
from fastjobs.producer import BATCH
from tests.faults import FaultyBackend
from tests.working import counts, fresh_store, happens


@pytest.fixture
def jobs(store: FaultyBackend) -> JobQueue:
    queue = JobQueue(store, enqueue_timeout=0.05)

    @queue.job
    async def work(number: int) -> None: ...

    return queue


def call(jobs: JobQueue, number: int) -> Call:
    return jobs.prepare("work", {"number": number})


def numbers(envelopes: list[bytes]) -> list[int]:
    return [int(envelope.split(b'"number":')[1].split(b"}")[0]) for envelope in envelopes]


@pytest.mark.parametrize("count", [0, 1, 999, 1_000, 1_001, 3_500])
async def test_every_call_is_stored_once_in_order(store: FaultyBackend, jobs: JobQueue, count: int) -> None:
    assert await jobs.enqueue_many(call(jobs, number) for number in range(count)) == count
    assert numbers(await store.peek("default", 10_000)) == list(range(count))


@pytest.mark.parametrize("kind", ["list", "tuple", "generator", "iterator", "map"])
async def test_any_iterable_will_do(store: FaultyBackend, jobs: JobQueue, kind: str) -> None:
    calls = [call(jobs, number) for number in range(10)]
    given = {
        "list": calls,
        "tuple": tuple(calls),
        "generator": (one for one in calls),
        "iterator": iter(calls),
        "map": (call(jobs, number) for number in range(10)),
    }[kind]
    assert await jobs.enqueue_many(given) == 10
    assert numbers(await store.peek("default", 100)) == list(range(10))


async def test_an_async_generator_will_do(store: FaultyBackend, jobs: JobQueue) -> None:
    async def calls() -> AsyncIterator[Call]:
        for number in range(2_500):
            if number % 100 == 0:
                await asyncio.sleep(0)
            yield call(jobs, number)

    assert await jobs.enqueue_many(calls()) == 2_500
    assert numbers(await store.peek("default", 10_000)) == list(range(2_500))


@pytest.mark.parametrize("kind", ["list", "async"])
async def test_calls_of_all_shapes_travel_together_in_order(store: FaultyBackend, jobs: JobQueue, kind: str) -> None:
    @jobs.job(queue="other")
    async def elsewhere(number: int) -> None: ...

    later = elsewhere.options(delay="1h")
    calls = [
        one
        for number in range(300)
        for one in (call(jobs, number), call(jobs, -number), elsewhere.prepare(number), later.prepare(number))
    ]

    async def stream() -> AsyncIterator[Call]:
        for one in calls:
            yield one

    assert await jobs.enqueue_many(calls if kind == "list" else stream()) == 1_200
    assert [len(push.args[3]) for push in store.named("push")] == [BATCH, 200]
    assert numbers(await store.peek("default", 10_000)) == [sign * number for number in range(300) for sign in (1, -1)]
    assert numbers(await store.peek("other", 10_000)) == list(range(300))
    assert (await counts(store, "other")).delayed == 300


async def test_delayed_calls_of_one_shape_are_delayed(store: FaultyBackend, jobs: JobQueue) -> None:
    @jobs.job
    async def later(number: int) -> None: ...

    prepared = [later.options(delay="1h").prepare(1)] * 5
    assert await jobs.enqueue_many(prepared) == 5
    assert await counts(store) == QueueStats("default", 0, 5, 0)


async def test_large_calls_travel_in_small_chunks(store: FaultyBackend, jobs: JobQueue) -> None:
    @jobs.job
    async def big(text: str) -> None: ...

    await jobs.enqueue_many(big.prepare("x" * 500_000) for _ in range(30))
    assert max(len(push.args[3]) for push in store.named("push")) <= 10
    assert (await counts(store)).ready == 30


async def test_the_same_call_again_is_a_new_job(store: FaultyBackend, jobs: JobQueue) -> None:
    one = call(jobs, 7)
    assert await jobs.enqueue_many([one] * 50) == 50
    envelopes = await store.peek("default", 100)
    assert len(set(envelopes)) == 50


@pytest.mark.parametrize("good", [0, 1, 999, 1_000, 1_001, 2_345])
@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_an_error_of_the_iterable_says_exactly_how_many_are_stored(
    store: FaultyBackend, jobs: JobQueue, good: int, kind: str
) -> None:
    def calls() -> Iterator[Call]:
        for number in range(good):
            yield call(jobs, number)
        raise OSError("the file ends here")

    async def async_calls() -> AsyncIterator[Call]:
        for one in calls():
            yield one

    with pytest.raises(EnqueueManyError, match="the file ends here") as caught:
        await jobs.enqueue_many(calls() if kind == "sync" else async_calls())
    assert (caught.value.accepted, caught.value.uncertain) == (good, 0)
    assert isinstance(caught.value.__cause__, OSError)
    assert numbers(await store.peek("default", 10_000)) == list(range(good))


async def test_a_bad_value_half_way_says_which_field_and_how_many_are_stored(store: FaultyBackend, jobs: JobQueue) -> None:
    values: list[object] = [*range(1_200), "not a number", 5]
    with pytest.raises(EnqueueManyError, match="number") as caught:
        await jobs.enqueue_many(jobs.prepare("work", {"number": value}) for value in values)
    assert caught.value.accepted == 1_200
    assert isinstance(caught.value.__cause__, SerializationError)
    assert (await counts(store)).ready == 1_200


@pytest.mark.parametrize("thing", [5, "work", None, ("work", 5)])
async def test_what_is_no_call_is_refused_with_what_to_give(store: FaultyBackend, jobs: JobQueue, thing: object) -> None:
    with pytest.raises(EnqueueManyError, match=r"prepared calls, f\.prepare") as caught:
        await jobs.enqueue_many([call(jobs, 0), thing])  # type: ignore[list-item]
    assert caught.value.accepted == 1
    assert isinstance(caught.value.__cause__, ConfigError)


async def test_a_store_that_goes_away_half_way_says_what_is_stored_and_what_may_be(
    store: FaultyBackend, jobs: JobQueue
) -> None:
    store.fail("push", skip=2, times=1_000)
    with pytest.raises(EnqueueManyError) as caught:
        await jobs.enqueue_many(call(jobs, number) for number in range(5 * BATCH))
    assert caught.value.accepted == 2 * BATCH
    assert caught.value.uncertain == 2 * BATCH
    assert (await counts(store)).ready == 2 * BATCH
    assert isinstance(caught.value.__cause__, BackendError)


async def test_replies_lost_for_good_are_uncertain_not_accepted(store: FaultyBackend, jobs: JobQueue) -> None:
    store.fail("push", skip=1, times=1_000, lose_reply=True)
    with pytest.raises(EnqueueManyError) as caught:
        await jobs.enqueue_many(call(jobs, number) for number in range(5 * BATCH))
    stored = (await counts(store)).ready
    assert caught.value.accepted == BATCH
    assert caught.value.accepted <= stored <= caught.value.accepted + caught.value.uncertain


async def test_lost_replies_that_pass_store_every_job_once(store: FaultyBackend, jobs: JobQueue) -> None:
    for skip in (0, 1, 1, 0):
        store.fail("push", skip=skip, lose_reply=True)
    assert await jobs.enqueue_many(call(jobs, number) for number in range(4_000)) == 4_000
    assert sorted(numbers(await store.peek("default", 10_000))) == list(range(4_000))


async def test_a_refused_chunk_is_neither_accepted_nor_uncertain(store: FaultyBackend, jobs: JobQueue) -> None:
    store.fail("push", skip=1, error=BackendError("full"), times=1_000)
    with pytest.raises(EnqueueManyError, match="full") as caught:
        await jobs.enqueue_many(call(jobs, number) for number in range(3 * BATCH))
    assert (caught.value.accepted, caught.value.uncertain) == (BATCH, 0)


async def test_a_backend_error_of_the_iterable_itself_is_no_error_of_ours(store: FaultyBackend, jobs: JobQueue) -> None:
    """It reads from a store, too: what it yielded before counts."""

    async def calls() -> AsyncIterator[Call]:
        for number in range(1_500):
            yield call(jobs, number)
        raise StoreUnavailable("the source is away")

    with pytest.raises(EnqueueManyError, match="the source is away") as caught:
        await jobs.enqueue_many(calls())
    assert (caught.value.accepted, caught.value.uncertain) == (1_500, 0)
    assert (await counts(store)).ready == 1_500


async def test_the_iterable_is_read_only_a_little_ahead_of_the_store(store: FaultyBackend, jobs: JobQueue) -> None:
    read = 0

    def calls() -> Iterator[Call]:
        nonlocal read
        for number in range(10 * BATCH):
            read += 1
            yield call(jobs, number)

    slow = store.hang("push", times=100)
    task = asyncio.create_task(jobs.enqueue_many(calls()))
    await happens(slow.reached)
    for _ in range(50):
        await asyncio.sleep(0)
    assert read <= 4 * BATCH
    assert slow.gate is not None
    slow.gate.set()
    assert await task == 10 * BATCH


async def test_memory_does_not_grow_with_the_number_of_calls(jobs: JobQueue) -> None:
    class Sink(FaultyBackend):
        async def push(self, *args: object) -> None:
            await asyncio.sleep(0)

    sink = Sink(fresh_store())
    sink.clone = lambda: sink  # type: ignore[method-assign]
    peaks = []
    with jobs.override(sink):
        await jobs.enqueue_many(call(jobs, number) for number in range(4_000))
        for count in (4_000, 20_000):
            gc.collect()
            tracemalloc.start()
            await jobs.enqueue_many(call(jobs, number) for number in range(count))
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
    assert peaks[1] < 1.5 * peaks[0] + 100_000


async def test_a_cancelled_enqueue_many_leaves_no_task_behind(store: FaultyBackend, jobs: JobQueue) -> None:
    class SlowToStop(FaultyBackend):
        async def push(self, *args: object) -> None:
            try:
                await asyncio.Event().wait()
            finally:
                for _ in range(10):
                    await asyncio.sleep(0)

    slow = SlowToStop(fresh_store())
    slow.clone = lambda: slow  # type: ignore[method-assign]
    before = asyncio.all_tasks()
    with jobs.override(slow):
        task = asyncio.create_task(jobs.enqueue_many(call(jobs, number) for number in range(5 * BATCH)))
        for _ in range(10):
            await asyncio.sleep(0)
        assert len(asyncio.all_tasks() - before) == 3
        task.cancel()
        await asyncio.wait([task])
    assert task.cancelled()
    assert asyncio.all_tasks() == before


@pytest.mark.parametrize("how", ["error", "away", "cancelled"])
async def test_the_async_generator_is_closed_whatever_happens(store: FaultyBackend, jobs: JobQueue, how: str) -> None:
    """It may hold a database cursor."""
    closed = asyncio.Event()

    async def calls() -> AsyncIterator[object]:
        try:
            for number in range(10 * BATCH):
                yield "nonsense" if how == "error" and number == 1_100 else call(jobs, number)
        finally:
            closed.set()

    if how == "away":
        store.down()
    slow = store.hang("push", times=100) if how == "cancelled" else None
    task = asyncio.create_task(jobs.enqueue_many(calls()))  # type: ignore[arg-type]
    if slow is not None:
        await happens(slow.reached)
        task.cancel()
    await asyncio.wait([task])
    failure = None if task.cancelled() else task.exception()
    assert closed.is_set()
    assert isinstance(failure, EnqueueManyError) or how == "cancelled"


@pytest.mark.parametrize("calls", [5, None, object()])
async def test_what_is_no_iterable_is_refused(jobs: JobQueue, calls: object) -> None:
    with pytest.raises(ConfigError, match="an iterable of prepared calls"):
        await jobs.enqueue_many(calls)  # type: ignore[arg-type]
