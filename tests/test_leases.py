"""When a lease has ended: only by what one observer has itself seen, without a pause."""

from __future__ import annotations

from fastjobs.leases import LeaseWatch
from fastjobs.slots import lease_name, lease_ttl_s

TTL_S = 15.0


def looks(watch: LeaseWatch, counters: dict[str, int], *times: float) -> list[str]:
    """What the last of several looks says."""
    ended: list[str] = []
    for now in times:
        ended = watch.ended(counters, now)
    return ended


def every_second(start: float, end: float) -> list[float]:
    return [start + second for second in range(int(end - start) + 1)]


def test_a_counter_that_stands_still_for_the_time_to_live_has_ended() -> None:
    watch = LeaseWatch("ours", TTL_S)
    assert looks(watch, {"other": 7}, *every_second(0, 14)) == []
    assert looks(watch, {"other": 7}, 15) == ["other"]


def test_a_counter_that_moves_begins_anew() -> None:
    watch = LeaseWatch("ours", TTL_S)
    looks(watch, {"other": 7}, *every_second(0, 14))
    assert looks(watch, {"other": 8}, *every_second(15, 29)) == []
    assert looks(watch, {"other": 8}, 30) == ["other"]


def test_our_own_lease_never_ends() -> None:
    assert looks(LeaseWatch("ours", TTL_S), {"ours": 1}, *every_second(0, 60)) == []


def test_a_broken_connection_begins_all_counts_anew() -> None:
    watch = LeaseWatch("ours", TTL_S)
    looks(watch, {"other": 7}, *every_second(0, 14))
    watch.interrupted()
    assert looks(watch, {"other": 7}, *every_second(15, 29)) == []
    assert looks(watch, {"other": 7}, 30) == ["other"]


def test_time_in_which_nobody_looked_does_not_count() -> None:
    watch = LeaseWatch("ours", TTL_S)
    looks(watch, {"other": 7}, *every_second(0, 10))
    assert looks(watch, {"other": 7}, 3600) == [], "this machine was suspended, and the other may have been too"
    assert looks(watch, {"other": 7}, *every_second(3601, 3614)) == []
    assert looks(watch, {"other": 7}, 3615) == ["other"]


def test_a_lease_is_judged_by_its_own_time_to_live() -> None:
    long, short = lease_name(60), lease_name(3)
    watch = LeaseWatch("ours", TTL_S)
    assert looks(watch, {long: 1, short: 1}, *every_second(0, 3)) == [short]
    assert long not in looks(watch, {long: 1, short: 1}, *every_second(4, 59))
    assert long in looks(watch, {long: 1, short: 1}, 60)


def test_a_lease_name_says_its_time_to_live_in_whole_milliseconds() -> None:
    assert lease_ttl_s(lease_name(0.25), TTL_S) == 0.25
    assert lease_ttl_s("0192ab", TTL_S) == TTL_S


def test_a_lease_that_is_gone_and_comes_back_is_a_new_one() -> None:
    watch = LeaseWatch("ours", TTL_S)
    looks(watch, {"other": 7}, *every_second(0, 14))
    looks(watch, {}, 15)
    assert looks(watch, {"other": 7}, 16) == []


def test_a_lease_that_has_ended_is_told_once_and_counted_anew() -> None:
    """Its workers may have come back under it meanwhile."""
    watch = LeaseWatch("ours", TTL_S)
    assert looks(watch, {"other": 7}, *every_second(0, 15)) == ["other"]
    assert looks(watch, {"other": 7}, *every_second(16, 30)) == []
    assert looks(watch, {"other": 7}, 31) == ["other"]


def test_the_more_leases_the_rarer_the_looks_but_never_so_rare_that_they_prove_nothing() -> None:
    watch = LeaseWatch("ours", TTL_S)
    assert watch.pause_s() == 1.0
    pauses = []
    for count in (1, 200, 400, 10_000):
        watch.ended({f"other{number}": 1 for number in range(count)}, 0)
        pauses.append(watch.pause_s())
    assert pauses == [1.0, 1.0, 2.0, TTL_S / 4]
    crowd, now, ended = {f"other{number}": 1 for number in range(10_000)}, 0.0, []
    while not ended:
        ended = watch.ended(crowd, now)
        now += 1.2 * watch.pause_s()  # the longest of the pauses as they are spread
    assert len(ended) == 10_000
    assert now <= 2 * TTL_S
