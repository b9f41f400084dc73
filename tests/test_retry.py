"""The one policy: exact delays, who runs again, who is dead."""

from __future__ import annotations

import math
from random import Random
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastjobs.envelope import decode_job, encode_job
from fastjobs.errors import ConfigError
from fastjobs.ids import new_id
from fastjobs.model import DEFAULT_MAX_ATTEMPTS, ENVELOPE_VERSION, Failure, Job, Kind
from fastjobs.retry import (
    HISTORY_LIMIT,
    MAX_SNOOZES,
    UNKNOWN_LIMIT_S,
    Discard,
    Retry,
    RetryPolicy,
    Snooze,
    Verdict,
    after_failure,
    after_loss,
    after_undecodable,
    after_unknown,
    carried_policy,
    carry_policy,
    is_suspect,
    known_again,
    requeued,
)

DEFAULT = RetryPolicy()
CAP_S = 86_400.0


def a_job(**fields: Any) -> Job:
    return msgspec.structs.replace(Job(ENVELOPE_VERSION, 5, new_id(), "resize", "default", b"{}", 1.7e9), **fields)


def a_failure(message: str = "no", kind: str = "failed") -> Failure:
    return Failure(1.7e9, 1, kind, "ValueError", message, "", "w")


def failed(job: Job, error: BaseException, policy: RetryPolicy = DEFAULT, allowed: int | None = None) -> Verdict:
    return after_failure(job, error, a_failure(str(error)), policy, allowed)


# -- delays


def test_delays_double_from_two_seconds_up_to_a_day() -> None:
    expected = [2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 86400, 86400, 86400]
    assert [DEFAULT.delay_s(attempt) for attempt in range(1, 20)] == expected


@pytest.mark.parametrize("attempt", [1_023, 1_024, 1_025, 10**6])
def test_a_delay_never_overflows(attempt: int) -> None:
    assert DEFAULT.delay_s(attempt) == CAP_S
    assert RetryPolicy(base=1e6).delay_s(attempt) == CAP_S
    assert RetryPolicy(base=1).delay_s(attempt) == 1.0


@pytest.mark.parametrize("attempt", [0, -1])
def test_attempts_are_counted_from_one(attempt: int) -> None:
    with pytest.raises(ValueError, match="counted from 1"):
        DEFAULT.delay_s(attempt)


@given(st.floats(1, 1e6), st.integers(1, 10**6), st.floats(0, 1e9))
def test_a_delay_is_the_power_or_the_cap_and_never_shrinks(base: float, attempt: int, cap: float) -> None:
    policy = RetryPolicy(base=base, cap=cap)
    delay_s = policy.delay_s(attempt)
    try:
        exact = min(base**attempt, cap)
    except OverflowError:
        exact = cap
    assert delay_s == exact
    assert policy.delay_s(attempt + 1) >= delay_s


@given(st.floats(0, 1), st.integers(1, 30), st.integers())
def test_jitter_adds_at_most_its_share(jitter: float, attempt: int, seed: int) -> None:
    plain = DEFAULT.delay_s(attempt)
    delay_s = RetryPolicy(jitter=jitter).delay_s(attempt, Random(seed))
    assert plain <= delay_s <= plain * (1 + jitter)


def test_jitter_spreads_over_its_whole_share() -> None:
    policy, rng = RetryPolicy(jitter=0.5), Random(1)
    delays = [policy.delay_s(3, rng) for _ in range(1_000)]
    assert min(delays) < 8 * 1.01
    assert max(delays) > 8 * 1.49


def test_without_randomness_there_is_no_jitter() -> None:
    assert RetryPolicy(jitter=1.0).delay_s(3) == 8.0


def test_a_cap_of_zero_means_at_once() -> None:
    assert RetryPolicy(cap=0).delay_s(5) == 0.0


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("base", [0.5, 0, -2, math.nan, math.inf, "2", None, True, 10**400]),
        ("jitter", [-0.1, 1.1, math.nan, "x", None, True]),
        ("cap", [-1, "never", None, math.inf, math.nan]),
        ("retry_on", [5, "ValueError", [ValueError, 5], ValueError(), int, (int,)]),
        ("dead_on", [5, None, [KeyError, "x"], int]),
    ],
)
def test_a_bad_policy_is_refused_and_the_field_named(field: str, values: list[Any]) -> None:
    for value in values:
        with pytest.raises(ConfigError, match=field):
            RetryPolicy(**{field: value})


# -- filters


@pytest.mark.parametrize("given", [ValueError, (ValueError,), [ValueError], {ValueError}])
def test_filters_may_be_one_type_or_any_collection_of_them(given: Any) -> None:
    assert RetryPolicy(retry_on=given).retry_on == (ValueError,)
    assert RetryPolicy(dead_on=given).dead_on == (ValueError,)


def test_only_listed_exceptions_are_retried() -> None:
    policy = RetryPolicy(retry_on=(OSError,))
    assert failed(a_job(), ConnectionError(), policy).kind is Kind.RETRY
    assert failed(a_job(), ValueError(), policy).kind is Kind.DEAD


def test_what_is_dead_wins_over_what_is_retried() -> None:
    policy = RetryPolicy(retry_on=(OSError,), dead_on=(FileNotFoundError,))
    assert failed(a_job(), PermissionError(), policy).kind is Kind.RETRY
    assert failed(a_job(), FileNotFoundError(), policy).kind is Kind.DEAD


def test_an_empty_list_of_retried_exceptions_retries_none() -> None:
    assert failed(a_job(), ValueError(), RetryPolicy(retry_on=())).kind is Kind.DEAD


# -- what handlers raise


def test_a_failure_counts_an_attempt_and_comes_back_after_its_delay() -> None:
    verdict = failed(a_job(attempts=2), ValueError("no"))
    assert (verdict.kind, verdict.delay_s, verdict.job.attempts) == (Kind.RETRY, 8.0, 3)
    assert verdict.job.history == [a_failure("no")]


def test_a_retry_says_its_own_delay_and_counts_as_an_attempt() -> None:
    verdict = failed(a_job(attempts=2), Retry(after="90s"))
    assert (verdict.kind, verdict.delay_s, verdict.job.attempts) == (Kind.RETRY, 90.0, 3)
    assert failed(a_job(), Retry(after=0)).delay_s == 0.0
    assert failed(a_job(attempts=4), Retry("busy")).delay_s == 32.0
    assert failed(a_job(attempts=19), Retry(after=1)).kind is Kind.DEAD


def test_a_retry_that_is_asked_for_passes_the_filters() -> None:
    assert failed(a_job(), Retry(), RetryPolicy(retry_on=(OSError,))).kind is Kind.RETRY


def test_a_discarded_job_is_dead_whatever_attempts_are_left() -> None:
    verdict = failed(a_job(max_attempts=100), Discard("no such user"))
    assert (verdict.kind, verdict.job.attempts) == (Kind.DEAD, 1)
    assert verdict.job.history == [a_failure("no such user")]


def test_a_snooze_counts_no_attempt_and_leaves_no_trace_in_the_history() -> None:
    verdict = failed(a_job(attempts=3), Snooze("1h"))
    assert (verdict.kind, verdict.delay_s, verdict.job.attempts, verdict.job.history) == (Kind.RETRY, 3600.0, 3, None)


def test_a_job_may_snooze_a_thousand_times_and_is_dead_at_the_next() -> None:
    job = a_job()
    for _ in range(MAX_SNOOZES):
        verdict = failed(job, Snooze(1, "not yet"))
        assert verdict.kind is Kind.RETRY
        job = decode_job(encode_job(verdict.job))
    verdict = failed(job, Snooze(1, "not yet"))
    assert verdict.kind is Kind.DEAD
    assert verdict.job.history is not None
    assert "1000 times" in verdict.job.history[-1].message


@pytest.mark.parametrize("make", [lambda: Retry(after=-1), lambda: Snooze("soon"), lambda: Retry(after=math.nan)])
def test_a_delay_that_is_none_is_refused_where_it_is_raised(make: Any) -> None:
    with pytest.raises(ConfigError):
        make()


# -- attempts


def test_a_job_is_dead_when_its_attempts_are_used_up() -> None:
    job, kinds = a_job(max_attempts=3), []
    for _ in range(3):
        verdict = failed(job, ValueError())
        kinds.append(verdict.kind)
        job = verdict.job
    assert kinds == [Kind.RETRY, Kind.RETRY, Kind.DEAD]
    assert job.attempts == 3


def test_one_attempt_means_no_retry() -> None:
    assert failed(a_job(max_attempts=1), ValueError()).kind is Kind.DEAD


def test_the_enqueue_wins_over_the_handler_and_the_handler_over_the_default() -> None:
    assert failed(a_job(max_attempts=5), ValueError(), allowed=1).kind is Kind.RETRY
    assert failed(a_job(max_attempts=1), ValueError(), allowed=5).kind is Kind.DEAD
    assert failed(a_job(attempts=29), ValueError(), allowed=31).kind is Kind.RETRY
    assert failed(a_job(attempts=DEFAULT_MAX_ATTEMPTS - 2), ValueError()).kind is Kind.RETRY
    assert failed(a_job(attempts=DEFAULT_MAX_ATTEMPTS - 1), ValueError()).kind is Kind.DEAD


@given(st.integers(1, 60))
def test_a_job_that_always_fails_runs_exactly_max_attempts_times(max_attempts: int) -> None:
    job, runs = a_job(max_attempts=max_attempts), 0
    while True:
        runs += 1
        verdict = failed(job, ValueError())
        job = verdict.job
        if verdict.kind is Kind.DEAD:
            break
    assert runs == max_attempts == job.attempts


def test_the_history_keeps_the_first_failure_and_the_latest() -> None:
    job = a_job(max_attempts=1000)
    for run in range(100):
        job = failed(job, ValueError(str(run))).job
    assert job.history is not None
    assert [failure.message for failure in job.history] == ["0", *(str(run) for run in range(100 - HISTORY_LIMIT + 1, 100))]
    assert len(job.history) == HISTORY_LIMIT


def test_a_verdict_changes_nothing_of_the_job_it_was_given() -> None:
    job = a_job(history=[a_failure()], headers=None)
    before = encode_job(job)
    for error in (ValueError(), Retry(), Discard(), Snooze(1)):
        failed(job, error)
    after_loss(job, a_failure(), alone=True, evidence=True)
    after_unknown(job, a_failure(), dead=False)
    after_undecodable(job, a_failure())
    assert encode_job(job) == before


# -- policies that travel with a job


def test_the_policy_of_an_enqueue_travels_with_the_job() -> None:
    job = a_job(headers=carry_policy(RetryPolicy(base=3, cap="1h", jitter=0.25)))
    assert carried_policy(decode_job(encode_job(job))) == RetryPolicy(base=3, cap=3600.0, jitter=0.25)


def test_a_job_without_a_policy_of_its_own_carries_none() -> None:
    assert carried_policy(a_job()) is None


@pytest.mark.parametrize(
    "numbers", [(0.5, 10.0, 0.0), (2.0, -1.0, 0.0), (2.0, 60.0, 7.0), (math.nan,) * 3, (2.0,), "text", None]
)
def test_a_policy_that_no_enqueue_can_have_written_counts_as_none(numbers: Any) -> None:
    job = a_job(headers={"retry": msgspec.Raw(msgspec.msgpack.encode(numbers))})
    assert carried_policy(job) is None


# -- nobody knows the handler


def test_an_unknown_job_comes_back_with_growing_delays_and_is_dead_after_an_hour() -> None:
    job, delays = a_job(attempts=2), []
    while True:
        verdict = after_unknown(job, a_failure(kind="unknown"), dead=False)
        if verdict.kind is Kind.DEAD:
            break
        delays.append(verdict.delay_s)
        job = decode_job(encode_job(verdict.job))
    assert delays[:7] == [1, 1, 2, 4, 8, 16, 32]
    assert max(delays) == 60
    assert UNKNOWN_LIMIT_S <= sum(delays) <= UNKNOWN_LIMIT_S + 60
    assert verdict.job.attempts == 2
    assert verdict.job.history == [a_failure(kind="unknown")]


def test_an_unknown_job_is_dead_at_once_where_the_app_says_so() -> None:
    assert after_unknown(a_job(), a_failure(), dead=True).kind is Kind.DEAD


@pytest.mark.parametrize("put_off_s", [-1.0, math.nan, "text"])
def test_a_wait_that_no_worker_can_have_written_begins_anew(put_off_s: Any) -> None:
    job = a_job(headers={"unknown_s": msgspec.Raw(msgspec.msgpack.encode(put_off_s))})
    verdict = after_unknown(job, a_failure(), dead=False)
    assert (verdict.kind, verdict.delay_s) == (Kind.RETRY, 1.0)
    again = after_unknown(verdict.job, a_failure(), dead=False)
    assert (again.kind, again.delay_s) == (Kind.RETRY, 1.0)


def test_a_job_that_found_its_handler_begins_a_new_hour_when_it_is_unknown_again() -> None:
    job = a_job()
    for _ in range(5):
        job = after_unknown(job, a_failure(), dead=False).job
    job = known_again(job)
    assert job.headers is None
    assert after_unknown(job, a_failure(), dead=False).delay_s == 1.0


def test_forgetting_that_a_job_was_unknown_keeps_its_other_headers() -> None:
    job = a_job(headers=carry_policy(RetryPolicy(base=3)))
    known = known_again(after_unknown(job, a_failure(), dead=False).job)
    assert known.headers == job.headers
    assert known_again(job) is job


def test_an_undecodable_job_is_dead_with_its_payload_as_it_was() -> None:
    verdict = after_undecodable(a_job(payload=b"\xff{nonsense", max_attempts=50), a_failure(kind="undecodable"))
    assert (verdict.kind, verdict.job.payload, verdict.job.attempts) == (Kind.DEAD, b"\xff{nonsense", 1)


# -- worker deaths


def lost(job: Job, *, alone: bool = False, evidence: bool = True) -> Verdict:
    return after_loss(job, a_failure(kind="lost"), alone=alone, evidence=evidence)


def test_a_loss_is_no_attempt_and_puts_the_job_back_at_the_head() -> None:
    verdict = lost(a_job(attempts=4))
    assert (verdict.kind, verdict.job.attempts, verdict.job.losses) == (Kind.RELEASED, 4, 1)
    assert verdict.job.history == [a_failure(kind="lost")]


def test_a_job_is_a_suspect_from_its_second_loss_on() -> None:
    assert [is_suspect(a_job(losses=losses)) for losses in range(5)] == [False, False, True, True, True]


def test_a_job_dies_of_the_third_death_that_it_suffers_alone() -> None:
    job = lost(lost(a_job()).job).job
    assert lost(job, alone=False).kind is Kind.RELEASED
    assert lost(job, alone=True).kind is Kind.DEAD


def test_deaths_beside_others_never_make_a_job_dead() -> None:
    job = a_job()
    for _ in range(50):
        verdict = lost(job, alone=False)
        assert verdict.kind is Kind.RELEASED
        job = verdict.job


def test_an_early_death_alone_is_not_enough() -> None:
    first = lost(a_job(), alone=True)
    second = lost(first.job, alone=True)
    assert (first.kind, second.kind) == (Kind.RELEASED, Kind.RELEASED)
    assert lost(second.job, alone=True).kind is Kind.DEAD


@pytest.mark.parametrize("max_losses", [1, 2, 5])
def test_max_losses_says_from_which_death_on_it_can_be_dead(max_losses: int) -> None:
    job = a_job(max_losses=max_losses)
    for _ in range(max_losses - 1):
        verdict = lost(job, alone=True)
        assert verdict.kind is Kind.RELEASED
        job = verdict.job
    assert lost(job, alone=True).kind is Kind.DEAD


def test_a_lost_machine_makes_a_job_a_suspect_at_most() -> None:
    job = a_job()
    for _ in range(20):
        verdict = lost(job, alone=True, evidence=False)
        assert verdict.kind is Kind.RELEASED
        job = verdict.job
    assert (job.losses, is_suspect(job)) == (2, True)


def test_a_lost_machine_takes_no_losses_off() -> None:
    assert lost(a_job(losses=7), evidence=False).job.losses == 7


@given(st.lists(st.tuples(st.booleans(), st.booleans()), max_size=30), st.integers(1, 6))
def test_a_job_is_dead_only_of_a_death_alone_on_evidence_and_not_before_max_losses(
    deaths: list[tuple[bool, bool]], max_losses: int
) -> None:
    job = a_job(max_losses=max_losses)
    for number, (alone, evidence) in enumerate(deaths, 1):
        verdict = lost(job, alone=alone, evidence=evidence)
        if verdict.kind is Kind.DEAD:
            assert alone
            assert evidence
            assert number >= max_losses
            return
        assert verdict.job.losses >= job.losses
        job = verdict.job


def test_a_job_requeued_by_hand_begins_anew_and_keeps_its_history() -> None:
    job = failed(a_job(headers=carry_policy(RetryPolicy(base=3))), Snooze(1)).job
    job = lost(failed(job, ValueError()).job).job
    job = after_unknown(job, a_failure(), dead=False).job
    again = requeued(job)
    assert (again.attempts, again.losses) == (0, 0)
    assert again.history == job.history
    assert carried_policy(again) == RetryPolicy(base=3)
    assert again.headers is not None
    assert set(again.headers) == {"retry"}
    assert again.id == job.id
