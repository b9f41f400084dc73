"""Open claims, and how much a worker claims."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastjobs.claims import SETTLE_AFTER_S, SETTLE_OUTCOMES_AFTER_S, OpenClaim, Pace, within
from fastjobs.model import Entry, Kind, Outcome


def outcome(index: int) -> Outcome:
    return Outcome(index, Kind.RETRY, Entry(bytes(16), "q", 5, b""))


@given(st.integers(1, 50).flatmap(lambda size: st.tuples(st.just(size), st.permutations(range(size)), st.integers(0, size))))
def test_every_job_of_a_claim_is_done_an_outcome_or_unfinished(case: tuple[int, list[int], int]) -> None:
    size, order, ended = case
    claim = OpenClaim(7, size)
    for index in order[:ended]:
        claim.end(index, outcome(index) if index % 3 == 0 else None)
    settlement = claim.settlement(into=9)
    assert settlement.claim == 7
    assert settlement.unfinished == sorted(order[ended:]) == claim.unfinished()
    assert {found.index for found in settlement.outcomes} == {index for index in order[:ended] if index % 3 == 0}
    assert claim.left == size - ended


def test_a_claim_waits_a_second_for_its_slow_jobs_once_the_first_has_ended() -> None:
    claim = OpenClaim(1, 3)
    assert claim.due_in_s(100.0) is None
    claim.end(0, None)
    claim.ended_since = 100.0
    assert claim.due_in_s(100.25) == pytest.approx(SETTLE_AFTER_S - 0.25)


def test_a_claim_with_a_retry_waits_less_for_its_delay_counts_from_then() -> None:
    claim = OpenClaim(1, 3)
    claim.end(1, outcome(1))
    claim.ended_since = 100.0
    assert claim.due_in_s(100.0) == pytest.approx(SETTLE_OUTCOMES_AFTER_S)


def test_the_first_claim_is_small_while_nothing_is_known() -> None:
    assert Pace(2000).target(100) == Pace.FIRST
    assert Pace(2000).target(3) == 3
    assert Pace(2000).target(0) == 0


def test_jobs_that_end_at_once_are_claimed_in_ever_larger_batches() -> None:
    pace, targets = Pace(2000), []
    for _ in range(40):
        target = pace.target(10)
        targets.append(target)
        pace.sample_starts(target, target * 2e-6)
        pace.sample_ends(target, target * 2e-6)
    assert targets == sorted(targets)
    assert targets[-1] == 2000


def test_jobs_that_never_end_are_claimed_only_for_idle_runners() -> None:
    pace = Pace(2000)
    pace.sample_starts(16, 1e-5)
    pace.sample_ends(0, 1e-5)
    assert pace.target(84) == 84
    assert pace.target(1) == 1
    assert pace.target(0) == 0


def test_jobs_that_hold_the_loop_are_claimed_for_the_horizon_only() -> None:
    pace = Pace(2000)
    for _ in range(20):
        pace.sample_starts(10, 10 * 0.002)
        pace.sample_ends(10, 10 * 0.002)
    assert pace.target(100) == 10
    for _ in range(20):
        pace.sample_starts(1, 1.0)
        pace.sample_ends(1, 1.0)
    assert pace.target(100) == 1


def test_a_worker_whose_jobs_have_become_slow_forgets_how_fast_they_were() -> None:
    pace = Pace(2000)
    for _ in range(50):
        pace.sample_starts(1000, 0.002)
        pace.sample_ends(1000, 0.002)
    assert pace.target(0) == 2000
    pace.sample_ends(0, 10.0)
    assert pace.target(0) < 50
    pace.sample_ends(0, 10.0)
    assert pace.target(0) == 0


@given(
    st.lists(st.tuples(st.integers(1, 10_000), st.floats(0, 1e6), st.integers(0, 10_000), st.floats(0, 1e6)), max_size=30),
    st.integers(0, 10_000),
    st.integers(1, 20_000),
)
def test_a_target_is_within_its_limit_and_never_starves_an_idle_runner(
    samples: list[tuple[int, float, int, float]], free: int, most: int
) -> None:
    pace = Pace(most)
    for started, starting_s, ended, seconds in samples:
        pace.sample_starts(started, starting_s)
        pace.sample_ends(ended, seconds)
    target = pace.target(free)
    assert min(free, 1) <= target <= max(most, Pace.FIRST)


def test_outcomes_are_told_in_calls_of_bounded_size_and_none_is_left_out() -> None:
    claims = [OpenClaim(number, 1) for number in range(1, 6)]
    for claim in claims:
        claim.end(0, Outcome(0, int(Kind.RETRY), Entry(b"i" * 16, "default", 5, b"x" * 400)))
    first, rest = within(claims, 1_000)
    assert [claim.id for claim in first] == [1, 2]
    assert [claim.id for claim in rest] == [3, 4, 5]
    assert within(claims[:1], 10) == (claims[:1], [])
    assert within([], 10) == ([], [])
