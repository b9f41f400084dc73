"""One worker process's work: claim → run → settle, the next batch claimed while this one runs.

`Runners` holds the hot loop. Here is its counterpart, `Worker._feed`: the one task that calls the store, one call at a time.
What has ended rides on the next claim.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from itertools import repeat
from operator import attrgetter
from typing import Any, Final, NoReturn, Protocol, TypeVar

from fastjobs import clock
from fastjobs.backends.base import Backend
from fastjobs.claims import OpenClaim, Pace, within
from fastjobs.envelope import routed_entry
from fastjobs.errors import BackendError, SchemaError, SerializationError, StaleCall, StoreUnavailable, WorkerGone
from fastjobs.execution import Execution, set_aside
from fastjobs.model import Exchanged, Kind, Outcome, Settlement
from fastjobs.options import QueueOptions, WorkerOptions
from fastjobs.registry import Registry
from fastjobs.runners import Item, Runners, Ticking
from fastjobs.slots import Slot, State, Word
from fastjobs.wakeup import IDLE_WAIT_S, WakeUp

log = logging.getLogger("fastjobs.worker")

T = TypeVar("T")

Lifespan = Callable[[], AbstractAsyncContextManager[Any]]

FLUSH_S: Final = 0.005
"""Ended claims wait at most so long for a claim to ride on."""

CUT_OFF_MARGIN_S: Final = 2.0
"""So long before its lease could be taken, a worker that cannot reach the store starts nothing more."""

SETTLE_BYTES: Final = 16 * 1024 * 1024
"""Envelopes of one call's outcomes, but for those of a single claim, which are bounded as claims are."""

STOP_S: Final = 2.0
"""For runs that were told to stop when the grace time ended."""

COUNTER: Final[dict[int, Word]] = {Kind.RETRY: Word.RETRIED, Kind.DEAD: Word.DIED, Kind.RELEASED: Word.RELEASED}


class App(Protocol):
    """What a worker needs to know of its JobQueue."""

    @property
    def registry(self) -> Registry: ...
    @property
    def queue_options(self) -> Mapping[str, QueueOptions]: ...
    @property
    def lifespan(self) -> Lifespan | None: ...


@contextlib.asynccontextmanager
async def _no_lifespan() -> AsyncIterator[None]:
    yield None


class Worker:
    """Claims and runs jobs until drained.

    *lease* and *slot* name it: its id in the store is `slot.worker_id(lease)`, and whoever keeps the lease reads in the slot
    what it holds. `unfinished` says after `run` how many jobs would not stop; they stay leased, for that keeper to settle.
    *die*, in a process of the worker's own: ends that process, saying why. There nobody cancels `run`, so a cancellation is a
    handler's doing, and giving its job back would have it do so again for ever: as a death it counts a loss.
    """

    def __init__(
        self,
        backend: Backend,
        app: App,
        options: WorkerOptions,
        *,
        lease: str,
        slot: Slot,
        die: Callable[[str], NoReturn] | None = None,
    ) -> None:
        self.backend = backend
        self.options = options
        self.unfinished = 0
        self._die = die
        self._lease = lease
        self._slot = slot
        self._words = slot.words
        self._lifespan: Lifespan = app.lifespan or _no_lifespan
        self._queues: Sequence[str] = tuple(options.queues or app.registry.queues())
        self._execution = Execution(
            app.registry,
            app.queue_options,
            worker=slot.worker_id(lease),
            unknown_is_dead=options.unknown == "dead",
            log_jobs=options.log_jobs,
        )
        self._pace = Pace(2 * options.batch)
        self._changed = asyncio.Event()
        self._wake_up = WakeUp(backend, self._queues, self._changed.set)  # under way: the store had nothing more
        self._runners = Runners(self._execution, slot, self._pace, self._changed.set)
        self._n = 0
        self._claims: dict[int, OpenClaim] = {}
        self._lone = False  # a suspect is in the runners' hands
        self._parked: list[Item] | None = None  # ready jobs held back while the store is out of reach
        self._over_since = 0.0  # clock.monotonic, when the first ended claim began to wait; 0: none waits
        self._registered = True  # under `_id`; `run` sees to the first time
        self._out_of_reach = False  # the store, at the end: nobody can be told any more
        self._due_at = float("inf")  # clock.monotonic, when the next delayed job is due, as far as the store has told
        self._draining = False
        self._finished = False
        self._end_at = float("inf")  # clock.monotonic, when the grace time ends

    async def run(self) -> None:
        """Work until `drain` is called or this task is cancelled; then drain, and raise CancelledError if cancelled.

        A second cancellation ends the grace time. Survives outages of the store. Raises what the lifespan raises, and
        BackendError if the store refuses this worker at the start.
        """
        main = asyncio.current_task()
        assert main is not None
        if self._die is None:
            self._execution.is_cancelled = lambda: main.cancelling() > 0
        ticking = Ticking(self._words)
        try:
            await self._run()
        finally:
            ticking.stop()

    async def _run(self) -> None:
        cancelled: asyncio.CancelledError | None = None
        await self._patiently(self.backend.open, at_start=True)
        await self._patiently(lambda: self.backend.register(self._id), at_start=True)
        try:
            async with self._lifespan() as state:
                self._execution.state = state
                self._runners.start(self.options.concurrency)
                if not self._draining:
                    self._slot.state = State.RUNNING
                feeder = asyncio.create_task(self._feed(), name="fastjobs-feed")
                while not feeder.done():
                    try:
                        await asyncio.wait([feeder])
                    except asyncio.CancelledError as error:
                        self._not_by_a_handler()
                        cancelled = error
                        self.drain()
                await self._runners.close()
                feeder.result()
        finally:
            if not self._claims:
                with contextlib.suppress(BackendError):  # a record left behind is taken by maintenance
                    await self.backend.retire(self._id)
            self._execution.threads.close()
        if cancelled is not None:
            raise cancelled

    def drain(self) -> None:
        """Stop claiming, release what has not started, finish what runs within the grace time.

        A second call ends the grace time. From the worker's own loop only.
        """
        self._end_at = clock.monotonic() + (0.0 if self._draining else self.options.grace_s)
        self._draining = True
        self._slot.state = State.DRAINING
        self._changed.set()

    @property
    def _id(self) -> str:
        return self._slot.worker_id(self._lease)

    # -- feeding ------------------------------------------------------------------------------------------------------

    async def _feed(self) -> None:
        try:
            while not self._finished:
                try:
                    await (self._finish() if self._draining else self._feed_once())
                except (WorkerGone, StaleCall) as error:
                    self._disown(error)
                except asyncio.CancelledError:  # the whole loop is being torn down: nobody will wait for a grace time
                    self._not_by_a_handler()
                    self._draining, self._end_at = True, 0.0
                except BackendError as error:  # the grace time has ended and the store is still away
                    self._out_of_reach = True
                    log.error(
                        "the store cannot be reached at the end; what this worker holds is left to maintenance: %s", error
                    )
        finally:
            await self._wake_up.cancel()

    async def _feed_once(self) -> None:
        """One exchange if there is reason for one, otherwise sleep until there may be."""
        if not self._registered:
            await self._patiently(lambda: self.backend.register(self._id))
            self._registered = True
        self._changed.clear()
        if self._runners.stalled:
            self._release(self._runners.take_back())
        self._care_for_suspects()
        woken = await self._take_what_woke()
        if woken is not None and woken.jobs:
            await asyncio.sleep(0)  # these begin before the store is asked for more
        limit = self._appetite()
        now = clock.monotonic()
        claiming = limit if not self._wake_up.is_under_way or now >= self._due_at else 0
        settlements = self._settlements(now, riding=claiming > 0)
        if claiming and not settlements and woken is not None and not woken.jobs:  # the store has just said that it has nothing
            self._wait_for_store(woken.next_due_s, limit)
            return
        if not claiming and not settlements:
            waits = (self._next_settlement_s(now), self._due_at - now if limit else None)
            await self._sleep(min((wait for wait in waits if wait is not None and wait < IDLE_WAIT_S), default=None))
            return
        answer = await self._exchange(settlements, limit)
        if limit and not answer.jobs and not self._wake_up.is_under_way:
            self._wait_for_store(answer.next_due_s, limit)
        elif 0 < len(answer.jobs) < limit and not self._draining:  # no backlog: let these begin before asking for more
            await asyncio.sleep(0)

    def _appetite(self) -> int:
        """How many jobs to claim now."""
        if self._draining or self._runners.suspects or self._lone:
            return 0
        self._runners.sample_pace()
        held = len(self._runners.ready)
        target = self._pace.target(self.options.concurrency - self._runners.busy)
        self._runners.low = target // 2
        if held > target // 2:
            return 0
        return max(min(self.options.batch, target - held, self._allowance()), 0)

    def _allowance(self) -> int:
        """How many more jobs this worker may take before its supervisor replaces it."""
        if self.options.max_jobs is None or self._die is None:
            return self.options.batch
        return self.options.max_jobs - self._words[Word.CLAIMED] + self._words[Word.RELEASED]

    def _wait_for_store(self, next_due_s: float | None, limit: int) -> None:
        # Not while jobs run: a handler that holds the loop would keep what came meanwhile from other workers.
        if self._runners.busy:
            self._wake_up.start(next_due_s, self._id)
        else:
            n = self._next_n()
            self._publish(n)
            self._wake_up.start(next_due_s, self._id, n, limit)

    async def _take_what_woke(self) -> Exchanged | None:
        """If the wait has ended with a claim: take in its jobs. Returns the store's answer."""
        woken = self._wake_up.take()
        if woken is None:
            return None
        if woken.answer is None:
            if woken.lost and woken.n == self._n and not self._draining:  # no later call has passed it: its repeat can tell
                return await self._exchange([], self._appetite(), woken.n)
            return None
        self._note_due(woken.answer)
        if woken.answer.jobs:
            self._take_in(woken.n, woken.answer.jobs)
        self._publish(0)
        return woken.answer

    def _note_due(self, answer: Exchanged) -> None:
        next_due_s = answer.next_due_s
        self._due_at = float("inf") if next_due_s is None else clock.monotonic() + max(next_due_s, 0.001)

    async def _sleep(self, timeout_s: float | None) -> None:
        """Until something changes, at most *timeout_s* seconds."""
        timer = None if timeout_s is None else asyncio.get_running_loop().call_later(timeout_s, self._changed.set)
        try:
            await self._changed.wait()
        finally:
            if timer is not None:
                timer.cancel()

    # -- settling -----------------------------------------------------------------------------------------------------

    def _settlements(self, now: float, *, riding: bool) -> list[Settlement]:
        """What to tell the store now: ended claims, and those whose ended jobs have waited long enough for the rest."""
        runners = self._runners
        if runners.over and not self._over_since:
            self._over_since = now
        settlements: list[Settlement] = []
        if runners.over and (riding or now - self._over_since >= FLUSH_S or not runners.busy):
            runners.over.sort(key=attrgetter("id"))  # what is released stands in its old order
            over, runners.over = within(runners.over, SETTLE_BYTES)
            self._over_since = now if runners.over else 0.0
            settlements = [claim.settlement() for claim in over if not claim.lost]
            if runners.over:  # the rest with the next call, and with it what is to be split
                self._changed.set()
                return settlements
        for claim in list(self._claims.values()):
            if claim.left and (due := claim.due_in_s(now)) is not None and due <= 0:
                settlements.append(self._split(claim))
        return settlements

    def _next_settlement_s(self, now: float) -> float | None:
        """Seconds until `_settlements` will have something, if nothing else happens."""
        waits = [due for claim in self._claims.values() if claim.left and (due := claim.due_in_s(now)) is not None]
        if self._runners.over:
            waits.append(self._over_since + FLUSH_S - now)
        return max(min(waits), 0.001) if waits else None

    def _split(self, claim: OpenClaim) -> Settlement:
        """Settle what has ended of *claim*; its other jobs stand in a new claim from here on, also in the slot."""
        unfinished = claim.unfinished()
        new = OpenClaim(self._next_n(), len(unfinished))
        settlement = claim.settlement(new.id)
        self._runners.move(claim, new, unfinished)
        self._claims[new.id] = new
        return settlement

    def _next_n(self) -> int:
        self._n += 1
        return self._n

    async def _exchange(self, settlements: list[Settlement], limit: int, repeated: int = 0) -> Exchanged:
        """One call: settle, claim, take in what came. Its number and claims stand in the slot before it is sent."""
        n = repeated or self._next_n()
        self._publish(n)
        answer = await self._patiently(lambda: self.backend.exchange(self._id, n, settlements, self._queues, limit))
        for settlement, kept in zip(settlements, answer.kept, strict=True):
            claim = self._claims.pop(settlement.claim, None)
            if not kept:
                self._lose(settlement)
            elif claim is not None:
                self._count(claim, settlement)
        if limit:
            self._note_due(answer)
        if answer.jobs:
            self._take_in(n, answer.jobs)
        self._publish(0)
        return answer

    def _publish(self, call: int) -> None:
        # What a wait may claim is ours too, though a later call should keep us from looking at its answer.
        held = [*self._claims, self._wake_up.n] if self._wake_up.n else list(self._claims)
        self._slot.publish_claims(held)
        self._words[Word.CALL] = call
        self._words[Word.ENDED] = any(claim.ended_since or not claim.left for claim in self._claims.values())

    def _count(self, claim: OpenClaim, settlement: Settlement) -> None:
        """What was settled, and only that: what a worker that dies had ended but not settled is run, and counted, by others."""
        words = self._words
        words[Word.DONE] += len(claim.ended) - len(settlement.outcomes) - len(settlement.unfinished)
        for outcome in settlement.outcomes:
            words[COUNTER[outcome.kind]] += 1

    def _lose(self, settlement: Settlement) -> None:
        """The claim was not ours any more: others run its jobs."""
        log.warning("claim %d was taken over by others before it was settled; its jobs may have run twice", settlement.claim)
        if settlement.into:
            self._forget(self._claims.pop(settlement.into))

    def _forget(self, claim: OpenClaim) -> None:
        """Whatever comes of the jobs of *claim* here does not count; those not started will not be."""
        claim.lost = True
        runners = self._runners
        kept = [item for item in runners.take_back() if item[1] is not claim]
        runners.suspects[:] = [item for item in runners.suspects if item[1] is not claim]
        if kept:
            runners.add(kept)

    # -- taking jobs in -----------------------------------------------------------------------------------------------

    def _take_in(self, n: int, envelopes: list[bytes]) -> None:
        claim = self._claims[n] = OpenClaim(n, len(envelopes))
        self._words[Word.CLAIMED] += len(envelopes)
        self._runners.add(list(zip(envelopes, repeat(claim), range(len(envelopes)), strict=False)))

    def _release(self, items: list[Item]) -> None:
        """Jobs that have not started go back to the head of their queue, byte for byte."""
        for envelope, claim, index in items:
            try:
                outcome = Outcome(index, int(Kind.RELEASED), routed_entry(envelope))
            except SerializationError as error:
                outcome = set_aside(index, envelope, error, self._id)
            claim.end(index, outcome)
            if not claim.left and not claim.lost:
                self._runners.over.append(claim)
            elif not claim.ended_since:
                claim.ended_since = clock.monotonic()

    def _care_for_suspects(self) -> None:
        """A job that workers died of runs with nothing beside it: the other ready jobs go back, what runs ends first."""
        runners = self._runners
        if self._lone and not runners.busy and not runners.ready:
            self._lone = runners.alone = False
        if not runners.suspects or self._lone:
            return
        self._release(runners.take_back())
        self._release(runners.suspects[1:])
        del runners.suspects[1:]
        if not runners.busy:
            self._lone = True
            runners.run_alone(runners.suspects.pop())

    # -- trouble ------------------------------------------------------------------------------------------------------

    async def _patiently(self, call: Callable[[], Awaitable[T]], *, at_start: bool = False) -> T:
        """Make *call* until the store answers, waiting longer each time, up to 2 s. Never spins.

        Gives up only when a drain's grace time has ended: then raises the BackendError. A cancellation ends the grace time,
        and the call is made once more: only its answer tells what we hold.
        """
        failing_since = pause_s = 0.0
        delay_s = 0.05
        while True:
            try:
                if pause_s:
                    await asyncio.sleep(pause_s)
                answer = await call()
                break
            except (WorkerGone, StaleCall):
                raise
            except asyncio.CancelledError:
                self._not_by_a_handler()
                if at_start or self._end_at == 0.0:
                    raise
                self._draining, self._end_at, pause_s = True, 0.0, 0.0
            except BackendError as error:
                if at_start and (self._draining or isinstance(error, SchemaError) or not isinstance(error, StoreUnavailable)):
                    raise
                now = clock.monotonic()
                if self._draining and now >= self._end_at:
                    raise
                if not failing_since:
                    failing_since = now
                    log.warning("the store does not answer, trying again until it does: %s", error)
                if now - failing_since > self.options.lease_ttl_s - CUT_OFF_MARGIN_S and self._parked is None:
                    self._parked = self._runners.take_back()
                pause_s = delay_s * (0.5 + random.random())  # nosec B311  # noqa: S311 - spreads reconnects
                delay_s = min(2 * delay_s, 2.0)
        if failing_since:
            log.warning("the store answers again after %.1f s", clock.monotonic() - failing_since)
        if self._parked is not None:
            parked, self._parked = self._parked, None
            self._runners.add(parked)
        return answer

    def _not_by_a_handler(self) -> None:
        """One of the worker's own tasks was cancelled."""
        if self._die is not None:
            self._die("a handler cancelled the tasks of its worker")

    def _disown(self, error: BackendError) -> None:
        """The store does not know this worker (any more): all it held belongs to others. It will register under a new id."""
        held = sum(len(claim.ended) for claim in self._claims.values())
        ended = held - sum(claim.left for claim in self._claims.values())
        log.error("%s; %d jobs it held may run elsewhere (%d of them had ended here); starting over", error, held, ended)
        for claim in self._claims.values():
            claim.lost = True
        self._claims.clear()
        self._runners.suspects.clear()
        self._parked = None
        self._runners.take_back()
        self._runners.over.clear()
        self._words[Word.INCARNATION] += 1
        self._publish(0)
        self._execution.worker = self._id
        self._registered = False

    # -- the end ------------------------------------------------------------------------------------------------------

    async def _finish(self) -> None:
        """Release what has not started, let what runs finish, stop what does not, tell the store."""
        self._slot.state = State.DRAINING
        runners = self._runners
        stopping = False
        while True:
            self._changed.clear()
            await self._take_what_woke()
            self._release(runners.take_back())
            self._release(runners.suspects)
            runners.suspects.clear()
            now = clock.monotonic()
            if not self._out_of_reach and (settlements := self._settlements(now, riding=True)):
                await self._exchange(settlements, 0)
                continue
            if not runners.busy or (stopping and now >= self._end_at + STOP_S):
                break
            if now >= self._end_at and not stopping:
                stopping = True
                self._end_at = now
                runners.stop_runs("drain")
            waits = [self._end_at + (STOP_S if stopping else 0.0) - now]
            if not self._out_of_reach and (due := self._next_settlement_s(now)) is not None:
                waits.append(due)
            await self._sleep(max(min(waits), 0.001))
        settlements = [self._split(claim) for claim in list(self._claims.values()) if claim.left and claim.ended_since]
        if settlements and not self._out_of_reach:
            await self._exchange(settlements, 0)
        self.unfinished = sum(claim.left for claim in self._claims.values())
        self._finished = True
