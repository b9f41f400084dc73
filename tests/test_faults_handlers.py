"""Handlers that end, stop or maim their worker, with ordinary jobs beside them: exact accounts of both."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from fastjobs.calls import Call
from fastjobs.model import Job
from tests.processes import ledger, rogues
from tests.processes import stores as look
from tests.processes.driver import SOON_S
from tests.test_accounts import Fates, balance

each_server = pytest.mark.parametrize("store_kind", ["socket", "redis", "postgres"])

SPEC = "tests.processes.rogues:jobs"

Prepare = Callable[[int, str], Call]

DEADLY: list[tuple[str, Prepare]] = [
    ("exit code 0", lambda n, path: rogues.exits.prepare(n, path, 0)),
    ("exit code 3", lambda n, path: rogues.exits.prepare(n, path, 3)),
    ("SIGSEGV", rogues.segfaults.prepare),
    ("SIGABRT", rogues.aborts.prepare),
    ("SIGABRT", rogues.closes_descriptors.prepare),
    ("SIGABRT", rogues.closes_descriptors_from_a_thread.prepare),
]
"""Jobs that their worker dies of, and how it does."""

FAILING: list[tuple[str, Prepare]] = [
    ("SystemExit", lambda n, path: rogues.raises.prepare(n, path, "SystemExit")),
    ("KeyboardInterrupt", lambda n, path: rogues.raises.prepare(n, path, "KeyboardInterrupt")),
    ("GeneratorExit", lambda n, path: rogues.raises.prepare(n, path, "GeneratorExit")),
    ("Untypical", lambda n, path: rogues.raises.prepare(n, path, "Untypical")),
    ("Untypical", rogues.raises_in_a_thread.prepare),
    ("CancelledError", rogues.cancels_itself.prepare),
    ("TimeLimitExceeded", rogues.never_returns.prepare),
    ("TimeLimitExceeded", rogues.never_returns_in_a_thread.prepare),
]
"""Jobs that fail and leave their worker alone, and what is recorded of them."""


class Company(Fates):
    """Rogues among ordinary jobs."""

    def enqueue_rogue(self, prepare: Prepare) -> int:
        """Store one; its number."""

        async def produce() -> None:
            with rogues.jobs.override(self.url):
                async with rogues.jobs:
                    await rogues.jobs.enqueue_many([prepare(self.accepted, self.path)])

        asyncio.run(produce())
        self.accepted += 1
        return self.accepted - 1

    def started_by(self, job: int) -> set[int]:
        """The processes in which a job has started."""
        return {line.pid for line in ledger.read(self.path) if line.started and line.job == job}

    def dead(self) -> dict[int, Job]:
        """By their numbers."""
        numbers = {}
        for job in look.dead(self.url):
            _, _, rest = job.payload.partition(b'"n":')
            numbers[int(rest.partition(b",")[0])] = job
        return numbers


@each_server
def test_what_kills_its_worker_is_dead_with_how_it_died_and_the_jobs_beside_it_finish(store_url: str, tmp_path: Path) -> None:
    company = Company(store_url, tmp_path / "ledger")
    expected = {}
    for error, prepare in DEADLY:
        company.enqueue(40, 0.02)
        expected[company.enqueue_rogue(prepare)] = error
    with company.supervise(SPEC, workers=6, burst=True) as fleet:
        assert fleet.ends() == 1
    for job in expected:
        company.killed |= company.started_by(job)
    letters = company.dead()
    assert {job: letters[job].losses for job in expected} == dict.fromkeys(expected, 3)
    assert {job: letters[job].attempts for job in expected} == dict.fromkeys(expected, 0)
    histories = {job: [(failure.kind, failure.error) for failure in letters[job].history or ()] for job in expected}
    assert {job: history[-1] for job, history in histories.items()} == {job: ("lost", how) for job, how in expected.items()}
    balance(company, dead=expected)


@each_server
def test_what_fails_in_an_unusual_way_harms_no_worker(store_url: str, tmp_path: Path) -> None:
    company = Company(store_url, tmp_path / "ledger")
    expected = {}
    for error, prepare in FAILING:
        company.enqueue(20, 0.02)
        expected[company.enqueue_rogue(prepare)] = error
    with company.supervise(SPEC, workers=2, burst=True) as fleet:
        assert fleet.ends() == 1
        assert fleet.final()["dead"] == len(FAILING)
    letters = company.dead()
    assert {job: [failure.error for failure in letters[job].history or ()] for job in letters} == {
        job: [error] for job, error in expected.items()
    }
    assert {(letter.attempts, letter.losses) for letter in letters.values()} == {(1, 0)}
    balance(company, dead=expected)  # nothing was killed: nothing has run twice


@each_server
def test_a_worker_that_its_handler_tells_to_stop_drains_and_is_replaced(store_url: str, tmp_path: Path) -> None:
    company = Company(store_url, tmp_path / "ledger")
    company.enqueue(30, 0.02)
    job = company.enqueue_rogue(rogues.terminates_its_worker.prepare)
    company.enqueue(30, 0.02)
    with company.supervise(SPEC, workers=2, burst=True) as fleet:
        assert fleet.ends() == 0
        [pid] = company.started_by(job)
        assert f"(process {pid}, " in fleet.log("ended with exit code 0")
    balance(company)


@pytest.mark.skipif(sys.platform != "linux", reason="no other system tells how large a process is")
@pytest.mark.parametrize("store_kind", ["socket"])
def test_workers_that_leak_memory_are_replaced_and_no_job_runs_twice(store_url: str, tmp_path: Path) -> None:
    company = Company(store_url, tmp_path / "ledger")
    with company.supervise(SPEC, workers=2, worker={"max_rss_mb": 120}) as fleet:
        for _ in range(3):
            company.enqueue(60)
            leaking = company.enqueue_rogue(lambda n, path: rogues.leaks.prepare(n, path, 120))
            company.enqueue(60)
            assert "MiB of resident memory" in fleet.log("is replaced")
        company.until(company.accepted, fleet)
        [leaked] = company.started_by(leaking)
        fleet.send(signal.SIGTERM)
        assert fleet.ends() == 0
        assert f"(process {leaked}) is replaced" in fleet.stderr()
    balance(company)


@pytest.mark.parametrize("store_kind", ["socket"])
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_copy_that_a_handler_forked_stays_unless_its_worker_is_killed(
    store_url: str, tmp_path: Path, how: signal.Signals
) -> None:
    company = Company(store_url, tmp_path / "ledger")
    os.mkfifo(f"{company.path}.pipe")
    company.enqueue(20, 0.02)
    company.enqueue_rogue(rogues.forks_a_copy_that_stays.prepare)
    with open(f"{company.path}.pipe", "r+b", buffering=0), company.supervise(SPEC, workers=1) as fleet:
        company.until(21, fleet)
        [worker] = company.workers(fleet)
        [copy] = worker.children()
        if how == signal.SIGKILL:
            company.killed.add(worker.pid)
            worker.kill()
            assert psutil.wait_procs([copy], timeout=SOON_S)[1] == []
            company.enqueue(20, 0.02)
            company.until(41, fleet)
        fleet.send(signal.SIGTERM)
        assert fleet.ends() == 0
        assert copy.is_running() == (how == signal.SIGTERM)
    psutil.wait_procs([copy], timeout=SOON_S)
    balance(company)
