"""The protocol between fastjobs and a store: narrow, batches first, every call repeatable, every write fenced.

A backend stores and moves; it decides nothing and never looks inside an envelope.

Words
    *worker*   the id of one worker process, ``<lease>.<number>``, fresh for each process start, never reused
    *lease*    the id of whoever keeps a group of workers alive (a supervisor's maintenance, or an embedded one); a
               counter in the store that is moved on by `renew`. Nothing compares clocks: see `leases`
    *claim*    a batch of jobs leased to a worker; its id is the number of the call that made it
    *n*        number of a call, strictly rising per worker, gaps allowed (split claims take numbers too)

Repeating. The store keeps, per worker and in the same atomic step as the work, the last number with its result. The same
number again changes nothing and returns that result (the jobs of a repeated exchange are those of its claim, in the same
order; none if that claim was adopted meanwhile). A lower number raises `StaleCall`. A worker that was never registered, was
retired or was given up by `adopt` raises `WorkerGone`. So a caller that lost a reply reconnects and repeats the call with the
same arguments.

Errors. `StoreUnavailable` when the connection failed or timed out: the call may have been done, repeat it. `BackendError`
for what the store refuses. A store library's own exceptions never leave a backend. Calls are made by one task at a time per
worker; different workers, pushes and `wait` may run side by side on one backend object. A cancelled call may have been done.

Time. What is due is judged by the store's clock plus `time_shift_s`, which tests move; it is 0 otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from fastjobs.model import Adopted, DeadLetter, Entry, Exchanged, Settlement, Stats


class Backend(Protocol):
    """What producers, workers and maintenance need of a store."""

    url: str  #: as given, with the password masked; for messages
    time_shift_s: float  #: seconds added to the store's clock; for tests

    async def open(self) -> list[str]:
        """Connect and check the store (version, schema, settings). Idempotent.

        Returns warnings for the user: what would be lost, and what to set. Raises StoreUnavailable, SchemaError, BackendError.
        Every other call opens by itself when this was not called.
        """
        ...

    async def close(self) -> None:
        """Close all connections. Idempotent; the object may be used again afterwards."""
        ...

    def clone(self) -> Backend:
        """A second, unopened backend on the same store, for another event loop, thread or process (also after a fork)."""
        ...

    async def push(self, producer: str, seq: int, acked: int, entries: Sequence[Entry]) -> None:
        """Store *entries*; they are accepted when this returns.

        (producer, seq) names this push: the same pair again stores nothing. Pushes of one producer may be in flight side by
        side and arrive in any order. The producer has seen the replies of all its pushes below *acked*, so their records may
        go; a late duplicate below *acked* stores nothing. Records of silent producers go after two hours.
        """
        ...

    async def register(self, worker: str) -> None:
        """Make *worker* known, with no claims and no calls so far. Idempotent.

        Its lease begins to exist with its first worker. Raises WorkerGone for one that was given up and still has claims.
        """
        ...

    async def exchange(
        self, worker: str, n: int, settlements: Sequence[Settlement], queues: Sequence[str], limit: int
    ) -> Exchanged:
        """Settle claims, move what is due to the ready jobs, and claim up to *limit* jobs of *queues* as the claim *n*.

        All in one atomic step.

        The hot path. Order of the claim: by priority over all *queues*, 9 first; released jobs of a priority before its
        others; first in, first out as far as the store can tell (an order of preference, not a promise). With *limit* 0 it
        only settles; with no settlements it only claims.

        Fenced: a settlement of a claim that is not (any more) the worker's changes nothing and its `kept` is False; the
        other settlements and the claim go on. A settlement's `into` is lower than *n* and used once. With *limit* 0 due jobs
        need not be moved, nor `more` and `next_due_s` told. Raises StaleCall, WorkerGone (then nothing was done).
        """
        ...

    async def wait(self, queues: Sequence[str], timeout_s: float) -> bool:
        """Return True when a job of *queues* may be ready, False after *timeout_s* seconds. A hint, never relied upon.

        A push wakes at least one waiter at once. An exchange that leaves ready jobs behind wakes another.
        """
        ...

    async def claim_when_ready(self, worker: str, n: int, queues: Sequence[str], limit: int, timeout_s: float) -> Exchanged:
        """`wait`, whatever it returns, then `exchange` without settlements as the call *n*: what an idle worker asks.

        A store that can do both on its own side spares a job one reply. A later call of the worker may be made meanwhile and
        passes this one, which then raises StaleCall and has claimed nothing. Its repeat is an `exchange` of the same *n*.
        """
        ...

    async def renew(self, lease: str) -> bool:
        """Move the lease's counter on. False if the store knows no such lease: it has no workers, or all were given up.

        A lease whose given-up workers still have claims is no longer renewed, but stands in `leases` until they are adopted.
        """
        ...

    async def leases(self) -> dict[str, int]:
        """Every lease that still has workers, with its counter.

        A lease has ended when an observer has itself seen the counter stand still for one time to live over an unbroken
        connection; the store judges nothing.
        """
        ...

    async def workers(self, lease: str) -> dict[str, list[int]]:
        """The lease's workers, each with the ids of its open claims, ascending."""
        ...

    async def adopt(self, into: str, n: int, worker: str, claims: Sequence[int] | None, limit: int) -> Adopted:
        """Lease the jobs of *worker*'s claims to the worker *into*, under the claim id *n* of *into*, in one atomic step.

        With *claims* None the worker is given up for good: all its later calls raise WorkerGone, and once its last claim is
        adopted nothing of it is left. With a list, only those of its claims that exist are taken and the worker goes on.
        Takes whole claims, oldest first, while their jobs stay within *limit*, and always at least one. Of two adopters one
        gets nothing. An unknown worker has nothing to adopt: ([], False). With a list, `more` is about those claims alone;
        the last claim of a worker that was given up takes its record along, however it is named. *n* counts and repeats as
        in `exchange`.
        Raises StaleCall, WorkerGone (both about *into*).
        """
        ...

    async def retire(self, worker: str) -> bool:
        """Forget a worker that ended cleanly. False, and nothing done, while it has open claims. True if it is unknown."""
        ...

    async def housekeep(self) -> None:
        """The store's own chores: prune push records, vacuum. Every few seconds, by any maintenance; safe when several do."""
        ...


class WaitsThenClaims:
    """`Backend.claim_when_ready` in two calls, for stores that have no better way."""

    async def claim_when_ready(
        self: Backend, worker: str, n: int, queues: Sequence[str], limit: int, timeout_s: float
    ) -> Exchanged:
        """As `Backend.claim_when_ready`."""
        await self.wait(queues, timeout_s)
        return await self.exchange(worker, n, (), queues, limit)


class BackendAdmin(Protocol):
    """What the command line and a user's own tools need of a store. Never on the hot path."""

    async def stats(self) -> Stats:
        """Counts of every queue and of what runs, in one atomic step, due jobs still counted as delayed."""
        ...

    async def peek(self, queue: str, limit: int) -> list[bytes]:
        """Up to *limit* ready envelopes of *queue* in the order of a claim, claimed by nobody."""
        ...

    async def dead_list(self, queue: str | None, before: tuple[float, bytes] | None, limit: int) -> list[DeadLetter]:
        """Up to *limit* dead letters of *queue* (None: of all), newest first, older than *before* = (died_at, id)."""
        ...

    async def dead_get(self, id: bytes) -> DeadLetter | None:
        """One dead letter, or None."""
        ...

    async def dead_requeue(self, entries: Sequence[Entry]) -> list[bool]:
        """Move dead letters back among the jobs, each with its new envelope. Per entry: was it still dead?

        If not, nothing was stored.
        """
        ...

    async def dead_delete(self, ids: Sequence[bytes]) -> list[bool]:
        """Delete dead letters. Per id: was it there?"""
        ...

    async def purge(self, queue: str) -> int:
        """Delete the ready and delayed jobs of *queue*; running ones and dead letters stay. Returns how many jobs went."""
        ...

    async def migrate(self) -> list[str]:
        """Bring the store's schema to this version. Returns the names of the steps done, [] when there was nothing to do."""
        ...


class Store(Backend, BackendAdmin, Protocol):
    """A whole backend: both protocols."""

    def clone(self) -> Store:
        """As `Backend.clone`."""
        ...
