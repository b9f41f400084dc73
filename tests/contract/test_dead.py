"""Dead letters: listed newest first, got, requeued and deleted by id."""

from __future__ import annotations

import pytest

from fastjobs import clock
from fastjobs.backends.base import Store
from tests.contract.kit import HOUR, counts, dead, entry, job_id, push, retry, worker


async def bury(store: Store, *names: str, queue: str = "q") -> None:
    """Push the jobs, claim them and settle them as dead, in one settlement."""
    await push(store, *(entry(name, queue=queue) for name in names))
    gravedigger = f"gravedigger-{queue}-{'-'.join(names)}.1"
    hand = await worker(store, gravedigger)
    claim = await hand.claim(queues=[queue])
    await hand.settle(claim.ended(*(dead(index, entry(name, queue=queue)) for index, name in enumerate(claim.jobs))))
    await store.retire(gravedigger)


async def listed(store: Store, queue: str | None = None, limit: int = 100) -> list[str]:
    return [letter.envelope.decode() for letter in await store.dead_list(queue, None, limit)]


async def test_the_newest_letter_comes_first(store: Store) -> None:
    for name in ("a", "b", "c"):
        await bury(store, name)
        store.time_shift_s += 60
    assert await listed(store) == ["c", "b", "a"]


async def test_letters_can_be_listed_of_one_queue_or_of_all(store: Store) -> None:
    for name, queue in (("a", "x"), ("b", "y"), ("c", "x")):
        await bury(store, name, queue=queue)
        store.time_shift_s += 60
    assert await listed(store, "x") == ["c", "a"]
    assert await listed(store, "y") == ["b"]
    assert await listed(store, "unknown") == []
    assert await listed(store) == ["c", "b", "a"]


async def test_a_letter_tells_when_it_died_by_the_stores_clock(store: Store) -> None:
    store.time_shift_s += 5 * HOUR
    await bury(store, "a")
    (letter,) = await store.dead_list(None, None, 10)
    assert letter.id == job_id("a")
    assert letter.died_at == pytest.approx(clock.wall() + 5 * HOUR, abs=30)


@pytest.mark.parametrize("queue", [None, "q"])
async def test_pages_of_letters_hold_each_once_even_if_they_died_together(store: Store, queue: str | None) -> None:
    names = [f"job-{number}" for number in range(10)]
    await bury(store, *names[:7])
    store.time_shift_s += 60
    await bury(store, *names[7:])
    seen: list[str] = []
    before = None
    while page := await store.dead_list(queue, before, 3):
        assert len(page) <= 3
        seen += [letter.envelope.decode() for letter in page]
        before = page[-1].died_at, page[-1].id
    assert sorted(seen) == names
    assert sorted(seen[:3]) == names[7:]


async def test_a_letter_is_got_by_its_id(store: Store) -> None:
    await bury(store, "a", "b")
    letter = await store.dead_get(job_id("a"))
    assert letter is not None
    assert (letter.id, letter.envelope) == (job_id("a"), b"a")
    assert letter in await store.dead_list(None, None, 10)
    assert await store.dead_get(job_id("unknown")) is None


async def test_a_requeued_letter_runs_again_with_its_new_envelope(store: Store) -> None:
    await bury(store, "a", "b")
    assert await store.dead_requeue([entry("a", envelope=b"afresh")]) == [True]
    found = await counts(store)
    assert (found.ready, found.dead) == (1, 1)
    assert await (await worker(store)).drain() == ["afresh"]
    assert await store.dead_get(job_id("a")) is None


async def test_a_letter_is_requeued_where_its_entry_says(store: Store) -> None:
    await bury(store, "a", "b")
    assert await store.dead_requeue([entry("a", queue="other"), entry("b", delay_s=HOUR)]) == [True, True]
    assert (await counts(store, "other")).ready == 1
    assert (await counts(store)).delayed == 1


async def test_only_what_was_dead_is_requeued(store: Store) -> None:
    await bury(store, "a", "c")
    assert await store.dead_requeue([entry("a"), entry("b"), entry("c")]) == [True, False, True]
    assert await store.dead_requeue([entry("a")]) == [False]
    assert sorted(await (await worker(store)).drain()) == ["a", "c"]


async def test_a_deleted_letter_is_gone(store: Store) -> None:
    await bury(store, "a", "b", "c")
    assert await store.dead_delete([job_id("a"), job_id("unknown"), job_id("c")]) == [True, False, True]
    assert await store.dead_delete([job_id("a")]) == [False]
    assert await listed(store) == ["b"]
    assert (await counts(store)).dead == 1


async def test_a_requeued_job_may_die_again(store: Store) -> None:
    await bury(store, "a")
    await store.dead_requeue([entry("a")])
    hand = await worker(store)
    claim = await hand.claim()
    store.time_shift_s += 60
    await hand.settle(claim.ended(dead(0, entry("a", envelope=b"again"))))
    assert await listed(store) == ["again"]
    assert (await counts(store)).dead == 1


async def test_a_letter_belongs_to_the_queue_that_its_entry_names(store: Store) -> None:
    await push(store, entry("a"))
    hand = await worker(store)
    claim = await hand.claim()
    await hand.settle(claim.ended(dead(0, entry("a", queue="other"))))
    assert await listed(store, "other") == ["a"]
    assert await listed(store, "q") == []


async def test_dead_letters_survive_a_retry_of_their_neighbours(store: Store) -> None:
    await push(store, entry("a"), entry("b"))
    hand = await worker(store)
    claim = await hand.claim()
    await hand.settle(claim.ended(dead(0, entry("a")), retry(1, entry("b"))))
    assert await hand.drain() == ["b"]
    assert await listed(store) == ["a"]


async def test_many_letters_are_requeued_in_one_call(store: Store) -> None:
    names = [f"job-{number}" for number in range(1500)]
    await push(store, *(entry(name) for name in names))
    hand = await worker(store)
    claim = await hand.claim(limit=1500)
    await hand.settle(claim.ended(*(dead(index, entry(name)) for index, name in enumerate(claim.jobs))))
    assert await store.dead_requeue([entry(name) for name in names]) == [True] * 1500
    assert sorted(await hand.drain()) == sorted(names)
