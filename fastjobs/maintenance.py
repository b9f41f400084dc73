"""The chores of a fleet: keep the lease, rescue the jobs of the dead, prune, count.

An asyncio service of a few tasks on three connections: renewal must not wait for a rescue, nor either of them for a slow
count. Under the supervisor it is a process of its own, embedded a thread of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import threading
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Self

from fastjobs import clock
from fastjobs.backends.base import Store
from fastjobs.errors import BackendError, StoreUnavailable
from fastjobs.options import WorkerOptions
from fastjobs.patience import Backoff, Outage
from fastjobs.rescue import Rescue
from fastjobs.slots import Head, Slots, State, Word
from fastjobs.terms import Terms

log = logging.getLogger("fastjobs.maintenance")

RENEW_S: Final = 5.0
"""Longest time between two renewals, however long the lease is."""

HOUSEKEEP_S: Final = 5.0
COUNT_S: Final = 1.0
REST: Final = 20
"""A count of millions of jobs takes Postgres seconds: after one the store has so many times its length for its work."""
LONGEST_REST_S: Final = 30.0

BURST_S: Final = 0.1
ALIVE_S: Final = 0.25

FINAL_S: Final = 5.0
"""At the end, for giving back what the workers left; with the store away it stays for whoever sees the lease end."""


class Maintenance:
    """Keeps *lease* alive and looks after the workers in *slots*, and after everybody's jobs whose lease has ended.

    *terms*: the app's, for jobs that outlived their time limit. *queues*: those that our workers serve, for the counts.
    *observe*: write counts into the head once a second, less often where counting takes long. *burst*: also say in the head
    when nothing is ready in *queues* and nothing is in flight anywhere in the store.
    """

    def __init__(
        self,
        backend: Store,
        *,
        lease: str,
        slots: Slots,
        options: WorkerOptions,
        terms: Terms,
        queues: Sequence[str] = (),
        observe: bool = False,
        burst: bool = False,
    ) -> None:
        self.lease = lease
        self.slots = slots
        self._backend = backend
        self._ttl_s = options.lease_ttl_s
        self._queues = frozenset(queues)
        self._observing = observe or burst
        self._burst = burst
        self._head = slots.head
        self._outage = Outage(self._head)
        self._rescue = Rescue(backend, lease, slots, self._ttl_s, terms=terms, outage=self._outage)
        self._woken = asyncio.Event()
        self._stopping = False
        self._counted_at = float("-inf")  # clock.monotonic
        self._counting_s = 0.0

    def wake(self) -> None:
        """A slot became DEAD. From the service's own loop."""
        self._woken.set()

    async def run(self, stop: asyncio.Event) -> None:
        """Do the chores until *stop* is set; then give back what dead workers left, for at most `FINAL_S`, and end.

        Survives outages of the store. What it raises is a bug.
        """
        renewing, counting = self._backend.clone(), self._backend.clone()
        rescue = asyncio.create_task(self._rescue_loop(), name="fastjobs-rescue")
        tasks: list[asyncio.Task[None]] = [
            rescue,
            asyncio.create_task(self._alive()),
            asyncio.create_task(self._repeat("renewal", min(self._ttl_s / 3, RENEW_S), lambda: self._renew(renewing))),
            asyncio.create_task(self._repeat("chores", HOUSEKEEP_S, counting.housekeep)),
        ]
        if self._observing:
            every_s = BURST_S if self._burst else COUNT_S
            tasks.append(asyncio.create_task(self._repeat("count", every_s, lambda: self._count(counting))))
        stopped = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait({stopped, *tasks}, return_when=asyncio.FIRST_COMPLETED)
            _raise_first(tasks)
            self._stopping = True
            self.wake()
            await asyncio.wait([rescue], timeout=FINAL_S)
            _raise_first(tasks)
            await self._count_at_the_end(counting)
        finally:
            for task in (stopped, *tasks):
                task.cancel()
            await asyncio.wait({stopped, *tasks})
            for backend in (self._backend, renewing, counting):
                await backend.close()

    async def _repeat(self, name: str, every_s: float, step: Callable[[], Awaitable[None]]) -> None:
        """Do *step* about every *every_s* seconds, with growing pauses while it fails."""
        backoff = Backoff()
        while True:
            try:
                await step()
            except BackendError as error:
                self._outage.failed(name, error)
                await asyncio.sleep(backoff.next_s())
                continue
            self._outage.answered(name)
            backoff.reset()
            await asyncio.sleep(every_s * (0.8 + 0.2 * random.random()))  # nosec B311  # noqa: S311 - fleets must not run in step

    async def _alive(self) -> None:
        """Show the supervisor that this loop turns."""
        while True:
            self._head[Head.ALIVE_NS] = int(clock.monotonic() * 1e9)
            await asyncio.sleep(ALIVE_S)

    async def _renew(self, backend: Store) -> None:
        """Move the lease on. A store that has forgotten it tells the workers so, and they register anew."""
        try:
            async with asyncio.timeout(max(self._ttl_s / 3, 1.0)):  # a connection that swallows everything
                known = await backend.renew(self.lease)
        except TimeoutError:
            raise StoreUnavailable(f"a renewal took longer than a third of the lease, {self._ttl_s / 3:g} s") from None
        if known:
            self._head[Head.BEAT_NS] = int(clock.monotonic() * 1e9)

    async def _rescue_loop(self) -> None:
        """Ends only when stopping, once nothing dead is left."""
        backoff = Backoff()
        started = False
        while True:
            self._woken.clear()
            stopping = self._stopping
            try:
                if not started:
                    await self._rescue.start()
                    started = True
                await self._rescue.bury_the_dead()
                if stopping:
                    await self._rescue.retire()
                    return
                await self._rescue.look()
            except BackendError as error:
                self._rescue.interrupted(error)
                await asyncio.sleep(backoff.next_s())
                continue
            self._outage.answered("rescue")
            backoff.reset()
            await self._pause(self._rescue.due_in_s())

    async def _pause(self, timeout_s: float) -> None:
        timer = asyncio.get_running_loop().call_later(timeout_s, self._woken.set)
        try:
            await self._woken.wait()
        finally:
            timer.cancel()

    async def _count(self, backend: Store) -> None:
        """Write the store's counts into the head; for a burst, whether it is over."""
        now = clock.monotonic()
        since_s = now - self._counted_at
        rest_s = self._counting_s if self._is_idle() else max(0.8 * COUNT_S, min(REST * self._counting_s, LONGEST_REST_S))
        if since_s < self._counting_s + rest_s:
            return
        self._counted_at = float("-inf")  # a failed look is none
        stats = await backend.stats()
        self._counted_at, self._counting_s = now, clock.monotonic() - now
        ours = [queue for queue in stats.queues if queue.queue in self._queues]
        others = [queue for queue in stats.queues if queue.queue not in self._queues]
        self._head[Head.ELSEWHERE] = sum(queue.ready + queue.delayed for queue in others) + 1
        ready = sum(queue.ready for queue in ours)
        self._head[Head.READY] = ready + 1
        self._head[Head.DELAYED_LEFT] = sum(queue.delayed for queue in ours) + 1
        if self._burst and not ready and not stats.running:
            self._head[Head.BURST_DONE] = 1

    async def _count_at_the_end(self, backend: Store) -> None:
        """The workers have gone: what is left now is what the supervisor's last words are about."""
        if self._observing:
            self._counted_at = float("-inf")
            with contextlib.suppress(BackendError, TimeoutError):  # then its last words are a second old
                async with asyncio.timeout(COUNT_S):
                    await self._count(backend)

    def _is_idle(self) -> bool:
        """Whether the slots say that nothing is held: only then a burst can be over."""
        return not any(slot.words[Word.OPEN] or slot.words[Word.CALL] for slot in self.slots if slot.state is not State.FREE)


def _raise_first(tasks: Sequence[asyncio.Task[None]]) -> None:
    for task in tasks:
        if task.done():
            task.result()


class EmbeddedMaintenance:
    """``async with``: maintenance in a thread of its own, with its own loop and connections, for a worker in this process.

    So a handler that blocks the worker's loop does not cost it its lease. At the end what the worker left behind is given
    back; as long as a job of it still runs here (a thread that would not stop), the thread stays and keeps the lease, until
    that job or the process ends.
    """

    def __init__(self, backend: Store, *, lease: str, slots: Slots, options: WorkerOptions, terms: Terms) -> None:
        self._backend = backend
        self._lease = lease
        self._slots = slots
        self._options = options
        self._terms = terms
        self._loop = asyncio.new_event_loop()
        self._leaving = asyncio.Event()  # the worker has ended
        self._thread = threading.Thread(target=self._main, name="fastjobs-maintenance", daemon=True)
        self._ended = threading.Event()
        self._waiting: tuple[asyncio.AbstractEventLoop, asyncio.Event] | None = None

    async def __aenter__(self) -> Self:
        self._thread.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        ended = asyncio.Event()
        self._waiting = asyncio.get_running_loop(), ended
        self._loop.call_soon_threadsafe(self._leaving.set)
        if not self._runs_a_job():
            await ended.wait()

    def _runs_a_job(self) -> bool:
        return any(slot.started() for slot in self._slots)

    def _main(self) -> None:
        try:
            asyncio.set_event_loop(self._loop)
            self._loop.run_until_complete(self._run())
        finally:
            self._loop.close()
            if self._waiting is not None:
                loop, ended = self._waiting
                with contextlib.suppress(RuntimeError):  # its loop was closed long ago: it did not wait for us
                    loop.call_soon_threadsafe(ended.set)

    async def _run(self) -> None:
        stop = asyncio.Event()
        end = asyncio.create_task(self._end(stop))
        while not stop.is_set():
            maintenance = Maintenance(
                self._backend, lease=self._lease, slots=self._slots, options=self._options, terms=self._terms
            )
            try:
                await maintenance.run(stop)
            except Exception:
                log.exception("maintenance failed; starting it again")
                await asyncio.sleep(1.0)
        await end

    async def _end(self, stop: asyncio.Event) -> None:
        """Once the worker has ended and no job of it runs any more, declare its slot dead: its claims are given back."""
        await self._leaving.wait()
        while self._runs_a_job():  # noqa: ASYNC110 - the end of another thread's handler, seen in the slot only
            await asyncio.sleep(0.1)
        for slot in self._slots:
            if slot.state is not State.FREE:
                slot.words[Word.DRAINED] = 1
                slot.state = State.DEAD
        stop.set()
