"""Several stores as one: which partition a call goes to, and that its repeat goes the same way. Over stores in memory."""

from __future__ import annotations

from collections import Counter

import pytest

from fastjobs.backends.memory import MemoryBackend
from fastjobs.backends.memory_core import MemoryStore
from fastjobs.backends.partitions import STAY, PartitionedBackend
from fastjobs.errors import StoreUnavailable, WorkerGone
from fastjobs.model import Settlement
from tests.contract.kit import Worker, dead, entries, entry, numbered, push, released, retry, worker
from tests.faults import FaultyBackend

PARTS = 3


@pytest.fixture
def parts() -> list[FaultyBackend]:
    """Empty stores that can be made to fail."""
    return [FaultyBackend(MemoryBackend(MemoryStore())) for _ in range(PARTS)]


@pytest.fixture
def whole(parts: list[FaultyBackend]) -> PartitionedBackend:
    """The same as one."""
    return PartitionedBackend(parts, "memory://")


async def fill(parts: list[FaultyBackend], count: int) -> None:
    """*count* jobs in each; a job's name begins with the number of its partition."""
    for number, part in enumerate(parts):
        await push(part, *entries(numbered(count, str(number))))


async def ready(parts: list[FaultyBackend]) -> list[int]:
    return [sum(queue.ready for queue in (await part.stats()).queues) for part in parts]


def exchanges(parts: list[FaultyBackend]) -> int:
    """Calls so far, of all."""
    return sum(len(part.named("exchange")) for part in parts)


async def test_pushes_of_a_producer_take_turns_and_a_repeat_stores_nothing(
    whole: PartitionedBackend, parts: list[FaultyBackend]
) -> None:
    for seq in range(1, 31):
        for _ in range(2):
            await whole.push("one", seq, 1, entries(numbered(4, str(seq))))
    assert await ready(parts) == [40, 40, 40]


async def test_first_pushes_of_many_producers_do_not_all_go_to_one(
    whole: PartitionedBackend, parts: list[FaultyBackend]
) -> None:
    for number in range(300):  # as `fastjobs enqueue` makes one each time
        await whole.push(f"producer-{number}", 1, 1, [entry(str(number))])
    assert min(await ready(parts)) > 60


async def test_all_are_drained_evenly(whole: PartitionedBackend, parts: list[FaultyBackend]) -> None:
    await fill(parts, 1_000)
    hand = await worker(whole)
    claims = 0
    while max(left := await ready(parts)):
        claim = await hand.claim(limit=10)
        assert len(claim.jobs) == 10
        await hand.settle(claim.done())
        claims += 1
        assert max(left) - min(left) <= STAY * 10
    assert claims == 300


async def test_a_claim_is_settled_where_it_came_from_with_one_call(
    whole: PartitionedBackend, parts: list[FaultyBackend]
) -> None:
    await fill(parts, 100)
    hand = await worker(whole)
    claim = await hand.claim(limit=10)
    before = exchanges(parts)
    answer = await hand.exchange(claim.done(), limit=10)
    assert answer.kept == [True]
    assert exchanges(parts) == before + 1


async def test_a_lost_claim_is_found_again_by_its_repeat(whole: PartitionedBackend, parts: list[FaultyBackend]) -> None:
    hand = await worker(whole)
    whole._at = 0  # so that all are asked before the one that has it
    await push(parts[2], entry("a"))
    for part in parts:
        part.fail("exchange", lose_reply=True)
    for _ in parts:  # each partition that is asked loses its reply once
        with pytest.raises(StoreUnavailable):
            await whole.exchange(hand.id, 1, [], ["q"], 10)
    await push(parts[0], entry("b"))  # what has come meanwhile is not for this call
    again = await whole.exchange(hand.id, 1, [], ["q"], 10)
    assert again.jobs == [b"a"]
    assert (await whole.exchange(hand.id, 2, [Settlement(1)], ["q"], 10)).kept == [True]
    assert (await whole.stats()).running == 1  # b


async def test_the_repeat_of_a_lost_claim_does_not_follow_a_ring_from_elsewhere(
    whole: PartitionedBackend, parts: list[FaultyBackend]
) -> None:
    hand = await worker(whole)
    whole._at = 0
    await push(parts[0], entry("a"))
    parts[0].fail("exchange", lose_reply=True)
    with pytest.raises(StoreUnavailable):
        await whole.exchange(hand.id, 1, [], ["q"], 10)
    await push(parts[1], entry("b"))
    assert await whole.wait(["q"], 1.0)
    assert (await whole.exchange(hand.id, 1, [], ["q"], 10)).jobs == [b"a"]
    assert (await whole.exchange(hand.id, 2, [Settlement(1)], ["q"], 10)).jobs == [b"b"]
    assert await whole.workers("here") == {hand.id: [2]}


async def test_claims_of_all_partitions_are_settled_in_one_exchange(
    whole: PartitionedBackend, parts: list[FaultyBackend]
) -> None:
    await fill(parts, 4)
    hand = await worker(whole)
    claims = [await hand.claim(limit=4) for _ in parts]
    assert Counter(claim.jobs[0][0] for claim in claims) == {"0": 1, "1": 1, "2": 1}
    first, second, third = claims
    into = hand.number()
    settled = await hand.settle(
        first.done(), second.ended(retry(1, entry(second.jobs[1], delay_s=60))), third.ended(unfinished=[0, 3], into=into)
    )
    assert settled == [True, True, True]
    stats = await whole.stats()
    assert (stats.running, stats.queues[0].ready, stats.queues[0].delayed) == (2, 0, 1)
    assert await hand.settle(Settlement(into)) == [True]
    assert (await whole.stats()).running == 0


async def test_what_is_adopted_from_several_is_settled_in_each(whole: PartitionedBackend, parts: list[FaultyBackend]) -> None:
    await fill(parts, 3)
    gone, adopter = await worker(whole, "there.1"), await worker(whole, "here.1")
    for _ in parts:
        await gone.claim(limit=3)
    claim, more = await adopter.adopt(gone.id)
    assert not more
    assert sorted(claim.jobs) == sorted(name for number in range(PARTS) for name in numbered(3, str(number)))
    with pytest.raises(WorkerGone):
        await gone.claim()
    into = adopter.number()
    back = [released(index, entry(name)) for index, name in enumerate(claim.jobs) if name.endswith("-1")]
    kept = [index for index, name in enumerate(claim.jobs) if name.endswith("-2")]
    assert await adopter.settle(claim.ended(*back, unfinished=kept, into=into)) == [True]
    for number, part in enumerate(parts):
        assert await part.peek("q", 10) == [f"{number}-1".encode()]
        assert (await part.stats()).running == 1
    again = [released(index, entry(claim.jobs[old])) for index, old in enumerate(kept)]
    assert await adopter.settle(Settlement(into, again)) == [True]
    for number, part in enumerate(parts):
        assert sorted(await part.peek("q", 10)) == [f"{number}-1".encode(), f"{number}-2".encode()]
        assert (await part.stats()).running == 0


async def test_a_worker_given_up_in_one_partition_hears_of_it_though_another_is_away(
    whole: PartitionedBackend, parts: list[FaultyBackend]
) -> None:
    await fill(parts, 1)
    hand = await worker(whole)
    claims = [await hand.claim(limit=1) for _ in parts]
    adopter = await worker(parts[0], "there.1")
    await Worker(parts[0], adopter.id).adopt(hand.id)
    parts[1].fail("exchange")
    with pytest.raises(WorkerGone):
        await hand.settle(*(claim.done() for claim in claims))


async def test_a_lease_stands_still_only_when_it_does_in_all(whole: PartitionedBackend, parts: list[FaultyBackend]) -> None:
    await worker(whole, "here.1")
    before = (await whole.leases())["here"]
    await parts[1].renew("here")
    assert (await whole.leases())["here"] != before


async def test_a_worker_that_holds_jobs_in_one_partition_is_forgotten_by_none(
    whole: PartitionedBackend, parts: list[FaultyBackend]
) -> None:
    hand = await worker(whole)
    await push(parts[2], entry("a"))
    claim = await hand.claim()
    assert not await whole.retire(hand.id)
    assert await hand.settle(claim.done()) == [True]
    assert await whole.retire(hand.id)
    assert await whole.leases() == {}


async def test_a_waiter_is_woken_by_each_partition_and_looks_there_first(
    whole: PartitionedBackend, parts: list[FaultyBackend]
) -> None:
    hand = await worker(whole)
    for number, part in enumerate(parts):
        await push(part, entry(str(number)))
        assert await whole.wait(["q"], 5.0)
        before = exchanges(parts)
        claim = await hand.claim()
        assert claim.jobs == [str(number)]
        assert exchanges(parts) == before + 1
        await hand.settle(claim.done())
    assert not await whole.wait(["q"], 0.01)


async def test_a_wait_at_which_one_partition_fails_tells_so_unless_another_rings(
    whole: PartitionedBackend, parts: list[FaultyBackend]
) -> None:
    parts[0].fail("wait", times=2)
    with pytest.raises(StoreUnavailable):
        await whole.wait(["q"], 0.01)
    await push(parts[1], entry("a"))
    assert await whole.wait(["q"], 0.01)


async def test_dead_letters_of_all_partitions_are_one_list(whole: PartitionedBackend, parts: list[FaultyBackend]) -> None:
    await fill(parts, 4)
    hand = await worker(whole)
    for _ in parts:
        claim = await hand.claim()
        await hand.settle(claim.ended(*(dead(index, entry(name)) for index, name in enumerate(claim.jobs))))
    pages, before = [], None
    while page := await whole.dead_list(None, before, 5):
        pages += page
        before = page[-1].died_at, page[-1].id
    assert len(pages) == len({letter.id for letter in pages}) == 12
    assert pages == sorted(pages, key=lambda letter: (letter.died_at, letter.id), reverse=True)
    letter = await whole.dead_get(pages[0].id)
    assert letter == pages[0]
    assert await whole.dead_delete([pages[0].id, b"0" * 16, pages[11].id]) == [True, False, True]
    name = pages[1].envelope.decode()
    assert await whole.dead_requeue([entry(name), entry("unknown")]) == [True, False]
    assert (await whole.stats()).queues[0].dead == 9
