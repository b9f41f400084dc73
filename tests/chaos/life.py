"""One app's whole life on a store, in a fraction of a second, and its account: every job has run as often as it should.

Producers, a worker, maintenance and a user who looks after dead letters make every call of the protocol. Nobody dies but a
worker that never started anything, so no job may run once more than its handler asks for, whatever the network does.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import TypeVar

from fastjobs import Discard, JobContext, JobQueue, Retry, WorkerOptions
from fastjobs.backends.base import Store
from fastjobs.errors import StoreUnavailable
from fastjobs.maintenance import Maintenance
from fastjobs.slots import Slot, Slots, State, Word, lease_name
from fastjobs.terms import Terms
from fastjobs.worker import Worker
from tests.working import until

T = TypeVar("T")

PLAIN = range(8)

EXPECTED = Counter(
    {f"plain {number}": 1 for number in PLAIN}
    | {"plain later": 1, "plain orphan": 1, "plain alone 1": 1, "plain alone 2": 1, "slow": 1, "again": 2, "fatal": 2}
)
"""How often each job runs. Besides, a user runs one by hand, deletes another fatal one, and purges a queue nobody serves."""


async def repeated(call: Callable[[], Awaitable[T]]) -> T:
    """The reply to *call*, repeated while the store is unavailable: what a user does."""
    while True:
        try:
            return await call()
        except StoreUnavailable:
            await asyncio.sleep(0.01)


class Life:
    """On *store*."""

    def __init__(self, store: Store) -> None:
        self.runs: Counter[str] = Counter()
        self._store = store
        self._jobs = jobs = JobQueue(store, enqueue_timeout=20.0)
        runs = self.runs

        @jobs.job
        async def plain(name: str) -> None:
            runs[f"plain {name}"] += 1

        @jobs.job
        async def slow() -> None:
            runs["slow"] += 1
            await asyncio.sleep(0.05)  # longer than its claim waits for it

        @jobs.job
        async def again(ctx: JobContext) -> None:
            runs["again"] += 1
            if ctx.attempt == 1:
                raise Retry(after=0.01)

        @jobs.job
        async def fatal(name: str) -> None:
            runs[name] += 1
            if runs[name] == 1:
                raise Discard("as it should")

        self._plain, self._slow, self._again, self._fatal = plain, slow, again, fatal

    async def run(self) -> None:
        """From the first connection to the last. AssertionError if a job was lost or ran too often."""
        jobs, lease = self._jobs, lease_name(15.0)
        slots = Slots.create(2, 4)
        self._slot, orphan_slot = slots.slots
        self._slot.words[Word.NUMBER], orphan_slot.words[Word.NUMBER] = 1, 2
        await repeated(jobs.__aenter__)
        try:
            await self._orphan(orphan_slot, lease)
            await self._enqueue()
            jobs.load()
            options = WorkerOptions(concurrency=4, queues=["default"])
            self._worker = worker = Worker(self._store.clone(), jobs, options, lease=lease, slot=self._slot)
            maintenance = Maintenance(
                self._store.clone(),
                lease=lease,
                slots=slots,
                options=options,
                terms=Terms(jobs.registry, {}),
                queues=["default"],
                observe=True,
            )
            stop = asyncio.Event()
            chores = asyncio.create_task(maintenance.run(stop))
            work = asyncio.create_task(worker.run())
            try:
                await self._look_after()
            finally:
                worker.drain()
                await work
                await worker.backend.close()
                self._slot.words[Word.DRAINED] = 1
                self._slot.state = State.DEAD  # as when its process has been reaped
                stop.set()
                await chores
        finally:
            await jobs.close()
            slots.close()
        assert worker.unfinished == 0
        assert self.runs == EXPECTED | {"deleted": 1, "plain single": 1}

    def _in_a_call(self) -> bool:
        return self._slot.words[Word.CALL] != 0

    async def _orphan(self, slot: Slot, lease: str) -> None:
        """A worker that claims a job and is dead before it has started it."""
        await self._plain.enqueue("orphan")
        store, id = self._store, slot.worker_id(lease)
        await repeated(lambda: store.register(id))
        claimed = await repeated(lambda: store.exchange(id, 1, [], ["default"], 10))
        assert len(claimed.jobs) == 1
        slot.words[Word.EXIT_STATUS] = 9
        slot.state = State.DEAD

    async def _enqueue(self) -> None:
        calls = [self._slow.prepare(), *(self._plain.prepare(str(number)) for number in PLAIN), self._again.prepare()]
        assert await self._jobs.enqueue_many([*calls, self._fatal.prepare("fatal"), self._fatal.prepare("deleted")]) == 12
        alone = [self._plain.enqueue(f"alone {number}") for number in (1, 2)]
        await asyncio.gather(*alone, self._plain.options(delay=0.03).enqueue("later"))
        await self._plain.options(queue="nobody's").enqueue("purged")
        await self._plain.options(queue="nobody's", delay="1h").enqueue("purged")

    async def _look_after(self) -> None:
        """What a user does: wait, look at what died, send it back or delete it, purge."""
        jobs = self._jobs
        once = {name: 1 if name == "fatal" else count for name, count in EXPECTED.items()}
        await until(lambda: all(self.runs[name] >= count for name, count in once.items()) and self.runs["deleted"] > 0)
        letters: dict[str, str] = {}
        while len(letters) < 2:  # its last outcome is still to be settled
            letters = {letter.data["name"]: letter.id for letter in await repeated(jobs.dead.list)}
        assert (await repeated(lambda: jobs.dead.get(letters["fatal"]))).reason.endswith("as it should")
        await repeated(lambda: jobs.dead.delete(letters["deleted"]))
        if hasattr(self._store, "claim_when_ready"):  # what is sent back now comes by such a call
            await until(lambda: self._worker._wake_up.is_under_way and not self._worker._claims and self._in_a_call())
        await repeated(lambda: jobs.dead.requeue(letters["fatal"]))
        assert len(await repeated(lambda: self._store.peek("nobody's", 10))) == 1
        assert await repeated(lambda: jobs.purge("nobody's")) <= 2  # a repeat counts what the first call has left
        await until(lambda: self.runs["fatal"] == 2)
        await self._plain.options(queue="single").enqueue("single")
        assert await repeated(lambda: jobs.process_one(["single"])) or self.runs["plain single"]
        while (stats := await repeated(jobs.stats)).running or any(q.ready or q.delayed or q.dead for q in stats.queues):
            await asyncio.sleep(0.001)
