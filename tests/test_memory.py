"""The memory backend inside one process: threads, event loops, forks, and what it refuses."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from functools import partial

import pytest
import uvloop

from fastjobs.backends.bundles import bundle
from fastjobs.backends.memory import MemoryBackend
from fastjobs.backends.memory_core import CLAIM_BYTES, MemoryStore, Waiter
from fastjobs.errors import BackendError
from fastjobs.model import Settlement
from tests.contract.kit import HOUR, Claim, dead, entries, entry, numbered, open_claims, push, released, retry, worker

SOON_S = 10.0


@pytest.fixture
def store() -> MemoryBackend:
    return MemoryBackend()


async def test_pending_counts_what_is_neither_done_nor_dead(store: MemoryBackend) -> None:
    await push(store, *entries(numbered(6)), entry("later", delay_s=HOUR))
    hand = await worker(store)
    claim = await hand.claim(limit=2)
    await hand.settle(claim.ended(dead(0, entry("job-0"))))
    await hand.claim(limit=1)
    assert store.pending() == 3 + 1 + 1


async def test_a_clone_shares_the_jobs_and_a_new_backend_does_not(store: MemoryBackend) -> None:
    await push(store, entry("a"))
    assert store.clone().pending() == 1
    assert MemoryBackend().pending() == 0


async def test_what_a_call_returned_is_the_callers_own(store: MemoryBackend) -> None:
    await push(store, *entries(numbered(3)))
    hand = await worker(store)
    answer = await hand.exchange(limit=3)
    answer.jobs.clear()
    again = await store.exchange(hand.id, hand.n, [], ["q"], 3)
    assert len(again.jobs) == 3
    assert (await store.stats()).running == 3


async def test_jobs_released_together_keep_their_order(store: MemoryBackend) -> None:
    await push(store, *entries(numbered(6)))
    hand = await worker(store)
    claims = [await hand.claim(limit=2) for _ in range(2)]
    await hand.settle(*(claim.ended(*(released(i, entry(name)) for i, name in enumerate(claim.jobs))) for claim in claims))
    assert await hand.drain() == numbered(6)


async def test_a_claim_holds_a_bounded_number_of_bytes(store: MemoryBackend) -> None:
    size = CLAIM_BYTES // 4
    names = numbered(6)
    await push(store, *(entry(name, envelope=name.encode().ljust(size)) for name in names))
    hand = await worker(store)
    answer = await hand.exchange(limit=10)
    assert (len(answer.jobs), answer.more) == (4, True)
    answer = await hand.exchange(limit=10)
    assert ([job.rstrip() for job in answer.jobs], answer.more) == ([b"job-4", b"job-5"], False)


async def test_one_job_that_is_over_the_bound_is_claimed_alone(store: MemoryBackend) -> None:
    await push(store, entry("a", envelope=bytes(CLAIM_BYTES + 1)), entry("b"))
    hand = await worker(store)
    assert [len(job) for job in (await hand.exchange(limit=10)).jobs] == [CLAIM_BYTES + 1]
    assert (await hand.claim()).jobs == ["b"]


# -- what it refuses, whole


@pytest.mark.parametrize(
    "settlement",
    [
        Claim(1, []).ended(retry(3, entry("x"))),
        Claim(1, []).ended(retry(-1, entry("x"))),
        Claim(1, []).ended(retry(0, entry("x")), dead(0, entry("x"))),
        Claim(1, []).ended(retry(0, entry("x")), unfinished=[0], into=2),
        Claim(1, []).ended(unfinished=[0, 3], into=2),
        Claim(1, []).ended(unfinished=[0], into=1),
        Claim(1, []).ended(unfinished=[0], into=3),
        Claim(1, []).ended(retry(0, entry("x", priority=10))),
        Claim(1, []).ended(type(retry(0, entry("x")))(0, 4, entry("x"))),
    ],
    ids=[
        "past-the-end",
        "negative",
        "twice",
        "ended-and-not",
        "unfinished-past-the-end",
        "into-itself",
        "into-n",
        "priority",
        "kind",
    ],
)
async def test_a_settlement_that_would_lose_or_double_a_job_is_refused_whole(
    store: MemoryBackend, settlement: Settlement
) -> None:
    await push(store, *entries(numbered(4)))
    hand = await worker(store)
    await hand.claim(limit=3)
    with pytest.raises(BackendError):
        await store.exchange(hand.id, 3, [settlement], ["q"], 5)
    assert await open_claims(store, hand.id) == [1]
    assert [(found.ready, found.dead) for found in (await store.stats()).queues] == [(1, 0)]
    assert await hand.settle(Settlement(1)) == [True]


async def test_a_call_cannot_have_the_number_of_an_open_claim(store: MemoryBackend) -> None:
    await push(store, *entries(numbered(2)))
    hand = await worker(store)
    claim = await hand.claim()
    await hand.settle(claim.ended(unfinished=[0], into=7))
    with pytest.raises(BackendError, match="open claim"):
        await store.exchange(hand.id, 7, [], ["q"], 1)


@pytest.mark.parametrize("priority", [-1, 10])
@pytest.mark.parametrize("delay_s", [0.0, HOUR])
async def test_a_push_with_an_impossible_priority_is_refused_whole(store: MemoryBackend, priority: int, delay_s: float) -> None:
    with pytest.raises(BackendError, match="priority"):
        await store.push("p", 1, 1, [entry("a"), entry("b", priority=priority, delay_s=delay_s)])
    assert store.pending() == 0


async def test_a_worker_id_names_its_lease(store: MemoryBackend) -> None:
    with pytest.raises(BackendError, match="<lease>"):
        await store.register("nameless")


async def test_a_worker_cannot_give_itself_up(store: MemoryBackend) -> None:
    hand = await worker(store)
    with pytest.raises(BackendError, match="itself"):
        await hand.adopt(hand.id)
    assert await open_claims(store, hand.id) == []


def test_entries_are_bundled_by_place_and_what_needs_the_clock_is_kept_apart() -> None:
    jobs = [
        entry("a"),
        entry("b", priority=9),
        entry("c"),
        entry("d", delay_s=1.0),
        entry("e", run_at=0.0),
        entry("f", queue="r"),
    ]
    bundles, later = bundle(jobs)
    assert [(place.queue, place.priority, place.envelopes) for place in bundles] == [
        ("q", 5, [b"a", b"c"]),
        ("q", 9, [b"b"]),
        ("r", 5, [b"f"]),
    ]
    assert later == [jobs[3], jobs[4]]
    assert bundle([]) == ([], [])


# -- waiting


async def test_a_wait_ends_when_a_delayed_job_falls_due(store: MemoryBackend) -> None:
    await push(store, entry("a", delay_s=0.05))
    async with asyncio.timeout(SOON_S):
        assert await store.wait(["q"], 60)
    assert await (await worker(store)).drain() == ["a"]


async def test_a_wait_learns_of_a_job_that_falls_due_earlier_than_it_knew(store: MemoryBackend) -> None:
    await push(store, entry("late", delay_s=HOUR))
    wait = asyncio.create_task(store.wait(["q"], 60))
    await asyncio.sleep(0)
    await push(store, entry("soon", delay_s=0.05))
    async with asyncio.timeout(SOON_S):
        assert await wait
    assert await (await worker(store)).drain() == ["soon"]


async def test_a_wake_up_passes_on_from_a_waiter_that_is_cancelled_before_it_could_look(store: MemoryBackend) -> None:
    first = asyncio.create_task(store.wait(["q"], 60))
    await asyncio.sleep(0)
    second = asyncio.create_task(store.wait(["q"], 60))
    await asyncio.sleep(0)
    await push(store, entry("a"))  # wakes the first, which has had no turn to run yet
    first.cancel()
    async with asyncio.timeout(SOON_S):
        assert await second
    assert first.cancelled() or first.done()


def test_a_waiter_whose_event_loop_is_closed_does_not_keep_others_from_waking() -> None:
    core = MemoryStore()
    closed = asyncio.new_event_loop()
    closed.close()
    woken: list[int] = []
    core.watch(Waiter(["q"], partial(closed.call_soon_threadsafe, print)), 0.0)
    core.watch(Waiter(["q"], partial(woken.append, 1)), 0.0)
    core.push("p", 1, 1, *bundle([entry("a")]), 0.0)
    assert woken == [1]


def test_a_waiter_on_another_threads_loop_is_woken(store: MemoryBackend) -> None:
    waiting = threading.Event()
    results: list[bool] = []

    async def wait() -> None:
        task = asyncio.create_task(store.clone().wait(["q"], SOON_S))
        await asyncio.sleep(0)
        waiting.set()
        results.append(await task)

    thread = threading.Thread(target=lambda: uvloop.run(wait()))
    thread.start()
    assert waiting.wait(SOON_S)
    uvloop.run(push(store, entry("a")))
    thread.join(SOON_S)
    assert results == [True]


# -- threads and processes


def test_threads_with_loops_of_their_own_run_each_job_once(store: MemoryBackend) -> None:
    names = numbered(3000)
    ran: list[list[str]] = []
    produced = threading.Event()

    async def produce(part: list[str]) -> None:
        backend = store.clone()
        for start in range(0, len(part), 10):
            await push(backend, *entries(part[start : start + 10]))

    async def consume(number: int) -> None:
        hand = await worker(store.clone(), f"here.{number}")
        mine: list[str] = []
        ran.append(mine)
        while not produced.is_set() or store.pending():
            claim = await hand.claim(limit=7)
            mine += claim.jobs
            assert not claim.jobs or await hand.settle(claim.done()) == [True]

    producers = [threading.Thread(target=lambda part=names[i::2]: uvloop.run(produce(part))) for i in range(2)]
    consumers = [threading.Thread(target=lambda number=i: uvloop.run(consume(number))) for i in range(3)]
    for thread in producers + consumers:
        thread.start()
    for thread in producers:
        thread.join(60)
    produced.set()
    for thread in consumers:
        thread.join(60)
    assert sorted(job for mine in ran for job in mine) == sorted(names)


FORKS = """
import asyncio, os
from fastjobs.backends.memory import MemoryBackend
from fastjobs.errors import BackendError
from fastjobs.model import Entry

store = MemoryBackend()
asyncio.run(store.push("p", 1, 1, [Entry(bytes(16), "q", 5, b"a")]))
pid = os.fork()
if not pid:
    try:
        asyncio.run(store.clone().stats())
    except BackendError as error:
        print(store.pending(), error, flush=True)
    os._exit(0)
os.waitpid(pid, 0)
print(store.pending())
"""


def test_a_forked_child_is_refused_the_jobs_of_its_parent() -> None:
    run = subprocess.run([sys.executable, "-c", FORKS], capture_output=True, text=True, timeout=60, check=True)
    child, parent = run.stdout.splitlines()
    assert child.startswith("0 memory:// holds its jobs in process")
    assert parent == "1"
