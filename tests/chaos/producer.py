"""``python -m tests.chaos.producer FIRST SEED ONLY``: enqueue jobs numbered from FIRST on, as many as stdin allows.

Of the kinds that do harm it takes those with ONLY in their words. Each line of stdin is a number: how many may have been
offered in all. At its end what is under way is finished. Every offer and what came of it is written in the ledger.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
import time

from fastjobs.calls import Call
from fastjobs.errors import BackendError, EnqueueManyError, EnqueueUncertain
from tests.chaos.app import HANDLERS, LEDGER, jobs
from tests.chaos.kinds import FATES, Kind
from tests.chaos.ledger import Event, Ledger

BULK = (500, 4_000)
SINGLES = (1, 40)
LATER = 0.005
"""Share of plain jobs that are delayed."""


class Producer:
    """Numbers, chances, and the ledger."""

    def __init__(self, first: int, seed: int, only: str) -> None:
        self.next = first
        self.limit = first
        self.over = False
        self.allowed = asyncio.Event()
        self._random = random.Random(seed)
        self._ledger = Ledger(os.environ[LEDGER], "p-0")
        self._rates = {kind: fate.rate_s for kind, fate in FATES.items() if fate.rate_s and only in fate.words}
        self._due = {kind: time.monotonic() + self._random.expovariate(rate_s) for kind, rate_s in self._rates.items()}

    async def bulk(self) -> None:
        """Many at a time."""
        while (count := await self._may(self._random.randint(*BULK))) is not None:
            first, calls = self._offer(count)
            try:
                accepted, unsure = await jobs.enqueue_many(calls), 0
            except EnqueueManyError as error:
                accepted, unsure = error.accepted, error.uncertain
                print(f"producer: {error}", file=sys.stderr, flush=True)
            self._ledger.write_range(Event.ACCEPTED, first, accepted)
            self._ledger.write_range(Event.UNSURE, first + accepted, unsure)
            self._ledger.write_range(Event.REFUSED, first + accepted + unsure, count - accepted - unsure)

    async def singles(self) -> None:
        """One by one, some at once."""
        while (count := await self._may(self._random.randint(*SINGLES))) is not None:
            first, calls = self._offer(count)
            await asyncio.gather(*(self._single(first + at, call) for at, call in enumerate(calls)))
            await asyncio.sleep(0.01)  # a load beside the bulk, not a race with it

    async def _single(self, n: int, call: Call) -> None:
        try:
            await jobs.enqueue(call)
        except EnqueueUncertain:
            self._ledger.write_range(Event.UNSURE, n, 1)
        except BackendError as error:
            print(f"producer: {error}", file=sys.stderr, flush=True)
            self._ledger.write_range(Event.REFUSED, n, 1)
        else:
            self._ledger.write_range(Event.ACCEPTED, n, 1)

    async def _may(self, count: int) -> int | None:
        """How many of *count* may be offered now, at least 1; None at the end."""
        while self.limit <= self.next and not self.over:
            self.allowed.clear()
            await self.allowed.wait()
        return None if self.over else min(count, self.limit - self.next)

    def _offer(self, count: int) -> tuple[int, list[Call]]:
        first, self.next = self.next, self.next + count
        kinds = [self._kind() for _ in range(count)]
        self._ledger.write_range(Event.OFFERED, first, count)
        for n, kind in enumerate(kinds, first):
            if kind is not Kind.PLAIN:
                self._ledger.write(Event.KIND, n, kind)
        return first, [self._call(n, kind) for n, kind in enumerate(kinds, first)]

    def _kind(self) -> Kind:
        chance = self._random.random()
        for kind in (Kind.NAP, Kind.THREAD, Kind.RETRY):
            if chance < FATES[kind].share:
                return kind
            chance -= FATES[kind].share
        if chance > 0.9:  # not for every job: there are thousands
            now = time.monotonic()
            for kind, due in self._due.items():
                if now >= due:
                    self._due[kind] = now + self._random.expovariate(self._rates[kind])
                    return kind
        return Kind.PLAIN

    def _call(self, n: int, kind: Kind) -> Call:
        if kind is Kind.PLAIN and self._random.random() < LATER:
            return HANDLERS[kind].options(delay=self._random.uniform(0.05, 2.0)).prepare(n)
        return HANDLERS[kind].prepare(n)


async def main() -> None:
    producer = Producer(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
    loop = asyncio.get_running_loop()
    text = b""

    def allow() -> None:
        nonlocal text
        data = os.read(0, 65_536)
        *lines, text = (text + data).split(b"\n")
        if lines:
            producer.limit = int(lines[-1])
        if not data:
            producer.over = True
            loop.remove_reader(0)
        producer.allowed.set()

    os.set_blocking(0, False)
    loop.add_reader(0, allow)
    async with jobs:
        await asyncio.gather(producer.bulk(), producer.singles())


if __name__ == "__main__":
    asyncio.run(main())
