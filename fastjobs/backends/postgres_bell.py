"""Wake-ups over LISTEN and NOTIFY: hints that a job may be ready. Nothing relies on them.

A notification is sent after the commit and at most 250 times a second, short bursts aside: inside enqueue transactions it would
serialise their commits (measured: 5,500 transactions/s become 1,900). A small push sends it itself, in a transaction of its own
behind its commit (`ride`), all others come on a connection of the bell's. Its text is a JSON array: true if all hints of where
ready jobs begin are void, then the names of the queues; only [flag] means any queue.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

import msgspec

from fastjobs import clock
from fastjobs.backends.postgres_wire import Address, Connection, Lane
from fastjobs.errors import BackendError, ConfigError

RING_EVERY_S: Final = 0.004
RING_BURST: Final = 25
POLL_FIRST_S: Final = 0.005
POLL_LAST_S: Final = 1.0
_MESSAGE_LIMIT: Final = 7900
"""Bytes; Postgres refuses 8,000."""

# Even a transaction that only notifies writes a commit record: without the first part it would wait for the disk.
_NOTIFY: Final = "select set_config('synchronous_commit', 'off', true), pg_notify($1, $2)"


def message(queues: Iterable[str], *, late: bool = False) -> str:
    """The text of a notification for *queues*; *late*: jobs may lie where hints say there are none."""
    text = msgspec.json.encode([late, *sorted(queues)])
    return (text if len(text) <= _MESSAGE_LIMIT else msgspec.json.encode([late])).decode()


@dataclass(eq=False, slots=True)
class _Waiter:
    queues: tuple[str, ...]
    since: float  #: clock.monotonic
    rung: asyncio.Event = field(default_factory=asyncio.Event)


class Bell:
    """The wake-ups of one backend object.

    A ring that finds no waiter is remembered for its queues until the next exchange that claims of them begins: so none is
    lost between an exchange that found nothing and the wait after it.
    """

    def __init__(
        self,
        address: Address,
        waiting_sql: str,
        hints: Callable[[tuple[str, ...]], list[int] | None],
        on_late: Callable[[], None],
        is_ours: Callable[[int], bool],
    ) -> None:
        self._lane = Lane(address)
        self._waiting_sql = waiting_sql
        self._hints = hints
        self._on_late = on_late
        self._is_ours = is_ours
        self._waiters: set[_Waiter] = set()
        self._rung: set[str] = set()
        self._listening: Connection | None = None
        self._listening_since = 0.0
        self._own_pid = 0
        self._to_ring: set[str] = set()
        self._ringer: asyncio.Task[None] | None = None
        self._ring_due_at = 0.0  #: when the next would come at an even pace; clock.monotonic
        self._poll_s = POLL_FIRST_S

    # -- ringing --------------------------------------------------------------------------------------------------------

    def ring(self, queues: Collection[str]) -> None:
        """Jobs of *queues* may be ready: wake this object's waiters now, all others at once or after at most 4 ms."""
        if not queues:
            return
        self._wake(queues)
        self._to_ring.update(queues)
        if self._ringer is None or self._ringer.done():
            self._ringer = asyncio.create_task(self._ring_on())

    def ride(self, queues: Collection[str]) -> str | None:
        """The text of a notification that the push of jobs for *queues* is to send itself; None: not now, `ring` after it.

        When it has been sent, `rang` is to be called.
        """
        due_at = self._next_ring_at()
        if self._to_ring or not queues or due_at > clock.monotonic():
            return None
        self._ring_due_at = due_at
        return message(queues)

    def rang(self, queues: Collection[str]) -> None:
        """All others were notified of *queues*: wake this object's waiters."""
        self._wake(queues)

    async def _ring_on(self) -> None:
        """Notify at once; every 4 ms when the last 25 came faster than that."""
        while self._to_ring:
            self._ring_due_at = self._next_ring_at()
            if (due_in_s := self._ring_due_at - clock.monotonic()) > 0:
                await asyncio.sleep(due_in_s)
            await self._notify()

    def _next_ring_at(self) -> float:
        return max(self._ring_due_at, clock.monotonic() - RING_BURST * RING_EVERY_S) + RING_EVERY_S

    async def _notify(self) -> None:
        text = message(self._to_ring)
        self._to_ring.clear()
        with contextlib.suppress(BackendError, ConfigError):  # a hint: waiters poll as well
            await self._lane.rows(_NOTIFY, self._lane.address.channel, text)

    def _wake(self, queues: Collection[str] | None) -> None:
        """Wake the waiters for *queues*, or all of them; remember queues that nobody waits for."""
        unheard = set(queues or ())
        for waiter in self._waiters:
            if queues is None or not set(waiter.queues).isdisjoint(queues):
                waiter.rung.set()
                unheard.difference_update(waiter.queues)
        self._rung |= unheard

    def _heard(self, connection: object, pid: int, channel: str, payload: object) -> None:
        """A notification has come in."""
        if pid == self._own_pid or self._is_ours(pid):
            return  # our own, and has woken us already
        try:
            late, *names = msgspec.json.decode(str(payload))
            queues = {str(name) for name in names}
        except (ValueError, TypeError):
            late, queues = True, set()  # not our text: look everywhere
        if late:
            self._on_late()
        self._wake(queues or None)

    # -- waiting --------------------------------------------------------------------------------------------------------

    def forget(self, queues: Collection[str]) -> None:
        """An exchange that looks at *queues* begins: what rang before is its business."""
        self._rung.difference_update(queues)

    def busy(self) -> None:
        """Jobs were found: poll often again."""
        self._poll_s = POLL_FIRST_S

    async def wait(self, queues: Sequence[str], timeout_s: float, time_shift_s: float) -> bool:
        """`Backend.wait`."""
        waiter = _Waiter(tuple(dict.fromkeys(queues)), clock.monotonic())
        self._waiters.add(waiter)
        try:
            async with asyncio.timeout(timeout_s):
                if not self._rung.isdisjoint(waiter.queues):  # it may be another's by now
                    self._rung.difference_update(waiter.queues)
                    if await self._look(waiter, time_shift_s):
                        return True
                if self._lane.address.pgbouncer:
                    return await self._poll(waiter, time_shift_s)
                await self._lane.run(self._listen)
                # What came before we listened was not heard.
                if self._listening_since >= waiter.since and await self._look(waiter, time_shift_s):
                    return True
                await waiter.rung.wait()
                return True
        except TimeoutError:
            return False
        finally:
            self._waiters.discard(waiter)

    async def _listen(self, connection: Connection) -> None:
        """LISTEN, unless this connection does already. After a reconnect all who wait look for themselves."""
        if self._listening is connection:
            return
        connection.add_termination_listener(self._deaf)
        await connection.add_listener(self._lane.address.channel, self._heard)
        again = self._listening_since > 0
        self._on_late()  # who was not heard may have been late
        self._listening, self._listening_since = connection, clock.monotonic()
        self._own_pid = connection.get_server_pid()
        if again:
            self._wake(None)

    def _deaf(self, connection: object) -> None:
        """The listening connection broke: wake all, their next wait connects anew."""
        if self._listening is connection:
            self._listening = None
            self._wake(None)

    async def _look(self, waiter: _Waiter, time_shift_s: float) -> bool:
        row = await self._lane.row(self._waiting_sql, waiter.queues, time_shift_s, self._hints(waiter.queues))
        return bool(row[0])

    async def _poll(self, waiter: _Waiter, time_shift_s: float) -> bool:
        """Where LISTEN hears nothing: look at growing intervals, 5 ms to 1 s, never for more than a tenth of the time."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._poll_s):
                    await waiter.rung.wait()
                    return True
            before = clock.monotonic()
            if await self._look(waiter, time_shift_s):
                self._poll_s = POLL_FIRST_S
                return True
            took_s = clock.monotonic() - before
            self._poll_s = max(min(self._poll_s * 2, POLL_LAST_S), 10 * took_s)

    async def close(self) -> None:
        """Send what is still to be told, and close the connection. Usable again afterwards."""
        ringer, self._ringer = self._ringer, None
        if ringer is not None:
            if self._to_ring:
                await self._notify()
            ringer.cancel()
            await asyncio.wait([ringer])
        listening, self._listening = self._listening, None
        if listening is not None:
            listening.remove_termination_listener(self._deaf)
        self._listening_since = 0.0
        await self._lane.close()
