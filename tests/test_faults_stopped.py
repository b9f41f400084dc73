"""Processes that are stopped for longer than their lease, one of a machine or all of it, while a second machine looks on."""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path

import pytest

from tests.processes import ledger
from tests.processes.driver import Supervised, stopped
from tests.test_accounts import Fates, balance
from tests.test_faults_stores import Tried

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="names processes as only Linux does")

each_server = pytest.mark.parametrize("store_kind", ["socket", "redis", "postgres"])

SHORT = {"lease_ttl": 2}


class Machines(Tried):
    """Two supervisors that share a store and no process."""

    def machine(self, **options: object) -> Supervised:
        return self.supervise(workers=2, worker=SHORT, **options)

    def ran(self, supervised: Supervised) -> set[int]:
        """Processes of this machine that have run a job."""
        pids = {child.pid for child in supervised.children()}
        return {line.pid for line in ledger.read(self.path) if line.pid in pids}


@each_server
def test_a_worker_and_its_supervisor_may_be_stopped_longer_than_the_lease_and_no_other_machine_takes_their_jobs(
    store_url: str, tmp_path: Path
) -> None:
    fates = Machines(store_url, tmp_path / "ledger")
    fates.enqueue(20, 0.2)
    with fates.machine() as one:
        fates.until(20, one)
        with fates.machine() as other:
            fates.enqueue(160, 0.2)
            fates.until(60, one)
            with stopped([one.process.pid, fates.workers(one)[0].pid]):
                fates.renewed(4)
            fates.enqueue(100)
            fates.until(280, one)
            for fleet in (one, other):
                fleet.send(signal.SIGTERM)
                assert fleet.ends() == 0
    balance(fates)  # nobody was killed: nothing has run twice


@each_server
def test_a_machine_that_stood_still_longer_than_its_lease_has_lost_its_jobs_and_works_on(
    store_url: str, tmp_path: Path
) -> None:
    fates = Machines(store_url, tmp_path / "ledger")
    fates.enqueue(20, 0.2)
    with fates.machine() as one:
        fates.until(20, one)
        with fates.machine() as other:
            fates.enqueue(200, 0.2)
            fates.until(60, other)
            fates.killed |= fates.ran(one)  # what they hold now runs elsewhere, and here when they wake
            with stopped([one.process.pid, *(child.pid for child in one.children())]):
                other.log("whose lease has ended")
                fates.until(220, other)
            one.log("may run elsewhere")
            other.send(signal.SIGTERM)
            assert other.ends() == 0
        fates.enqueue(20)
        fates.until(240, one)
        one.send(signal.SIGTERM)
        assert one.ends() == 0
    balance(fates)


@pytest.mark.parametrize("store_kind", ["socket", "postgres"])
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_the_end_of_maintenance_under_load_costs_no_job_a_second_run(
    store_url: str, tmp_path: Path, how: signal.Signals
) -> None:
    fates = Fates(store_url, tmp_path / "ledger")
    fates.enqueue(300)
    with fates.supervise(workers=2) as fleet:
        fates.until(50, fleet)
        [maintenance] = [child for child in fleet.children() if child.name() == "fj-maintenance"]
        maintenance.send_signal(how)
        fleet.log("has been silent" if how == signal.SIGSTOP else "was killed by SIGKILL; the next one starts")
        fates.kill_one(fleet)  # its heir has work to do
        fates.enqueue(100)
        fates.until(400, fleet)
        fleet.send(signal.SIGTERM)
        assert fleet.ends() == 0
    balance(fates)


@pytest.mark.parametrize("store_kind", ["socket"])
def test_a_machine_that_stood_still_does_not_take_its_own_processes_for_silent(store_url: str, tmp_path: Path) -> None:
    fates = Machines(store_url, tmp_path / "ledger")
    fates.enqueue(60, 0.2)
    with fates.supervise(workers=2, watchdog=2, worker={"lease_ttl": 6}) as fleet:
        fates.until(10, fleet)
        before = {child.pid for child in fleet.children()}
        # The supervisor wakes first, and sees the others as they were.
        with stopped([fleet.process.pid, *before]):
            threading.Event().wait(2.5)
            os.kill(fleet.process.pid, signal.SIGCONT)
            fleet.progress()
        fates.until(60, fleet)
        assert {child.pid for child in fleet.children()} == before
        fleet.send(signal.SIGTERM)
        assert fleet.ends() == 0
    balance(fates)
