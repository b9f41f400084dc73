"""The crate's property 21 on every store: what was enqueued is there, runs once, and is gone."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from fastjobs import JobQueue
from fastjobs.ids import parse_id
from tests.properties.conftest import Clock, few, fresh
from tests.stores import Place
from tests.working import counts, dead_jobs, left

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
payloads = st.dictionaries(
    texts, st.none() | st.booleans() | st.integers(-(2**53), 2**53) | texts | st.lists(texts, max_size=3), max_size=4
)


@few
@given(st.lists(payloads, min_size=1, max_size=20))
async def test_a_job_outlives_the_producer_that_enqueued_it(
    place: Place, elsewhere: JobQueue, data: list[dict[str, Any]]
) -> None:
    queue, ran = next(fresh), []

    @elsewhere.job(name=queue, queue=queue)
    async def handler(number: int, data: dict[str, Any]) -> None:
        ran.append((number, data))

    backend = place.backend()
    producer = JobQueue(backend)
    for number, one in enumerate(data):
        await producer.enqueue(queue, {"number": number, "data": one}, queue=queue)
    await producer.close()
    await backend.close()
    assert (await counts(elsewhere._producer().store, queue)).ready == len(data)
    while await elsewhere.process_one([queue]):
        pass
    assert sorted(ran, key=lambda run: run[0]) == list(enumerate(data))


@few
@given(st.integers(1, 30), st.booleans())
async def test_a_completed_job_is_gone(jobs: JobQueue, count: int, at_once: bool) -> None:
    queue, ran = next(fresh), []

    @jobs.job(name=queue, queue=queue)
    async def handler(number: int) -> None:
        ran.append(number)

    if at_once:
        await jobs.enqueue_many(handler.prepare(number) for number in range(count))
    else:
        for number in range(count):
            await handler.enqueue(number)
    for _ in range(count):
        assert await jobs.process_one([queue])
    assert not await jobs.process_one([queue])
    store = jobs._producer().store
    assert sorted(ran) == list(range(count))
    assert await left(store) == 0
    assert await dead_jobs(store) == []


@few
@given(st.lists(st.integers(1, 40), min_size=1, max_size=4))
async def test_every_job_has_an_id_of_its_own_whoever_enqueued_it(place: Place, jobs: JobQueue, counts_: list[int]) -> None:
    queue = next(fresh)
    ids = []
    for count in counts_:
        backend = place.backend()
        producer = JobQueue(backend)
        ids += [(await producer.enqueue(queue, queue=queue)).id for _ in range(count)]
        await producer.close()
        await backend.close()
    assert len(set(ids)) == len({parse_id(id) for id in ids}) == sum(counts_)
    assert (await counts(jobs._producer().store, queue)).ready == sum(counts_)
    await jobs.purge(queue)


@few
@given(st.lists(st.integers(0, 3), min_size=2, max_size=6))
async def test_what_becomes_of_one_job_changes_nothing_for_another(jobs: JobQueue, hand: Clock, failures: list[int]) -> None:
    """Each job fails as often as it was told to and runs once more, whatever the others do."""
    queue, runs = next(fresh), dict.fromkeys(range(len(failures)), 0)

    @jobs.job(name=queue, queue=queue)
    async def handler(number: int) -> None:
        runs[number] += 1
        if runs[number] <= failures[number]:
            raise ValueError(number)

    for number in range(len(failures)):
        await handler.enqueue(number)
    for delay_s in (0, 2, 4, 8):
        hand.move_to(hand.now + delay_s)
        while await jobs.process_one([queue]):
            pass
    assert runs == {number: count + 1 for number, count in enumerate(failures)}
    assert await left(jobs._producer().store) == 0
