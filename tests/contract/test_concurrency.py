"""Several at once, on connections of their own: every job goes to exactly one."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable

import pytest

from fastjobs.backends.base import Store
from fastjobs.errors import StaleCall, WorkerGone
from fastjobs.model import Settlement
from tests.contract.kit import Claim, Worker, counts, dead, entries, entry, numbered, open_claims, push, retry, worker
from tests.stores import PARTITIONED

Another = Callable[[], Store]


async def gather_drains(hands: list[Worker], limit: int) -> list[list[str]]:
    """All *hands* claim and settle side by side until each finds nothing."""

    async def drain(hand: Worker) -> list[str]:
        ran: list[str] = []
        claim = await hand.claim(limit)
        while claim.jobs:
            ran += claim.jobs
            answer = await hand.exchange(claim.done(), limit=limit)
            assert answer.kept == [True]
            claim = Claim(hand.n, [job.decode() for job in answer.jobs])
        return ran

    return await asyncio.gather(*(drain(hand) for hand in hands))


async def test_workers_side_by_side_run_each_job_once(store: Store, another: Another) -> None:
    names = numbered(600)
    await push(store, *entries(names))
    hands = [await worker(another(), f"here.{number}") for number in range(4)]
    drained = await gather_drains(hands, 10)
    rest = await (await worker(store, "there.1")).drain()
    assert sorted(itertools.chain(rest, *drained)) == sorted(names)


async def test_jobs_pushed_while_workers_claim_are_all_run_once(store: Store, another: Another) -> None:
    names = numbered(400)
    hands = [await worker(another(), f"here.{number}") for number in range(2)]
    ran: list[str] = []

    async def run(hand: Worker) -> None:
        while len(ran) < len(names):
            claim = await hand.claim(20)
            ran.extend(claim.jobs)
            assert not claim.jobs or await hand.settle(claim.done()) == [True]
            if not claim.jobs:
                await hand.store.wait(["q"], 0.05)

    async def produce(store: Store, part: list[str]) -> None:
        for start in range(0, len(part), 5):
            await push(store, *entries(part[start : start + 5]))

    async with asyncio.timeout(60):
        await asyncio.gather(*map(run, hands), produce(store, names[:200]), produce(another(), names[200:]))
    assert sorted(ran) == sorted(names)


async def test_pushes_of_one_producer_in_flight_together_are_all_stored(store: Store) -> None:
    names = numbered(40)
    await asyncio.gather(*(store.push("p", seq, 1, entries([name])) for seq, name in enumerate(names, 1)))
    assert sorted(await (await worker(store)).drain()) == sorted(names)


async def test_the_same_push_from_several_connections_at_once_is_stored_once(store: Store, another: Another) -> None:
    stores = [another() for _ in range(4)]
    for seq in range(1, 6):
        await asyncio.gather(*(each.push("p", seq, 1, entries([f"a{seq}", f"b{seq}"])) for each in stores))
    assert (await counts(store)).ready == 10


async def test_the_same_exchange_from_several_connections_at_once_is_done_once(store: Store, another: Another) -> None:
    await push(store, *entries(numbered(30)))
    hand = await worker(store)
    stores = [another() for _ in range(4)]
    for n in range(1, 6):
        answers = await asyncio.gather(*(each.exchange(hand.id, n, [], ["q"], 3) for each in stores))
        assert len(answers[0].jobs) == 3
        assert all(answer == answers[0] for answer in answers)
    assert (await counts(store)).ready == 15
    assert await open_claims(store, hand.id) == [1, 2, 3, 4, 5]


async def test_of_two_adopters_at_once_one_gets_nothing(store: Store, another: Another) -> None:
    for attempt in range(5):
        names = numbered(6, f"round{attempt}")
        await push(store, *entries(names))
        gone = await worker(store, f"dead{attempt}.1")
        await gone.claim(limit=6)
        adopters = [await worker(another(), f"here{attempt}.{number}") for number in range(3)]
        adopted = await asyncio.gather(*(adopter.adopt(gone.id) for adopter in adopters))
        assert sorted(len(claim.jobs) for claim, _ in adopted) == [0, 0, 6]
        assert [job for claim, _ in adopted for job in claim.jobs] == names
        for adopter, (claim, _) in zip(adopters, adopted, strict=True):
            await adopter.settle(claim.done())


async def test_adopters_that_share_a_worker_in_steps_get_each_claim_once(store: Store, another: Another) -> None:
    names = numbered(40)
    await push(store, *entries(names))
    gone = await worker(store, "dead.1")
    for _ in range(20):
        await gone.claim(limit=2)

    async def rescue(adopter: Worker) -> list[str]:
        jobs: list[str] = []
        more = True
        while more:
            claim, more = await adopter.adopt(gone.id, limit=4)
            jobs += claim.jobs
        return jobs

    rescued = await asyncio.gather(*[rescue(await worker(another(), f"here.{number}")) for number in range(3)])
    assert sorted(itertools.chain(*rescued)) == sorted(names)


async def test_adopters_that_give_each_other_up_lose_no_job(store: Store, another: Another, store_kind: str) -> None:
    for attempt in range(5):
        names = numbered(2, f"round{attempt}")
        await push(store, *entries(names))
        hands = [await worker(another(), f"pair{attempt}.{number}") for number in (1, 2)]
        for hand in hands:
            await hand.claim(limit=1)
        results = await asyncio.gather(hands[0].adopt(hands[1].id), hands[1].adopt(hands[0].id), return_exceptions=True)
        gone = sum(isinstance(result, WorkerGone) for result in results)
        assert gone == 1 or (gone == 2 and store_kind == PARTITIONED)  # there each may be first in a partition
        last, held = await worker(store, f"last{attempt}.1"), []
        for hand in hands:
            held += (await last.adopt(hand.id))[0].jobs
        assert sorted(held) == names


async def test_a_settlement_and_an_adoption_at_once_end_each_job_once(store: Store, another: Another) -> None:
    adopter = await worker(another(), "there.1")

    async def settle(hand: Worker, settlement: Settlement) -> bool | None:
        try:
            return (await hand.settle(settlement))[0]
        except WorkerGone:  # also when it was kept, that reply got lost, and the worker was given up before the repeat
            return None

    for attempt in range(10):
        await push(store, entry("before"))
        hand = await worker(another(), f"here.{attempt}")
        claim = await hand.claim()
        settlement = claim.ended(retry(0, entry("after")))
        kept, (adopted, _) = await asyncio.gather(settle(hand, settlement), adopter.adopt(hand.id))
        await adopter.settle(adopted.done())
        after = await adopter.drain()
        assert adopted.jobs + after in (["before"], ["after"])
        assert kept is not True or after == ["after"]


@pytest.mark.one_store("a duplicate of another backend object would go its own way")
async def test_a_late_duplicate_at_the_side_of_newer_calls_changes_nothing(store: Store, another: Another) -> None:
    names = numbered(100)
    await push(store, *entries(names))
    hand, duplicates = await worker(store), another()

    async def late(n: int) -> None:
        try:
            await duplicates.exchange(hand.id, n, [], ["q"], 5)
        except StaleCall:
            return

    ran: list[str] = []
    claim = await hand.claim(5)
    while claim.jobs:
        ran += claim.jobs
        answer, _ = await asyncio.gather(hand.exchange(claim.done(), limit=5), late(claim.id))
        assert answer.kept == [True]
        claim = Claim(hand.n, [job.decode() for job in answer.jobs])
    assert ran == names


async def test_requeues_of_the_same_letter_at_once_store_it_once(store: Store, another: Another) -> None:
    await push(store, entry("a"))
    hand = await worker(store)
    claim = await hand.claim()
    await hand.settle(claim.ended(dead(0, entry("a"))))
    stores = [another() for _ in range(4)]
    results = await asyncio.gather(*(each.dead_requeue([entry("a")]) for each in stores))
    assert sorted(results) == [[False], [False], [False], [True]]
    assert (await counts(store)).ready == 1
