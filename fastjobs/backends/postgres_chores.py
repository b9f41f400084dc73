"""Housekeeping of the Postgres backend: pruning push records, and VACUUM while the queue is busy."""

from __future__ import annotations

import asyncio
from typing import Final

from fastjobs import clock
from fastjobs.backends.postgres_hints import Pace
from fastjobs.backends.postgres_schema import statement
from fastjobs.backends.postgres_wire import Connection, Lane

# Dead rows that make a table worth a VACUUM. autovacuum alone comes once a minute at best: 100,000 dead rows at 100 jobs/s, and
# millions at 50,000.
_WORTH_IT: Final = {"ready": 20_000, "later": 20_000, "pushed": 20_000, "claim": 500, "call": 500, "urgent": 500}
_FIRST_REST_S: Final = 5.0
_LAST_REST_S: Final = 300.0
_LIMIT_S: Final = 600.0

_DEAD_ROWS: Final = """
select c.relname, pg_stat_get_dead_tuples(c.oid) from pg_class c
where c.relnamespace = to_regnamespace($1) and c.relkind = 'r'
"""


class Chores:
    """The chores of one backend object. Several processes may do them at once: a table being vacuumed is skipped by others."""

    def __init__(self, lane: Lane) -> None:
        self.lane = lane
        self._pruning = Pace(20, free_s=0.1)
        self._rest_s: dict[str, float] = {}
        self._next: dict[str, float] = {}
        self._lock = asyncio.Lock()

    async def run(self, time_shift_s: float) -> None:
        """Prune, then vacuum what is worth it."""
        async with self._lock:
            before = clock.monotonic()
            if self._pruning.allows(before):
                await self.lane.rows(statement("prune", self.lane.address.quoted_schema), time_shift_s)
                now = clock.monotonic()
                self._pruning.took(now - before, now)
            dead = await self._dead_rows()
            for table, count in dead.items():
                if count >= _WORTH_IT.get(table, count + 1) and clock.monotonic() >= self._next.get(table, 0.0):
                    await self._vacuum(table, count)

    async def _dead_rows(self) -> dict[str, int]:
        rows = await self.lane.rows(_DEAD_ROWS, self.lane.address.quoted_schema)
        return {row[0]: row[1] for row in rows}

    async def _vacuum(self, table: str, count: int) -> None:
        """VACUUM one table. Where a long transaction elsewhere lets it remove little, the next comes later and later."""

        async def work(connection: Connection) -> None:
            # No truncation: it would lock the table against everyone. The name comes from the list above.
            await connection.execute(
                f"vacuum (truncate off, skip_locked on) {self.lane.address.quoted_schema}.{table}", timeout=_LIMIT_S
            )

        before = clock.monotonic()
        await self.lane.run(work)
        now = clock.monotonic()
        useful = (await self._dead_rows()).get(table, 0) < 0.8 * count
        rest_s = _FIRST_REST_S if useful else min(2 * self._rest_s.get(table, _FIRST_REST_S), _LAST_REST_S)
        self._rest_s[table] = rest_s
        self._next[table] = now + max(rest_s, 10 * (now - before))
