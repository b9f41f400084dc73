"""push: accepted is stored, and once only."""

from __future__ import annotations

import pytest

from fastjobs.backends.base import Store
from tests.contract.kit import HOUR, Claim, counts, dead, entries, entry, numbered, push, retry, worker


async def test_a_pushed_job_is_ready_when_push_returns(store: Store) -> None:
    await push(store, entry("a"))
    assert (await counts(store)).ready == 1
    assert (await (await worker(store)).claim()).jobs == ["a"]


async def test_a_push_may_hold_jobs_for_many_places(store: Store) -> None:
    await push(
        store,
        entry("a", queue="mail"),
        entry("b", queue="video", priority=9),
        entry("c", queue="mail", delay_s=HOUR),
        entry("d", queue="mail", priority=0),
    )
    mail, video = await counts(store, "mail"), await counts(store, "video")
    assert (mail.ready, mail.delayed, video.ready, video.delayed) == (2, 1, 1, 0)
    assert await (await worker(store)).drain("mail") == ["a", "d"]


async def test_the_same_push_again_stores_nothing(store: Store) -> None:
    for _ in range(3):
        await store.push("p", 1, 1, entries(["a", "b"]))
    assert (await counts(store)).ready == 2


async def test_a_repeated_push_stores_nothing_even_after_its_jobs_are_done(store: Store) -> None:
    await store.push("p", 1, 1, entries(["a"]))
    hand = await worker(store)
    await hand.drain()
    await store.push("p", 1, 1, entries(["a"]))
    assert (await hand.claim()).jobs == []


async def test_pushes_of_one_producer_may_arrive_in_any_order(store: Store) -> None:
    for seq in (5, 2, 4, 1, 3):
        await store.push("p", seq, 1, entries([f"job-{seq}"]))
    assert sorted(await (await worker(store)).drain()) == [f"job-{seq}" for seq in (1, 2, 3, 4, 5)]


async def test_a_repeat_of_an_older_push_stores_nothing_while_it_is_not_acked(store: Store) -> None:
    for seq in (1, 2, 3):
        await store.push("p", seq, 1, entries([f"job-{seq}"]))
    await store.push("p", 2, 1, entries(["job-2"]))
    await store.push("p", 1, 1, entries(["job-1"]))
    assert (await counts(store)).ready == 3


async def test_a_late_duplicate_below_acked_stores_nothing(store: Store) -> None:
    for seq in (1, 2, 3, 4):
        await store.push("p", seq, seq, entries([f"job-{seq}"]))
    for seq in (1, 2, 3):
        await store.push("p", seq, seq, entries([f"job-{seq}"]))
    assert (await counts(store)).ready == 4


async def test_a_push_that_is_not_acked_is_stored_when_it_comes_after_later_ones(store: Store) -> None:
    await store.push("p", 1, 1, entries(["job-1"]))
    await store.push("p", 3, 2, entries(["job-3"]))
    await store.push("p", 2, 2, entries(["job-2"]))
    await store.push("p", 4, 4, entries(["job-4"]))
    assert sorted(await (await worker(store)).drain()) == ["job-1", "job-2", "job-3", "job-4"]


async def test_the_same_number_of_another_producer_is_another_push(store: Store) -> None:
    await store.push("p", 1, 1, entries(["a"]))
    await store.push("q", 1, 1, entries(["b"]))
    assert (await counts(store)).ready == 2


async def test_a_push_of_nothing_is_accepted(store: Store) -> None:
    await store.push("p", 1, 1, [])
    await store.push("p", 2, 1, entries(["a"]))
    assert (await counts(store)).ready == 1


@pytest.mark.parametrize("step_s", [HOUR, -HOUR])
async def test_the_record_of_a_push_is_kept_for_nine_minutes_of_silence_and_a_step_of_the_clock(
    store: Store, step_s: float
) -> None:
    await store.push("p", 1, 1, entries(["a"]))
    store.time_shift_s += 9 * 60 + step_s
    await store.housekeep()
    await store.push("p", 1, 1, entries(["a"]))
    assert (await counts(store)).ready == 1


async def test_housekeeping_keeps_the_records_of_a_producer_that_still_pushes(store: Store) -> None:
    await store.push("p", 1, 1, entries(["a"]))
    store.time_shift_s += 1.5 * HOUR
    await store.push("p", 2, 1, entries(["b"]))
    store.time_shift_s += 1.5 * HOUR
    await store.housekeep()
    await store.push("p", 2, 1, entries(["b"]))
    assert (await counts(store)).ready == 2


@pytest.mark.parametrize(
    "envelope",
    [bytes(range(256)), b"\x00", b"\xff\xfe", b"{}", b"1", b" \n", b"'; drop table ready; --", b"x" * 100_000],
    ids=["all-bytes", "nul", "not-utf8", "json", "digit", "space", "quote", "100kB"],
)
async def test_an_envelope_comes_back_byte_for_byte(store: Store, envelope: bytes) -> None:
    await push(store, entry("a", envelope=envelope), entry("b", envelope=envelope, queue="later", delay_s=HOUR))
    hand = await worker(store)
    answer = await hand.exchange(limit=10)
    assert answer.jobs == [envelope]
    store.time_shift_s += HOUR
    answer = await hand.exchange(queues=["later"], limit=10)
    assert answer.jobs == [envelope]


@pytest.mark.parametrize("queue", ["größe", "a:b", "{a}", "a*", "a,b", 'a"b', "a'b", "a\\b", "q" * 200, "ready", "5"])
async def test_a_queue_may_have_any_name_and_is_kept_apart_from_others(store: Store, queue: str) -> None:
    await push(store, entry("a", queue=queue), entry("b", queue=f"{queue}x"[-200:]), entry("c", queue=queue, delay_s=HOUR))
    hand = await worker(store)
    assert (await hand.claim(queues=[queue])).jobs == ["a"]
    assert await store.purge(queue) == 1


async def test_a_large_push_is_stored_whole_and_in_order(store: Store) -> None:
    names = numbered(5000)
    await push(store, *entries(names))
    assert (await counts(store)).ready == 5000
    assert await (await worker(store)).drain() == names


async def test_a_job_of_a_megabyte_goes_through_claim_retry_and_dead_letter(store: Store) -> None:
    envelope = bytes(range(256)) * 4096
    job = entry("big", envelope=envelope)
    await push(store, job)
    hand = await worker(store)
    for end in (retry, dead):
        answer = await hand.exchange(limit=1)
        assert answer.jobs == [envelope]
        assert await hand.settle(Claim(hand.n, []).ended(end(0, job))) == [True]
    assert [letter.envelope for letter in await store.dead_list(None, None, 10)] == [envelope]
