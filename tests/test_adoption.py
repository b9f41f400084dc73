"""What becomes of a dead worker's jobs: the pure part."""

from __future__ import annotations

import signal
from random import Random
from typing import Any

import msgspec
import pytest

from fastjobs import JobQueue, QueueOptions, RetryPolicy
from fastjobs.adoption import Death, describe_exit, given_up, judged, lost_machine
from fastjobs.envelope import CORRUPT_NAME, decode_job, encode_job
from fastjobs.ids import id_word, new_id
from fastjobs.model import DEFAULT_MAX_LOSSES, ENVELOPE_VERSION, SUSPECT_LOSSES, Job, Kind, Outcome
from fastjobs.registry import Registry
from fastjobs.terms import Terms

TERMS = Terms(Registry(), {})  # of an app without handlers


def job(**fields: Any) -> Job:
    made = Job(ENVELOPE_VERSION, 5, new_id(), "resize", "default", b"{}", 0.0)
    return msgspec.structs.replace(made, **fields)


def died(*started: Job, timed_out: bool = False, **fields: Any) -> Death:
    return Death("w.1-0", "SIGKILL", "was killed", {id_word(one.id): timed_out for one in started}, **fields)


def verdict(envelope: bytes, *deaths: Death, terms: Terms = TERMS) -> tuple[Kind, bytes]:
    [[outcome]] = judged([[envelope]], deaths, terms, Random(1))
    return Kind(outcome.kind), outcome.entry.envelope


def test_a_job_that_had_not_started_goes_back_byte_for_byte() -> None:
    envelope = encode_job(job(losses=1))
    assert verdict(envelope, died(job())) == (Kind.RELEASED, envelope)


def test_a_started_job_goes_back_with_a_loss_and_how_its_worker_died() -> None:
    lost = job()
    kind, envelope = verdict(encode_job(lost), died(lost, traceback="in resize"))
    again = decode_job(envelope)
    assert kind is Kind.RELEASED
    assert (again.attempts, again.losses) == (0, 1)
    [failure] = again.history or []
    assert (failure.kind, failure.error, failure.message) == ("lost", "SIGKILL", "was killed")
    assert (failure.traceback, failure.worker, failure.attempt) == ("in resize", "w.1-0", 1)


def test_a_job_that_kills_its_worker_alone_is_dead_of_its_last_loss() -> None:
    poison = job(losses=DEFAULT_MAX_LOSSES - 1)
    kind, envelope = verdict(encode_job(poison), died(poison))
    assert kind is Kind.DEAD
    assert decode_job(envelope).losses == DEFAULT_MAX_LOSSES


def test_a_loss_suffered_beside_another_job_proves_nothing() -> None:
    poison = job(losses=50)
    assert verdict(encode_job(poison), died(poison, job()))[0] is Kind.RELEASED


def test_a_drained_worker_costs_no_loss() -> None:
    running = job()
    envelope = encode_job(running)
    assert verdict(envelope, died(running, drained=True)) == (Kind.RELEASED, envelope)


@pytest.mark.parametrize("drained", [True, False])
def test_a_job_past_its_time_limit_has_failed_its_attempt(drained: bool) -> None:
    late = job()
    kind, envelope = verdict(encode_job(late), died(late, timed_out=True, drained=drained))
    again = decode_job(envelope)
    assert kind is Kind.RETRY
    assert (again.attempts, again.losses) == (1, 0)
    assert (again.history or [])[-1].kind == "timeout"
    last = job(max_attempts=1)
    assert verdict(encode_job(last), died(last, timed_out=True, drained=drained))[0] is Kind.DEAD


def test_what_the_handler_says_of_retries_holds_for_a_job_past_its_time_limit_too() -> None:
    jobs = JobQueue("memory://", queues={"mail": QueueOptions(max_attempts=1)})

    @jobs.job(max_attempts=2, retry=RetryPolicy(base=7))
    async def resize() -> None: ...

    terms = Terms(jobs.registry, jobs.queue_options)

    def after(late: Job) -> Outcome:
        [[outcome]] = judged([[encode_job(late)]], [died(late, timed_out=True)], terms, Random(1))
        return outcome

    assert (after(job()).kind, after(job()).entry.delay_s) == (Kind.RETRY, 7.0)
    assert after(job(attempts=1)).kind == Kind.DEAD
    assert after(job(attempts=1, max_attempts=5)).kind == Kind.RETRY  # the enqueue's word is nearer
    assert after(job(name="unknown here", queue="mail")).kind == Kind.DEAD


def test_a_lost_machine_makes_a_job_a_suspect_at_most() -> None:
    one = job()
    for _ in range(5):
        kind, envelope = verdict(encode_job(one), lost_machine("w.1-0", 15.0))
        one = decode_job(envelope)
        assert kind is Kind.RELEASED
    assert one.losses == SUSPECT_LOSSES


def test_of_a_worker_that_died_after_a_job_had_ended_all_that_it_held_are_suspects_at_most() -> None:
    held = [job(), job(losses=1), job(losses=7)]
    for _ in range(4):
        [outcomes] = judged([[encode_job(one) for one in held]], [died(ended=True)], TERMS, Random(1))
        assert {outcome.kind for outcome in outcomes} == {Kind.RELEASED}
        held = [decode_job(outcome.entry.envelope) for outcome in outcomes]
    assert [one.losses for one in held] == [SUSPECT_LOSSES, SUSPECT_LOSSES, 7]


def test_a_job_that_was_all_its_worker_held_when_it_died_after_it_is_dead_of_its_last_loss() -> None:
    poison = job(losses=DEFAULT_MAX_LOSSES - 1)
    assert verdict(encode_job(poison), died(ended=True))[0] is Kind.DEAD
    envelope = encode_job(poison)
    assert verdict(envelope, died(ended=True, drained=True)) == (Kind.RELEASED, envelope)


def test_what_nobody_can_read_is_a_dead_letter_with_its_bytes() -> None:
    kind, envelope = verdict(b"\xffno envelope", died())
    assert kind is Kind.DEAD
    assert (decode_job(envelope).name, decode_job(envelope).payload) == (CORRUPT_NAME, b"\xffno envelope")


def test_an_envelope_of_a_later_version_goes_back_untouched() -> None:
    newer = job(version=ENVELOPE_VERSION + 1)
    envelope = encode_job(newer)
    [[outcome]] = judged([[envelope]], [died(newer)], TERMS, Random(1))
    assert outcome.kind == Kind.RELEASED
    assert (outcome.entry.id, outcome.entry.envelope, outcome.entry.delay_s) == (newer.id, envelope, 0.0)


def test_a_predecessors_jobs_are_judged_by_the_death_they_belong_to() -> None:
    one, two, three = job(), job(), job()
    deaths = [given_up("w.0-9"), died(one), died(two, drained=True)]
    outcomes = judged([[encode_job(one), encode_job(two)], [encode_job(three)]], deaths, TERMS, Random(1))
    losses = [decode_job(outcome.entry.envelope).losses for claim in outcomes for outcome in claim]
    assert losses == [1, 0, 0]
    assert [outcome.index for claim in outcomes for outcome in claim] == [0, 1, 0]
    assert all(isinstance(outcome, Outcome) for claim in outcomes for outcome in claim)


@pytest.mark.parametrize(
    ("status", "short", "full"),
    [
        (int(signal.SIGKILL), "SIGKILL", "was killed by SIGKILL; peak memory 812 MiB"),
        (int(signal.SIGSEGV) | 0x80, "SIGSEGV", "was killed by SIGSEGV; peak memory 812 MiB"),
        (3 << 8, "exit code 3", "ended with exit code 3; peak memory 812 MiB"),
        (63, "signal 63", "was killed by signal 63; peak memory 812 MiB"),
    ],
)
def test_a_wait_status_in_words(status: int, short: str, full: str) -> None:
    assert describe_exit(status, 812 * 1024) == (short, full)
    assert describe_exit(status)[1] == full.partition(";")[0]
