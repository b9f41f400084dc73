"""The Postgres backend: jobs in tables of a schema of their own, moved by stored functions (``sql/``).

Ready jobs stand in a table that is only inserted into and deleted from, with one index. A claim moves a batch of them into
one row that holds the batch as an array; settling deletes that row, in the same call as the next claim. Enqueueing commits
durably; everything else moves what is stored already, so a move lost in a crash of the server only means that jobs run again.

Connections are opened when first needed: one for the calls of workers, two for pushes, and one each for notifications,
leases, admin calls and chores, so that none of them waits behind another's work. Postgres 13 or later.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

import asyncpg

from fastjobs import clock
from fastjobs.backends.base import WaitsThenClaims
from fastjobs.backends.bundles import bundle
from fastjobs.backends.postgres_admin import PostgresAdmin, columns
from fastjobs.backends.postgres_bell import Bell, message
from fastjobs.backends.postgres_chores import Chores
from fastjobs.backends.postgres_hints import Hints, Pace
from fastjobs.backends.postgres_schema import check_server, close_quietly, migrate, prepare, statement
from fastjobs.backends.postgres_wire import Address, Connection, Lane, parse_address
from fastjobs.errors import BackendError, SchemaError, StaleCall, StoreUnavailable, WorkerGone
from fastjobs.model import Adopted, DeadLetter, Entry, Exchanged, Kind, Settlement, Stats

PUSH_LANES: Final = 2
"""Pushes side by side: while one is being flushed to disk the next is being inserted."""

RIDE_JOBS: Final = 16
"""Most jobs of a push that notifies by itself. With more the next push need not wait for that, and nobody for the first job."""

MORE_EVERY_S: Final = 0.25
"""Seconds between two notifications that a claim has left ready jobs behind: a long drain would send hundreds a second."""

SAVE_EVERY_S: Final = 5.0
"""Seconds between two writes of a backend's hints for those that start anew."""

_STALE: Final = 2
_GONE: Final = 3

_HINTED_LISTS: Final = 64


class PostgresBackend(WaitsThenClaims):
    """`Store` on Postgres. The URL's ``schema=`` and ``pgbouncer=1`` are ours, the rest is asyncpg's.

    schema       where the tables live
    pgbouncer    a pooler in transaction mode stands in between: no prepared statements, no LISTEN, no session settings.
                 One that is found while this is off is treated so too, with a warning
    migrate      create the schema, or bring it to this version, when opening; without it `migrate` must be called by somebody
    """

    def __init__(
        self,
        url: str,
        *,
        schema: str = "fastjobs",
        pgbouncer: bool = False,
        connect_timeout_s: float = 5.0,
        call_timeout_s: float = 30.0,
        migrate: bool = True,
    ) -> None:
        self._given = url
        self._address = parse_address(
            url, schema=schema, pgbouncer=pgbouncer, connect_timeout_s=connect_timeout_s, call_timeout_s=call_timeout_s
        )
        self._may_migrate = migrate
        self.url = self._address.url
        self.time_shift_s = 0.0
        self._warnings: list[str] | None = None  # None: not open
        self._opening = asyncio.Lock()
        self._use(self._address)

    def _use(self, address: Address) -> None:
        """Lay out the lanes to *address*; no connection is made yet."""
        self._address = address
        self._work = Lane(address)
        self._pushes = [Lane(address) for _ in range(PUSH_LANES)]
        self._leases = Lane(address)
        self._bell = Bell(address, self._call("waiting", 3), self._known_hints, self._doubt, self._is_served_by)
        self._chores = Chores(Lane(address))
        self._admin = PostgresAdmin(Lane(address), self.open, self._bell.ring)
        self._hints: dict[tuple[str, ...], Hints] = {}
        self._hinted_on = 0  # generation of the work lane's connection
        self._promoting = Pace(20, free_s=0.02)
        self._save_at = 0.0
        self._told_more_at = 0.0
        self._exchange_sql = self._call("exchange", 23)
        self._push_sql = self._call("push", 7)
        self._push_rung_sql = self._call("push_rung", 10).replace("select * from", "call", 1)
        self._push_mixed_sql = self._call("push_mixed", 9)

    def _call(self, function: str, arguments: int) -> str:
        marks = ", ".join(f"${i}" for i in range(1, arguments + 1))
        return f"select * from {self._address.quoted_schema}.{function}({marks})"  # nosec B608  # noqa: S608

    # -- life -----------------------------------------------------------------------------------------------------------

    async def open(self) -> list[str]:
        if self._warnings is None:
            async with self._opening:
                if self._warnings is None:
                    address, warnings = await prepare(self._address, may_migrate=self._may_migrate)
                    if address != self._address:
                        self._use(address)
                    self._warnings = warnings
        return self._warnings

    async def close(self) -> None:
        self._warnings = None
        await self._bell.close()
        for lane in (self._work, *self._pushes, self._leases, self._chores.lane, self._admin.lane):
            await lane.close()

    def clone(self) -> PostgresBackend:
        other = PostgresBackend(
            self._given,
            schema=self._address.schema,
            pgbouncer=self._address.pgbouncer,
            connect_timeout_s=self._address.connect_timeout_s,
            call_timeout_s=self._address.call_timeout_s,
            migrate=self._may_migrate,
        )
        other.time_shift_s = self.time_shift_s
        return other

    async def migrate(self) -> list[str]:
        connection = await self._address.behind_pooler().connect()
        try:
            await check_server(connection, self._address)
            return await migrate(connection, self._address)
        except asyncpg.InsufficientPrivilegeError as error:
            raise SchemaError(f"{self.url}: {error}: run it as a user who may create schema {self._address.schema}") from error
        except (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError) as error:
            raise self._address.error(error, closed=connection.is_closed()) from error
        finally:
            await close_quietly(connection)

    # -- producers ------------------------------------------------------------------------------------------------------

    async def push(self, producer: str, seq: int, acked: int, entries: Sequence[Entry]) -> None:
        if self._warnings is None:
            await self.open()
        if not entries:
            return
        head = (producer, seq, acked, self.time_shift_s)
        bundles, later = bundle(entries)
        if len(bundles) == 1 and not later:
            ready = {bundles[0].queue}
            arguments = (*head, bundles[0].queue, bundles[0].priority, bundles[0].envelopes)
            ring = self._bell.ride(ready) if len(entries) <= RIDE_JOBS else None
            if ring is not None and await self._push_rung(ready, ring, arguments):
                return
            call = self._idlest().row(self._push_sql, *arguments)
        else:
            now = clock.wall() + self.time_shift_s  # the store's clock decides; this is about a hint
            ready = {e.queue for e in entries if (now + e.delay_s if e.run_at is None else e.run_at) <= now}
            call = self._idlest().row(self._push_mixed_sql, *head, *columns(entries))
        try:
            row = await call
        except StoreUnavailable:
            self._bell.ring(ready)  # it may have been done
            raise
        if row[0]:
            self._bell.ring(ready)

    async def _push_rung(self, ready: set[str], ring: str, arguments: tuple[object, ...]) -> bool:
        """A push that sends the notification *ring*. False: it was refused, though perhaps only after the jobs were stored."""
        try:
            row = await self._idlest().row(self._push_rung_sql, *arguments, self._address.channel, ring, None)
        except StoreUnavailable:
            self._bell.ring(ready)  # it may have been done
            raise
        except BackendError:
            return False
        if row[0]:
            self._bell.rang(ready)
        return True

    def _idlest(self) -> Lane:
        return min(self._pushes, key=lambda lane: lane.calls)

    def _is_served_by(self, pid: int) -> bool:
        return any(lane.is_served_by(pid) for lane in self._pushes)

    async def push_in(self, connection: asyncpg.Connection[asyncpg.Record], entries: Sequence[Entry]) -> None:
        """Store *entries* inside the transaction the user has open on *connection*: they are accepted when that commits.

        Not repeatable by itself, as the transaction is not. Workers are told at the commit. The connection's user needs
        the rights to insert into the schema's tables. Raises as other calls do; the transaction is then the user's to end.
        """
        if self._warnings is None:
            await self.open()
        if not entries:
            return
        queues = sorted({entry.queue for entry in entries})
        # By ourselves and before: in the user's transaction a new name would be locked until the commit.
        await self._idlest().row(self._call("name_queues", 1), queues)
        arguments = (self.time_shift_s, *columns(entries), self._address.channel, message(queues, late=True))
        try:
            await connection.fetchrow(self._call("push_in", 8), *arguments)
        except (asyncpg.PostgresError, asyncpg.InternalClientError, OSError) as error:
            raise self._address.error(error, closed=connection.is_closed()) from error
        except asyncpg.InterfaceError as error:
            kind = StoreUnavailable if connection.is_closed() else BackendError
            raise kind(f"{self.url}: {error}") from error

    # -- workers --------------------------------------------------------------------------------------------------------

    async def register(self, worker: str) -> None:
        await self.open()
        row = await self._work.row(self._call("register", 2), worker, worker.rpartition(".")[0])
        if not row[0]:
            _check(_GONE, worker, 0)

    async def exchange(
        self, worker: str, n: int, settlements: Sequence[Settlement], queues: Sequence[str], limit: int
    ) -> Exchanged:
        if self._warnings is None:
            await self.open()
        named = tuple(dict.fromkeys(queues))
        limit = max(limit, 0) if named else 0
        if limit:
            self._bell.forget(named)

        async def work(connection: Connection) -> asyncpg.Record | None:
            hints = self._hints_of(named)
            now = clock.monotonic()
            saving = hints.after is not None and now >= self._save_at
            row = await connection.fetchrow(
                self._exchange_sql,
                *(worker, n, self.time_shift_s, *_settled(settlements)),
                *(named, limit, hints.after, *hints.slice(now), saving, self._promoting.allows(now)),
            )
            if row is not None and row["status"] == 0:
                self._learn(hints, row)
            return row

        row = await self._work.run(work)
        assert row is not None
        _check(row["status"], worker, n)
        jobs = row["jobs"] or []
        more = bool(row["more"])
        if jobs:
            self._bell.busy()
        self._tell(named, settlements, more=more)
        next_due_s = row["next_due_s"]
        return Exchanged(
            _kept(settlements, row["kept"] or []), jobs, more, None if next_due_s is None else max(0.0, next_due_s)
        )

    def _hints_of(self, queues: tuple[str, ...]) -> Hints:
        """The hints for these queues; new ones on a new connection, for then nothing is certain."""
        if self._hinted_on != self._work.generation or len(self._hints) > _HINTED_LISTS:
            self._hinted_on = self._work.generation
            self._hints.clear()
        hints = self._hints.get(queues)
        if hints is None:
            hints = self._hints[queues] = Hints()
        return hints

    def _known_hints(self, queues: tuple[str, ...]) -> list[int] | None:
        hints = self._hints.get(queues)
        return None if hints is None else hints.after

    def _learn(self, hints: Hints, row: asyncpg.Record) -> None:
        """Keep what a reply tells for the next call."""
        now = clock.monotonic()
        if now >= self._save_at:
            self._save_at = now + SAVE_EVERY_S
        if row["slots"]:
            hints.moved(row["slots"], row["seqs"])
        if row["sweep_s"] is not None:
            hints.swept(row["until"], row["window"], row["sweep_s"], now)
        if row["look_s"] is not None:
            self._promoting.took(row["look_s"], now)

    def _doubt(self) -> None:
        """Jobs may lie where hints say there are none."""
        for hints in self._hints.values():
            hints.doubt()

    def _tell(self, queues: tuple[str, ...], settlements: Sequence[Settlement], *, more: bool) -> None:
        """Ring for what this exchange made ready, and for what it left behind."""
        returned = {
            outcome.entry.queue
            for settlement in settlements
            for outcome in settlement.outcomes
            if outcome.kind == Kind.RELEASED or (outcome.kind == Kind.RETRY and _is_now(outcome.entry))
        }
        if returned and not more:
            self._bell.ring(returned)
        if more:
            now = clock.monotonic()
            if returned or now >= self._told_more_at + MORE_EVERY_S:
                self._told_more_at = now
                self._bell.ring(returned.union(queues))

    async def wait(self, queues: Sequence[str], timeout_s: float) -> bool:
        await self.open()
        return await self._bell.wait(queues, timeout_s, self.time_shift_s)

    # -- maintenance ----------------------------------------------------------------------------------------------------

    async def renew(self, lease: str) -> bool:
        await self.open()
        return bool(await self._leases.rows(self._sql("renew"), lease))

    async def leases(self) -> dict[str, int]:
        await self.open()
        return {row["id"]: row["counter"] for row in await self._leases.rows(self._sql("leases"))}

    async def workers(self, lease: str) -> dict[str, list[int]]:
        await self.open()
        return {row["id"]: row["claims"] for row in await self._leases.rows(self._sql("workers"), lease)}

    async def adopt(self, into: str, n: int, worker: str, claims: Sequence[int] | None, limit: int) -> Adopted:
        await self.open()
        chosen = None if claims is None else list(claims)
        row = await self._work.row(self._call("adopt", 5), into, n, worker, chosen, limit)
        _check(row["status"], into, n)
        return Adopted(row["jobs"] or [], bool(row["more"]))

    async def retire(self, worker: str) -> bool:
        await self.open()
        row = await self._work.row(self._call("retire", 1), worker)
        return bool(row[0])

    async def housekeep(self) -> None:
        await self.open()
        await self._chores.run(self.time_shift_s)

    # -- admin ----------------------------------------------------------------------------------------------------------

    async def stats(self) -> Stats:
        return await self._admin.stats()

    async def peek(self, queue: str, limit: int) -> list[bytes]:
        return await self._admin.peek(queue, limit)

    async def dead_list(self, queue: str | None, before: tuple[float, bytes] | None, limit: int) -> list[DeadLetter]:
        return await self._admin.dead_list(queue, before, limit)

    async def dead_get(self, id: bytes) -> DeadLetter | None:
        return await self._admin.dead_get(id)

    async def dead_requeue(self, entries: Sequence[Entry]) -> list[bool]:
        return await self._admin.dead_requeue(entries, self.time_shift_s)

    async def dead_delete(self, ids: Sequence[bytes]) -> list[bool]:
        return await self._admin.dead_delete(ids)

    async def purge(self, queue: str) -> int:
        return await self._admin.purge(queue)

    def _sql(self, name: str) -> str:
        return statement(name, self._address.quoted_schema)


def _check(status: int, worker: str, n: int) -> None:
    """Raise what a gate's status stands for."""
    if status == _GONE:
        raise WorkerGone(f"worker {worker} is unknown to the store, was retired or was given up")
    if status == _STALE:
        raise StaleCall(f"call {n} of worker {worker} was passed by a later one")


def _is_now(entry: Entry) -> bool:
    """Is it ready whatever the store's clock says?"""
    return entry.run_at is None and entry.delay_s <= 0


_NOTHING_SETTLED: Final = (None,) * 12


def _by_claim(settlements: Sequence[Settlement]) -> dict[int, Settlement]:
    """Settlements by claim; of those that name one claim twice only the first counts."""
    first: dict[int, Settlement] = {}
    for settlement in settlements:
        first.setdefault(settlement.claim, settlement)
    return first


def _settled(settlements: Sequence[Settlement]) -> tuple[object, ...]:
    """Settlements as the arrays of settle.sql."""
    if not settlements:
        return _NOTHING_SETTLED
    first = _by_claim(settlements)
    outcomes = [(claim, outcome) for claim, settlement in first.items() for outcome in settlement.outcomes]
    unfinished = [(claim, index, settlement.into) for claim, settlement in first.items() for index in settlement.unfinished]
    outcome_columns: tuple[object, ...] = _NOTHING_SETTLED[:8]
    if outcomes:
        entries = [outcome.entry for _, outcome in outcomes]
        claims, kinds = [claim for claim, _ in outcomes], [int(outcome.kind) for _, outcome in outcomes]
        outcome_columns = (claims, kinds, [entry.id for entry in entries], *columns(entries))
    unfinished_columns: tuple[object, ...] = _NOTHING_SETTLED[:3]
    if unfinished:
        unfinished_columns = tuple(list(column) for column in zip(*unfinished, strict=True))
    return (list(first), *outcome_columns, *unfinished_columns)


def _kept(settlements: Sequence[Settlement], kept: Sequence[bool]) -> list[bool]:
    """The store's answers, one per different claim, as answers to *settlements*.

    To a late duplicate that names other claims than the call of its number did, they are returned as they are.
    """
    claims = _by_claim(settlements)
    if len(claims) != len(kept):
        return list(kept)
    answers = dict(zip(claims, kept, strict=True))
    return [answers.pop(settlement.claim, False) for settlement in settlements]
