"""The one policy: whether a job runs again, when, or is dead. Pure arithmetic; nothing here sleeps, logs or reads a clock.

A run that failed goes through `after_failure`, a job of a dead worker through `after_loss`, one nobody knows a handler for
through `after_unknown`. Each returns a `Verdict`: the kind of outcome, the job as it is to be stored, and its delay.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from random import Random
from typing import NamedTuple, TypeAlias, cast

import msgspec

from fastjobs.durations import Duration, duration_s
from fastjobs.envelope import header, with_header
from fastjobs.errors import ConfigError
from fastjobs.model import DEFAULT_MAX_ATTEMPTS, MOST_COUNTED, SUSPECT_LOSSES, Failure, Job, Kind

ExceptionTypes: TypeAlias = type[BaseException] | Collection[type[BaseException]]
"""One exception type, or several."""

HISTORY_LIMIT = 25
"""Failures kept with a job: the first and the latest ones. More than the default number of attempts."""

MAX_SNOOZES = 1_000
"""A job that snoozes more often is dead: nothing else would ever end it."""

UNKNOWN_LIMIT_S = 3600.0
"""How long a job waits for a worker that knows its handler; a rolling deploy takes minutes."""

UNKNOWN_FIRST_DELAY_S = 1.0
UNKNOWN_CAP_S = 60.0


class Retry(Exception):
    """Raise in a handler: run this job again, after *after* (the policy's delay if None). Counts as an attempt."""

    def __init__(self, reason: str = "retry asked for", *, after: Duration | None = None) -> None:
        super().__init__(reason)
        self.after_s = None if after is None else duration_s(after, "Retry(after)")


class Discard(Exception):
    """Raise in a handler: this job is dead now, for *reason*, whatever attempts it has left."""

    def __init__(self, reason: str = "discarded") -> None:
        super().__init__(reason)


class Snooze(Exception):
    """Raise in a handler: run this job again after *delay*. Not an attempt; a job may snooze 1,000 times."""

    def __init__(self, delay: Duration, reason: str = "snoozed") -> None:
        super().__init__(reason)
        self.delay_s = duration_s(delay, "Snooze(delay)")

    def __reduce__(self) -> tuple[type[Snooze], tuple[float, str]]:  # out of a process pool
        return Snooze, (self.delay_s, str(self))


_Kinds: TypeAlias = tuple[type[BaseException], ...]


def _exception_types(given: object, field: str) -> _Kinds:
    """One exception type or a collection of them as a tuple, as `isinstance` takes it. ConfigError for anything else."""
    kinds = tuple(given) if isinstance(given, Iterable) and not isinstance(given, type) else (given,)
    if not all(isinstance(kind, type) and issubclass(kind, BaseException) for kind in kinds):
        raise ConfigError(f"RetryPolicy({field}): must be exception types, got {given!r}")
    return kinds


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """When a failed job runs again: base**attempts seconds, at most *cap*, plus up to *jitter* of that at random.

    With the defaults 2, 4, 8, … seconds, at most 86,400, exactly as the crate rustapi-jobs does.
    `retry_on`: only these exceptions are retried. `dead_on`: these are not, and it wins over `retry_on`; what is not retried
    makes the job dead at once.
    """

    base: float = 2.0  #: 1 or more; 1 means always one second
    cap: Duration = 86_400.0  #: longest delay, before jitter
    jitter: float = 0.0  #: 0 to 1: the share of the delay that is added at random at most
    retry_on: ExceptionTypes | None = None
    dead_on: ExceptionTypes = ()

    def __post_init__(self) -> None:
        for field, low, high in (("base", 1.0, 1e6), ("jitter", 0.0, 1.0)):
            value = getattr(self, field)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
                raise ConfigError(f"RetryPolicy({field}): must be a number from {low:g} to {high:g}, got {value!r}")
        duration_s(self.cap, "RetryPolicy(cap)")
        if self.retry_on is not None:
            object.__setattr__(self, "retry_on", _exception_types(self.retry_on, "retry_on"))
        object.__setattr__(self, "dead_on", _exception_types(self.dead_on, "dead_on"))

    @property
    def cap_s(self) -> float:
        """`cap` in seconds."""
        return duration_s(self.cap, "RetryPolicy(cap)")

    def delay_s(self, attempt: int, rng: Random | None = None) -> float:
        """Seconds to wait after failed *attempt* (1-based): min(base**attempt, cap), plus jitter drawn from *rng*.

        ValueError if attempt < 1. Without *rng* no jitter is added.
        """
        if attempt < 1:
            raise ValueError(f"attempts are counted from 1, got {attempt}")
        cap_s = self.cap_s
        # Compared as logarithms: base**attempt overflows a float from attempt 1,024 on.
        if self.base > 1 and attempt * math.log(self.base) > math.log(max(cap_s, 1.0)) + 1.0:
            delay_s = cap_s
        else:
            delay_s = min(float(self.base) ** attempt, cap_s)
        if self.jitter and rng is not None:
            delay_s += delay_s * self.jitter * rng.random()
        return delay_s

    def retries(self, error: BaseException) -> bool:
        """Whether *error* is one that this policy retries."""
        dead_on, retry_on = cast(_Kinds, self.dead_on), cast(_Kinds | None, self.retry_on)  # as __post_init__ leaves them
        if isinstance(error, dead_on):
            return False
        return retry_on is None or isinstance(error, retry_on)


DEFAULT_POLICY = RetryPolicy()


def carried_policy(job: Job) -> RetryPolicy | None:
    """The base, cap and jitter that an enqueue gave this job, if it did and a policy can have them."""
    numbers = header(job, "retry", tuple[float, float, float])
    try:
        return None if numbers is None else RetryPolicy(base=numbers[0], cap=numbers[1], jitter=numbers[2])
    except ConfigError:  # no enqueue of ours wrote it; a job must come to a verdict all the same
        return None


def carry_policy(policy: RetryPolicy) -> dict[str, msgspec.Raw]:
    """*policy* as a job's header. ConfigError if it has exception filters: types cannot be stored."""
    if policy.retry_on is not None or policy.dead_on:
        raise ConfigError("retry: exception filters belong on the handler; an enqueue can set base, cap and jitter")
    return {"retry": msgspec.Raw(msgspec.msgpack.encode((policy.base, policy.cap_s, policy.jitter)))}


class Verdict(NamedTuple):
    """What becomes of a job that is not done."""

    kind: Kind
    job: Job  #: as it is to be stored
    delay_s: float = 0.0


def _one_more(count: int) -> int:
    """*count* plus one, as long as the envelope can still be read then: only one that nobody of us wrote counts so far."""
    return min(count + 1, MOST_COUNTED)


def _with_failure(job: Job, failure: Failure) -> list[Failure]:
    history = [*(job.history or ()), failure]
    if len(history) > HISTORY_LIMIT:
        history = [history[0], *history[len(history) - HISTORY_LIMIT + 1 :]]
    return history


def after_failure(
    job: Job,
    error: BaseException,
    failure: Failure,
    policy: RetryPolicy,
    max_attempts: int | None = None,
    rng: Random | None = None,
) -> Verdict:
    """The verdict on a run of *job* that ended with *error*.

    *failure* is that run's entry for the history; *max_attempts* is what the handler or queue says where the enqueue said
    nothing. Discard: dead. Snooze: again, no attempt counted. Otherwise the attempt counts, and the job is dead if the policy
    does not retry this error or the attempts are used up.
    """
    if isinstance(error, Snooze):
        return _after_snooze(job, error, failure)
    attempts = _one_more(job.attempts)
    allowed = job.max_attempts or max_attempts or DEFAULT_MAX_ATTEMPTS
    again = msgspec.structs.replace(job, attempts=attempts, history=_with_failure(job, failure))
    if isinstance(error, Discard) or attempts >= allowed:
        return Verdict(Kind.DEAD, again)
    if isinstance(error, Retry):
        delay_s = policy.delay_s(attempts, rng) if error.after_s is None else error.after_s
        return Verdict(Kind.RETRY, again, delay_s)
    if not policy.retries(error):
        return Verdict(Kind.DEAD, again)
    return Verdict(Kind.RETRY, again, policy.delay_s(attempts, rng))


def _after_snooze(job: Job, error: Snooze, failure: Failure) -> Verdict:
    snoozes = (header(job, "snoozes", int) or 0) + 1
    if snoozes > MAX_SNOOZES:
        message = f"snoozed {MAX_SNOOZES} times; last: {failure.message}"
        dead = msgspec.structs.replace(failure, message=message)
        return Verdict(
            Kind.DEAD, msgspec.structs.replace(job, attempts=_one_more(job.attempts), history=_with_failure(job, dead))
        )
    return Verdict(Kind.RETRY, msgspec.structs.replace(job, headers=with_header(job, "snoozes", snoozes)), error.delay_s)


def after_undecodable(job: Job, failure: Failure) -> Verdict:
    """The verdict on a job whose payload its handler cannot decode: dead at once, payload kept byte for byte."""
    return Verdict(
        Kind.DEAD, msgspec.structs.replace(job, attempts=_one_more(job.attempts), history=_with_failure(job, failure))
    )


def after_unknown(job: Job, failure: Failure, *, dead: bool) -> Verdict:
    """The verdict on a job whose name no handler of this worker has.

    A deploy looks like this from the old workers: the job goes back with a growing delay (1, 1, 2, 4, … up to 60 s) and is dead
    once these delays come to an hour; with *dead*, at once.
    """
    # The delays, which the store measures, not times of day: a machine whose clock is an hour ahead would end the wait at once.
    put_off_s = header(job, "unknown_s", float) or 0.0
    if not put_off_s >= 0.0:  # no worker of ours wrote it
        put_off_s = 0.0
    if dead or put_off_s >= UNKNOWN_LIMIT_S:
        return Verdict(Kind.DEAD, msgspec.structs.replace(job, history=_with_failure(job, failure)))
    delay_s = min(max(UNKNOWN_FIRST_DELAY_S, put_off_s), UNKNOWN_CAP_S)
    headers = with_header(job, "unknown_s", put_off_s + delay_s)
    return Verdict(Kind.RETRY, msgspec.structs.replace(job, headers=headers), delay_s)


def known_again(job: Job) -> Job:
    """*job* without the mark of having met a worker that did not know it."""
    if not job.headers or "unknown_s" not in job.headers:
        return job
    rest = {key: value for key, value in job.headers.items() if key != "unknown_s"}
    return msgspec.structs.replace(job, headers=rest or None)


def is_suspect(job: Job) -> bool:
    """Whether *job* is to run alone in its worker, because workers died while it ran."""
    return job.losses >= SUSPECT_LOSSES


def after_loss(job: Job, failure: Failure, *, alone: bool, evidence: bool) -> Verdict:
    """The verdict on a started *job* whose worker died.

    Not an attempt: a loss. *alone*: nothing else had started in that worker. *evidence*: the death of that one process was
    seen (a lost machine says nothing against a job and makes it a suspect at most). Only a loss suffered alone, on evidence,
    and not before the `max_losses`-th makes the job dead; otherwise it goes back to the head of its queue.
    """
    losses = _one_more(job.losses) if evidence else max(job.losses, min(job.losses + 1, SUSPECT_LOSSES))
    lost = msgspec.structs.replace(job, losses=losses, history=_with_failure(job, failure))
    if evidence and alone and losses >= job.max_losses:
        return Verdict(Kind.DEAD, lost)
    return Verdict(Kind.RELEASED, lost)


def requeued(job: Job) -> Job:
    """A dead letter as it goes back to work by hand: no attempts, no losses, its history kept."""
    kept = {key: value for key, value in (job.headers or {}).items() if key not in ("snoozes", "unknown_s")}
    return msgspec.structs.replace(job, attempts=0, losses=0, headers=kept or None)
