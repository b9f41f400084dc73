"""Stores that crash, restart and stay away under real supervisors: exact accounts."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Literal, TypeVar

import asyncpg
import pytest

from fastjobs import clock
from tests.processes import ledger
from tests.processes import stores as look
from tests.processes.driver import SOON_S, Supervised
from tests.servers.postgres import PostgresServer
from tests.servers.redis import RedisServer
from tests.stores import PostgresPlace
from tests.test_accounts import Fates, balance

Kind = Literal["redis", "valkey"]
S = TypeVar("S", RedisServer, PostgresServer)


@contextmanager
def running(server: S) -> Iterator[S]:
    """A server of the test's own: what is done to it is nobody else's business."""
    server.start()
    try:
        yield server
    finally:
        server.stop()


class Tried(Fates):
    """Fates on a store that is in trouble now and then."""

    @contextmanager
    def producing(self) -> Iterator[None]:
        """Meanwhile a producer goes on that was there before: one job after the other. At the end all are accepted."""
        stop, opened = threading.Event(), threading.Event()

        async def produce() -> None:
            with ledger.jobs.override(self.url):
                async with ledger.jobs:
                    await ledger.entry.enqueue(self.accepted, self.path, 0.02)
                    self.accepted += 1
                    opened.set()
                    while not stop.is_set():
                        await ledger.entry.enqueue(self.accepted, self.path, 0.02)
                        self.accepted += 1
                        await asyncio.sleep(0.005)

        thread = threading.Thread(target=lambda: asyncio.run(produce()))
        thread.start()
        try:
            assert opened.wait(SOON_S)
            yield
        finally:
            stop.set()
            thread.join()

    def until_started(self, count: int, supervised: Supervised) -> None:
        """Wait until so many jobs have started."""
        while not os.path.exists(self.path) or sum(line.started for line in ledger.read(self.path)) < count:
            supervised.progress()

    def until_these(self, jobs: set[int], supervised: Supervised) -> None:
        """Wait until these have finished."""
        while jobs - {line.job for line in ledger.read(self.path) if not line.started}:
            supervised.progress()

    def ends_well(self, fleet: Supervised) -> None:
        """All that was accepted finishes, by the same workers, and the supervisor ends as it should."""
        self.until(self.accepted, fleet)
        while self.left():  # what the store has forgotten to be done is done again
            fleet.progress()
        fleet.send(signal.SIGTERM)
        assert fleet.ends() == 0
        deaths = [
            event["message"] for event in fleet.seen if event["what"] == "log" and "the next one starts" in event["message"]
        ]
        assert deaths == []
        assert fleet.final()["dead"] == 0

    def renewed(self, times: int) -> None:
        """Wait until every lease was renewed *times* times more: four take longer than a lease lasts."""
        before = look.leases(self.url)
        deadline = clock.monotonic() + SOON_S
        while any(counter < before[lease] + times for lease, counter in look.leases(self.url).items() if lease in before):
            assert clock.monotonic() < deadline, f"{before} {look.leases(self.url)}"

    def left(self) -> int:
        """Jobs that the store holds."""
        stats = look.stats(self.url)
        return stats.running + sum(queue.ready + queue.delayed for queue in stats.queues)

    def blame_all(self) -> None:
        """The store has forgotten what it was told last: whatever ran may run again."""
        self.killed |= {line.pid for line in ledger.read(self.path)}


# -- crashes and restarts ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "fsync"), [("redis", "always"), ("valkey", "everysec")])
def test_a_redis_that_writes_everything_down_loses_no_job_in_a_crash(kind: Kind, fsync: str, tmp_path: Path) -> None:
    server = RedisServer(kind, appendonly=True, appendfsync=fsync)
    with running(server):
        fates = Tried(server.url, tmp_path / "ledger")
        fates.enqueue(300)
        with fates.supervise(workers=2) as fleet:
            for finished in (50, 200):
                fates.until(finished, fleet)
                with fates.producing():
                    server.kill()
                    fleet.log("the store does not answer maintenance")
                    server.restart()
                    fleet.log("the store answers maintenance again")
            fates.ends_well(fleet)
        balance(fates)


@pytest.mark.parametrize("kind", ["redis", "valkey"])
def test_of_a_redis_that_writes_nothing_down_all_jobs_are_lost_in_a_crash_but_no_worker(kind: Kind, tmp_path: Path) -> None:
    server = RedisServer(kind)
    with running(server):
        fates = Tried(server.url, tmp_path / "ledger")
        fates.enqueue(300)
        with fates.supervise(workers=2) as fleet:
            assert "all jobs are lost" in fleet.log("If Redis stops")
            fates.until(50, fleet)
            before = {child.pid for child in fleet.children()}
            server.kill()
            fleet.log("the store does not answer maintenance")
            server.restart()
            fleet.log("starting over")
            fleet.log("starting over")
            old, fates.accepted = fates.accepted, 1_000
            fates.enqueue(100)
            new = set(range(1_000, fates.accepted))
            fates.until_these(new, fleet)
            assert {child.pid for child in fleet.children()} == before
            fleet.send(signal.SIGTERM)
            assert fleet.ends() == 0
        lines = list(ledger.read(fates.path))
        starts = [line.job for line in lines if line.started]
        assert len(starts) == len(set(starts))  # what ran ran once
        assert {line.job for line in lines} - new < set(range(old))  # and some of the old ones never did
        assert look.stats(fates.url).running == 0
        assert look.leases(fates.url) == {}


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresServer]:
    """For this module: each test has a schema of its own."""
    server = PostgresServer()
    with running(server):
        yield server


@pytest.mark.parametrize("how", ["immediate", "kill"])
def test_a_postgres_that_crashes_loses_no_job(how: str, postgres: PostgresServer, tmp_path: Path) -> None:
    server = postgres
    fates = Tried(PostgresPlace(server).url(), tmp_path / "ledger")
    fates.enqueue(300)
    with fates.supervise(workers=2, env={"TEST_CLAIMS_S": "0.5"}) as fleet:
        for finished in (50,) if how == "kill" else (50, 200):
            fates.until(finished, fleet)
            with fates.producing():
                if how == "kill":
                    server.kill()
                fates.blame_all()  # claims and settlements of the last moments are lost, enqueues are not
                server.restart()
                fates.until(finished + 20, fleet)  # it may be back before anybody has missed it
        fates.ends_well(fleet)
    balance(fates)


# -- away ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["redis", "postgres"])
def test_an_outage_longer_than_the_lease_takes_no_job_from_anybody(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Two machines. When the store is back nobody has been seen to renew for long, and all their jobs still run."""
    with ExitStack() as stack:
        server: RedisServer | PostgresServer
        if kind == "postgres":
            server = request.getfixturevalue("postgres")
            url = PostgresPlace(server).url()
        else:
            server = stack.enter_context(running(RedisServer(appendonly=True, appendfsync="always")))
            url = server.url
        fates = Tried(url, tmp_path / "ledger")
        short = {"lease_ttl": 2}
        with fates.supervise(workers=1, worker=short) as one, fates.supervise(workers=1, worker=short) as two:
            one.progress(workers=1)
            two.progress(workers=1)
            fates.renewed(4)  # each has seen the other's lease
            fates.enqueue(20, 2.5)  # longer than the lease: they end during the outage
            fates.enqueue(20, 5.0)  # these long after it
            fates.until_started(40, one)
            if isinstance(server, PostgresServer):
                asyncio.run(checkpoint(server.url))  # the claims are on disk
            server.kill()
            fates.until(20, one)
            server.restart()
            one.log("the store answers maintenance again")
            two.log("the store answers maintenance again")
            fates.enqueue(20)
            for fleet in (one, two):
                fates.ends_well(fleet)
        balance(fates)  # nobody was killed: nothing has run twice


async def checkpoint(url: str) -> None:
    connection = await asyncpg.connect(url)
    await connection.execute("checkpoint")
    await connection.close()
