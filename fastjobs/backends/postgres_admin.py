"""What the command line and tools ask of the Postgres backend: counts, dead letters, purge."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Final

from fastjobs.backends.postgres_schema import statement
from fastjobs.backends.postgres_wire import Lane
from fastjobs.model import DeadLetter, Entry, QueueStats, Stats

PURGE_ROWS: Final = 50_000
"""Rows deleted at a time: some 100 ms of locks."""


def columns(entries: Sequence[Entry]) -> tuple[list[str], list[int], list[float | None], list[float], list[bytes]]:
    """Entries as the arrays place.sql takes: queues, priorities, run_at, delay_s, envelopes."""
    return (
        [entry.queue for entry in entries],
        [entry.priority for entry in entries],
        [entry.run_at for entry in entries],
        [entry.delay_s for entry in entries],
        [entry.envelope for entry in entries],
    )


class PostgresAdmin:
    """`BackendAdmin` but for `migrate`, on a connection of its own: a long count holds up no worker."""

    def __init__(self, lane: Lane, ready: Callable[[], Awaitable[object]], ring: Callable[[Collection[str]], None]) -> None:
        self.lane = lane
        self._ready = ready  # opens the backend if need be
        self._ring = ring

    def _sql(self, name: str) -> str:
        return statement(name, self.lane.address.quoted_schema)

    async def stats(self) -> Stats:
        await self._ready()
        queues, ready, delayed, dead, running = await self.lane.row(self._sql("stats"))
        return Stats([QueueStats(*counts) for counts in zip(queues, ready, delayed, dead, strict=True)], running)

    async def peek(self, queue: str, limit: int) -> list[bytes]:
        await self._ready()
        return [row[0] for row in await self.lane.rows(self._sql("peek"), queue, limit)]

    async def dead_list(self, queue: str | None, before: tuple[float, bytes] | None, limit: int) -> list[DeadLetter]:
        await self._ready()
        died_at, id = (float("inf"), b"") if before is None else before
        if queue is None:
            rows = await self.lane.rows(self._sql("dead_list"), died_at, id, limit)
        else:
            rows = await self.lane.rows(self._sql("dead_list_queue"), died_at, id, limit, queue)
        return [DeadLetter(*row) for row in rows]

    async def dead_get(self, id: bytes) -> DeadLetter | None:
        await self._ready()
        rows = await self.lane.rows(self._sql("dead_get"), id)
        return DeadLetter(*rows[0]) if rows else None

    async def dead_requeue(self, entries: Sequence[Entry], time_shift_s: float) -> list[bool]:
        await self._ready()
        first = {entry.id: entry for entry in reversed(entries)}
        chosen = list(first.values())
        row = await self.lane.row(
            f"select {self.lane.address.quoted_schema}.dead_requeue($1, $2, $3, $4, $5, $6, $7)",
            time_shift_s,
            [entry.id for entry in chosen],
            *columns(chosen),
        )
        moved = set(row[0])
        self._ring({entry.queue for entry in chosen if entry.id in moved})
        return [entry.id in moved and first[entry.id] is entry for entry in entries]

    async def dead_delete(self, ids: Sequence[bytes]) -> list[bool]:
        await self._ready()
        gone = {row[0] for row in await self.lane.rows(self._sql("dead_delete"), list(ids))}
        there = []
        for id in ids:
            there.append(id in gone)
            gone.discard(id)  # the same id again was not there any more
        return there

    async def purge(self, queue: str) -> int:
        await self._ready()
        sql = f"select {self.lane.address.quoted_schema}.purge($1, $2)"
        purged = 0
        while gone := (await self.lane.row(sql, queue, PURGE_ROWS))[0]:
            purged += gone
        return purged
