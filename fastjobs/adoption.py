"""What becomes of the jobs of a worker that is no more: taken over, judged, settled.

`Death` is what is known of its end, `judged` the pure part, `Adopter` the one that takes and gives back.
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from random import Random
from typing import Final, NamedTuple, Protocol, TypeVar

from fastjobs import clock
from fastjobs.backends.base import Backend
from fastjobs.envelope import decode_job
from fastjobs.errors import BackendError, SerializationError, StaleCall, StoreUnavailable, TimeLimitExceeded, WorkerGone
from fastjobs.execution import MESSAGE_LIMIT, TRACEBACK_LIMIT, clean_text, outcome_of, set_aside
from fastjobs.ids import id_word
from fastjobs.model import Entry, Failure, Job, Kind, Outcome, Settlement
from fastjobs.retry import Verdict, after_failure, after_loss
from fastjobs.slots import Slot, Word, worker_id
from fastjobs.terms import Terms

log = logging.getLogger("fastjobs.maintenance")

T = TypeVar("T")

ADOPT_LIMIT: Final = 1_000
"""Jobs of one adopted claim, unless a single claim has more."""


@dataclass(frozen=True, slots=True)
class Death:
    """How a worker ended, and what it was running then."""

    worker: str
    error: str  #: in short: "SIGKILL", "exit code 3", "lease ended"
    message: str  #: in full
    started: dict[int, bool] = field(default_factory=dict)  #: as `Slot.started` gave it
    ended: bool = False  #: nothing was running, but jobs that the store had not been told of yet had ended
    drained: bool = False  #: it was told to stop: no loss
    machine: bool = False  #: it is the lease that ended, with no evidence against a job: any of its jobs may have started
    traceback: str = ""  #: its stacks, if the watchdog took them


def death_in(slot: Slot, lease: str) -> Death:
    """The death of the worker in *slot*, which is DEAD."""
    words = slot.words
    error, message = describe_exit(words[Word.EXIT_STATUS] & 0xFFFF, words[Word.MAX_RSS_KIB])
    started = slot.started()
    if words[Word.SILENT_MS]:
        error = "watchdog"
        message += f"; the watchdog had it killed, as its event loop had not turned for {words[Word.SILENT_MS] / 1000:.1f} s"
    return Death(
        worker=slot.worker_id(lease),
        error=error,
        message=f"its worker, process {words[Word.PID]}, {message}",
        started=started,
        ended=bool(words[Word.ENDED]) and not started,
        drained=bool(words[Word.DRAINED]),
        traceback=slot.stack,
    )


def lost_machine(worker: str, ttl_s: float) -> Death:
    """The end of *worker*, whose lease nobody renewed for *ttl_s* seconds."""
    return Death(worker, "lease ended", f"its worker's lease was not renewed for {ttl_s:g} s", machine=True)


def given_up(worker: str) -> Death:
    """The end of a worker of which only claims are left: nothing of it is known to have started."""
    return Death(worker, "gone", "its worker left it behind")


def describe_exit(status: int, max_rss_kib: int = 0) -> tuple[str, str]:
    """A wait status in short, ``SIGKILL``, and in full, ``was killed by SIGKILL; peak memory 812 MiB``."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        try:
            short = signal.Signals(number).name
        except ValueError:
            short = f"signal {number}"
        full = f"was killed by {short}"
    else:
        short = f"exit code {os.WEXITSTATUS(status)}"
        full = f"ended with {short}"
    return short, f"{full}; peak memory {max_rss_kib / 1024:,.0f} MiB" if max_rss_kib else full


def judged(claims: Sequence[Sequence[bytes]], deaths: Sequence[Death], terms: Terms, rng: Random) -> list[list[Outcome]]:
    """Outcomes for all jobs of the adopted *claims*, whose workers had one of *deaths*.

    A job that had not started goes back to the head unchanged, and so does one of a worker that was told to stop. One that
    outlived its time limit has failed its attempt, under the app's *terms* (only a worker of this app can have marked it); any
    other started job suffered a loss. What cannot be read is dead.

    A worker may die of a job that has ended: one that corrupted its memory or closed its files. If it dies before the store
    hears of that end, while nothing runs, all that it held share the loss, and are suspects at most; if that was one job, it is
    proved guilty. Otherwise such a job would go back, unblamed, to kill the next worker, for ever.
    """
    running = {word: death for death in deaths for word in death.started}
    whole = next((death for death in deaths if death.machine or (death.ended and not death.drained)), None)
    alone = sum(map(len, claims)) == 1
    judge = partial(_judge, running, whole, alone, terms, rng)
    return [[judge(index, envelope) for index, envelope in enumerate(claim)] for claim in claims]


def _judge(
    running: dict[int, Death], whole: Death | None, alone: bool, terms: Terms, rng: Random, index: int, envelope: bytes
) -> Outcome:
    try:
        job = decode_job(envelope)
    except SerializationError as error:
        aside = set_aside(index, envelope, error, "")
        # One of a later version goes back at once: the worker it was claimed by may have been of that version.
        return _unchanged(aside, envelope) if aside.kind == Kind.RETRY else aside
    death = running.get(id_word(job.id)) or whole
    if death is None or (death.drained and not death.started.get(id_word(job.id))):
        return Outcome(index, int(Kind.RELEASED), Entry(job.id, job.queue, job.priority, envelope))
    return outcome_of(index, _verdict(job, death, alone, terms, rng))


def _verdict(job: Job, death: Death, alone: bool, terms: Terms, rng: Random) -> Verdict:
    """On a job that had started, or may have."""
    if death.started.get(id_word(job.id)):
        limit = TimeLimitExceeded(f"still running long after its time limit, its worker had to be replaced: {death.message}")
        failure = _failure(job, "timeout", type(limit).__name__, str(limit), death)
        handler = terms.handler_of(job.name)
        return after_failure(job, limit, failure, terms.policy(job, handler), terms.max_attempts(job, handler), rng)
    failure = _failure(job, "lost", death.error, death.message, death)
    alone = len(death.started) == 1 or (death.ended and alone)
    return after_loss(job, failure, alone=alone, evidence=bool(death.started) or (death.ended and alone))


def _failure(job: Job, kind: str, error: str, message: str, death: Death) -> Failure:
    return Failure(
        at=clock.wall(),
        attempt=job.attempts + 1,
        kind=kind,
        error=error,
        message=clean_text(message, MESSAGE_LIMIT),
        traceback=clean_text(death.traceback, TRACEBACK_LIMIT),
        worker=death.worker,
    )


class Settled(NamedTuple):
    """How many adopted jobs went where."""

    released: int = 0
    lost: int = 0  #: of the released ones, those that had started
    retried: int = 0
    dead: int = 0


class Claim(NamedTuple):
    """One claim that the adopter holds now."""

    id: int
    jobs: list[bytes]


class Patience(Protocol):
    """Makes a call until the store answers. Lets StaleCall and WorkerGone through, and a refusal at once."""

    async def __call__(self, call: Callable[[], Awaitable[T]], /) -> T: ...


class Adopter:
    """Takes over claims into a worker of its own and settles them. One task at a time.

    Its id is `<lease>.0-<random>`: number 0 is never a worker's, so that a successor knows what it left behind.
    """

    def __init__(self, backend: Backend, lease: str, terms: Terms, patiently: Patience) -> None:
        self.backend = backend
        self.id = ""
        self._lease = lease
        self._terms = terms
        self._patiently = patiently
        self._n = 0
        self._rng = Random()  # nosec B311  # noqa: S311 - spreads retries, guards nothing

    async def start(self) -> None:
        """Register under a fresh id."""
        self.id = worker_id(self._lease, 0, int.from_bytes(os.urandom(6), "big"))
        self._n = 0
        await self._patiently(lambda: self.backend.register(self.id))

    async def adopt(self, worker: str, deaths: Sequence[Death], claims: Sequence[int] | None = None) -> Settled:
        """Take over *worker*'s claims (None: all, and it is given up), judge their jobs, settle them. Repeatable.

        If the store forgot this adopter meanwhile, it starts over under a fresh id, and others have what it held.
        """
        while True:
            try:
                taken = await self._take(worker, claims)
                outcomes = judged([claim.jobs for claim in taken], deaths, self._terms, self._rng)
                # The last claim first: each settlement puts its jobs before those of the one before.
                for claim, decided in zip(reversed(taken), reversed(outcomes), strict=True):
                    await self._settle(claim, decided)
                return _count(outcomes, deaths)
            except (WorkerGone, StaleCall) as error:
                log.warning("%s; maintenance starts over", error)
                await self.start()

    async def _take(self, worker: str, claims: Sequence[int] | None) -> list[Claim]:
        taken: list[Claim] = []
        more = True
        while more:
            self._n += 1
            adopted = await self._patiently(lambda: self.backend.adopt(self.id, self._n, worker, claims, ADOPT_LIMIT))
            more = adopted.more
            if adopted.jobs:
                taken.append(Claim(self._n, adopted.jobs))
        return taken

    async def _settle(self, claim: Claim, outcomes: list[Outcome]) -> None:
        self._n += 1
        try:
            await self._patiently(lambda: self.backend.exchange(self.id, self._n, [Settlement(claim.id, outcomes)], (), 0))
        except (WorkerGone, StaleCall, StoreUnavailable):
            raise
        except BackendError as error:
            # One job that the store refuses must not keep the others: all go back as they came.
            log.error("the store refuses what was decided on %d jobs, they go back unchanged: %s", len(claim.jobs), error)
            self._n += 1
            back = [_unchanged(outcome, envelope) for outcome, envelope in zip(outcomes, claim.jobs, strict=True)]
            await self._patiently(lambda: self.backend.exchange(self.id, self._n, [Settlement(claim.id, back)], (), 0))

    async def retire(self) -> None:
        """Forget this adopter in the store. Raises BackendError."""
        await self.backend.retire(self.id)


def _unchanged(outcome: Outcome, envelope: bytes) -> Outcome:
    entry = outcome.entry
    return Outcome(outcome.index, int(Kind.RELEASED), Entry(entry.id, entry.queue, entry.priority, envelope))


def _count(outcomes: Sequence[Sequence[Outcome]], deaths: Sequence[Death]) -> Settled:
    started = {word for death in deaths for word in death.started}
    flat = [outcome for claim in outcomes for outcome in claim]
    released = [outcome for outcome in flat if outcome.kind == Kind.RELEASED]
    return Settled(
        released=len(released),
        lost=sum(id_word(outcome.entry.id) in started for outcome in released),
        retried=sum(outcome.kind == Kind.RETRY for outcome in flat),
        dead=sum(outcome.kind == Kind.DEAD for outcome in flat),
    )
