"""Exact accounts under kills and signals, with real processes on every store: none lost, repeats only where a worker died."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections import defaultdict
from collections.abc import Collection
from pathlib import Path
from typing import Any

import psutil
import pytest

from fastjobs import clock
from tests.processes import ledger
from tests.processes import stores as look
from tests.processes.driver import SOON_S, Supervised
from tests.processes.ledger import entry
from tests.stores import KINDS, PARTITIONED

SPEC = "tests.processes.ledger:jobs"
KILLS = 8


@pytest.fixture(params=[*KINDS, PARTITIONED])
def store_kind(request: pytest.FixtureRequest) -> str:
    """Every kind, and several stores as one."""
    return str(request.param)


class Fates:
    """One run: the supervisor of the moment, the ledger, and the workers that were killed."""

    def __init__(self, url: str, path: Path, seed: int = 0) -> None:
        self.url = url
        self.path = str(path)
        self.random = random.Random(seed)
        self.accepted = 0
        self.killed: set[int] = set()

    def enqueue(self, count: int, seconds: float = 0.05) -> None:
        """Store *count* more jobs of so many *seconds*; what is accepted is to be found at the end."""

        async def produce() -> int:
            numbers = range(self.accepted, self.accepted + count)
            with ledger.jobs.override(self.url):
                async with ledger.jobs:
                    return await ledger.jobs.enqueue_many(entry.prepare(n, self.path, seconds) for n in numbers)

        self.accepted += asyncio.run(produce())

    def supervise(self, spec: str = SPEC, **options: Any) -> Supervised:
        worker = {"concurrency": 20, **options.pop("worker", {})}
        return Supervised(self.url, spec, **{"workers": 4, **options}, worker=worker)

    def finished(self) -> int:
        """Different jobs that have finished."""
        if not os.path.exists(self.path):
            return 0
        return len({line.job for line in ledger.read(self.path) if not line.started})

    def until(self, finished: int, supervised: Supervised) -> None:
        """Wait until so many different jobs have finished. The supervisor's progress tells when to look."""
        deadline = clock.monotonic() + 3 * SOON_S
        while self.finished() < finished:
            assert clock.monotonic() < deadline, (
                f"only {self.finished()} of {finished} finished\n{self.state()}\n{supervised.stderr()}"
            )
            supervised.progress()

    def state(self) -> str:
        """What the store holds, to explain a failure."""
        dead = [(letter.payload, letter.history) for letter in look.dead(self.url)]
        return f"{look.stats(self.url)}\ndead: {dead}\nworkers: {look.workers(self.url)}"

    def workers(self, supervised: Supervised) -> list[psutil.Process]:
        """Those that have run a job: the processes that stand in the ledger and live."""
        pids = {line.pid for line in ledger.read(self.path)}
        return [child for child in supervised.children() if child.pid in pids]

    def kill_one(self, supervised: Supervised) -> None:
        victims = self.workers(supervised)
        if victims:
            victim = self.random.choice(victims)
            self.killed.add(victim.pid)
            victim.kill()


@pytest.mark.timeout(240)
def test_no_job_is_lost_and_only_those_of_killed_workers_repeat(store_url: str, tmp_path: Path) -> None:
    seed = int(os.environ.get("FASTJOBS_TEST_SEED", "0")) or random.randrange(1, 10**6)
    print(f"FASTJOBS_TEST_SEED={seed}")
    fates = Fates(store_url, tmp_path / "ledger", seed)

    fates.enqueue(2_000)
    with fates.supervise() as first:
        for step in range(1, KILLS + 1):  # kill -9, again and again
            fates.until(step * 200, first)
            fates.kill_one(first)
        fates.enqueue(1_500)
        first.send(signal.SIGHUP)  # new code
        first.expect("up", reloaded=True)
        fates.enqueue(500)
        first.send(signal.SIGTERM)
        assert first.ends() == 0
    before = fates.finished()
    fates.enqueue(1_000)
    with fates.supervise() as second:  # SIGINT twice: at once
        fates.until(before + 200, second)
        fates.killed |= {child.pid for child in second.children()}
        second.send(signal.SIGINT)
        second.log("stop")
        second.send(signal.SIGINT)
        assert second.ends() in (0, 130)
    before = fates.finished()
    fates.enqueue(1_000)
    with fates.supervise() as third:  # everything at once
        fates.until(before + 200, third)
        fates.killed |= {child.pid for child in third.children()}
        third.process.kill()
        third.process.wait(SOON_S)
    with fates.supervise(burst=False) as last:
        fates.until(fates.accepted, last)
        last.send(signal.SIGTERM)
        assert last.ends() == 0
    balance(fates)


def balance(fates: Fates, *, dead: Collection[int] = ()) -> None:
    """Every job has finished or is among the *dead*; of its starts one at most was in a worker that nothing befell; nothing is
    left."""
    starts: dict[int, list[int]] = defaultdict(list)
    finished = set()
    for line in ledger.read(fates.path):
        if line.started:
            starts[line.job].append(line.pid)
        else:
            finished.add(line.job)
    missing = set(range(fates.accepted)) - finished - set(dead)
    assert finished == set(range(fates.accepted)) - set(dead), f"lost: {sorted(missing)[:20]}\n{fates.state()}"
    unexplained = {job: pids for job, pids in starts.items() if sum(pid not in fates.killed for pid in pids) > 1}
    assert unexplained == {}, "ran twice without a death"
    left = look.stats(fates.url)
    assert left.running == 0
    assert all(queue.ready == queue.delayed == 0 for queue in left.queues)
    assert sum(queue.dead for queue in left.queues) == len(dead)
    assert look.leases(fates.url) == {}
    repeated = sum(len(pids) > 1 for pids in starts.values())
    print(f"{fates.accepted} jobs, {len(fates.killed)} workers killed, {repeated} jobs repeated")
