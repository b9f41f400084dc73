"""Deploys under load: code reloaded again and again, old and new side by side, jobs that only new code knows."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import pytest

from fastjobs import JobQueue
from tests.processes import ledger
from tests.processes import stores as look
from tests.test_accounts import balance
from tests.test_faults_stores import Tried

each_server = pytest.mark.parametrize("store_kind", ["socket", "redis", "postgres"])

CODE = """
import asyncio
from pathlib import Path
from fastjobs import JobQueue
from tests.processes import ledger
jobs = JobQueue()

@jobs.job(name="entry")
async def versioned(n: int, path: str, seconds: float) -> None:
    Path(f"{path}.{VERSION}").touch()
    await ledger.entry(n, path, seconds)
"""

NEWCOMER = """
@jobs.job
async def newcomer(n: int, path: str) -> None:
    ledger.started(n, path)
    ledger.finished(n, path)
"""


class Shop:
    """An app's code, deployed again and again."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._version = 0

    def deploy(self, more: str = "") -> None:
        """A new version; of another size, or Python takes it for the one that it has compiled."""
        self._version += 1
        text = f"VERSION = {self._version}\n{CODE}{more}{'#' * self._version}\n"
        (self.directory / "shop.py").write_text(text)


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop(tmp_path)


@each_server
def test_reloads_under_load_run_every_job_once(store_url: str, shop: Shop, tmp_path: Path) -> None:
    fates = Tried(store_url, tmp_path / "ledger")
    fates.enqueue(300)
    shop.deploy()
    with fates.supervise("shop", cwd=tmp_path, workers=2) as fleet:
        fates.until(20, fleet)
        with fates.producing():
            for _ in range(3):
                shop.deploy()
                fleet.send(signal.SIGHUP)
                fleet.expect("up", reloaded=True)
                fates.until(fates.finished() + 20, fleet)  # by old workers and by new ones
            while not Path(f"{fates.path}.4").exists():  # the last version has run jobs
                fleet.progress()
        fates.ends_well(fleet)
    balance(fates)


def enqueue_newcomers(fates: Tried, count: int) -> None:
    """Of a producer that has the new code already."""
    producer = JobQueue(fates.url)

    @producer.job
    async def newcomer(n: int, path: str) -> None: ...

    async def produce() -> int:
        async with producer:
            numbers = range(fates.accepted, fates.accepted + count)
            return await producer.enqueue_many(newcomer.prepare(n, fates.path) for n in numbers)

    fates.accepted += asyncio.run(produce())


@each_server
def test_jobs_that_only_new_code_knows_wait_for_it(store_url: str, shop: Shop, tmp_path: Path) -> None:
    fates = Tried(store_url, tmp_path / "ledger")
    fates.enqueue(100)
    enqueue_newcomers(fates, 20)
    shop.deploy()
    with fates.supervise("shop", cwd=tmp_path, workers=2) as fleet:
        fates.until(100, fleet)
        fleet.progress(delayed=20, ready=0)  # the old workers have met all of them
        old = {worker.pid for worker in fates.workers(fleet)}
        shop.deploy(NEWCOMER)
        fleet.send(signal.SIGHUP)
        fates.ends_well(fleet)
    ran = {line.pid for line in ledger.read(fates.path) if line.job >= 100}
    assert not ran & old
    balance(fates)


@pytest.mark.parametrize("store_kind", ["socket"])
def test_where_the_app_says_so_they_are_dead_at_once(store_url: str, shop: Shop, tmp_path: Path) -> None:
    fates = Tried(store_url, tmp_path / "ledger")
    enqueue_newcomers(fates, 20)
    fates.enqueue(50)
    shop.deploy()
    with fates.supervise("shop", cwd=tmp_path, workers=2, worker={"unknown": "dead"}, burst=True) as fleet:
        assert fleet.ends() == 1
        assert fleet.final()["retried"] == 0
    letters = look.dead(store_url)
    assert {(letter.name, letter.attempts) for letter in letters} == {("newcomer", 0)}
    assert {failure.kind for letter in letters for failure in letter.history or ()} == {"unknown"}
    balance(fates, dead=range(20))
