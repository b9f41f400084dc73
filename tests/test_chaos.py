"""The chaos driver: a short run keeps every promise, and its accounts notice when one is broken."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.chaos.accounts import Accounts, Balance
from tests.chaos.kinds import FATES, Kind
from tests.chaos.ledger import RECORD, Event
from tests.chaos.reasons import Span, Story, Strike
from tests.chaos.report import details
from tests.chaos.run import Plan, Run
from tests.processes.driver import ROOT

START, FINISH, FAIL, DIE = Event.STARTED, Event.FINISHED, Event.FAILED, Event.DYING

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="the driver tells processes apart by what only Linux shows")


class Books:
    """A ledger made by hand. Times are in seconds."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.story = Story()
        self.dead: dict[int, str] = {}
        self.left: list[str] = []

    def producer(self, *records: tuple[Event, int, int]) -> None:
        """Event, number of the first job, how many; KIND: event, job, kind."""
        data = b""
        for event, job, number in records:
            count, kind = (1, number) if event is Event.KIND else (number, 0)
            data += RECORD.pack(0, job, count, event, kind)
        (self.directory / "p-0-1-0").write_bytes(data)

    def accepted(self, count: int) -> None:
        self.producer((Event.OFFERED, 0, count), (Event.ACCEPTED, 0, count))

    def worker(
        self, pid: int, *records: tuple[float, Event, int], machine: str = "A", kind: Kind = Kind.PLAIN, up: float = 0.0
    ) -> None:
        """Seconds, event, job. *up*: since when it works, in seconds."""
        lines = [(up, Event.UP, 0), *records]
        data = b"".join(RECORD.pack(int(s * 1e9), job, pid, event, kind) for s, event, job in lines)
        (self.directory / f"w-{machine}-{pid}-0").write_bytes(data)

    def struck(self, pid: int, s: float, *, killed: bool = False) -> None:
        self.story.strikes.append(Strike(pid, int(s * 1e9), "worker killed", killed))

    def balance(self) -> Balance:
        accounts = Accounts(self.directory)
        accounts.read()
        return accounts.balance(self.story, self.dead, self.left)

    def wrong(self) -> list[tuple[int, str]]:
        return [(culprit.job, culprit.what) for culprit in self.balance().culprits]


@pytest.fixture
def books(tmp_path: Path) -> Books:
    return Books(tmp_path)


def span(begin_s: float, end_s: float, machine: str = "") -> Span:
    return Span(machine, int(begin_s * 1e9), int(end_s * 1e9))


def test_what_was_accepted_and_has_finished_balances(books: Books) -> None:
    books.accepted(2)
    books.worker(7, (1, START, 0), (1, FINISH, 0), (2, START, 1), (3, FINISH, 1))
    balance = books.balance()
    assert balance.culprits == []
    assert (balance.jobs, balance.repeats, balance.dead) == (2, 0, 0)


def test_a_lost_job_is_noticed(books: Books) -> None:
    books.accepted(3)
    books.worker(7, (1, START, 0), (1, FINISH, 0), (2, START, 1))
    balance = books.balance()
    assert [(culprit.job, culprit.what) for culprit in balance.culprits] == [
        (1, "lost: accepted, started, never ended"),
        (2, "lost: accepted, never started"),
    ]
    assert balance.culprits[0].lines == ["2.000000 started by process 7 (w-A-7-0)"]


def test_a_repeat_that_no_fault_explains_is_noticed(books: Books) -> None:
    books.accepted(1)
    books.worker(7, (1, START, 0), (1, FINISH, 0))
    books.worker(8, (2, START, 0), (2, FINISH, 0))
    books.struck(8, 3)  # of the last run, which is not the one in vain
    assert books.wrong() == [(0, "ran 2 times without a fault that explains it")]


def test_a_repeat_is_explained_by_the_death_of_its_worker(books: Books) -> None:
    books.accepted(1)
    books.worker(7, (1, START, 0))
    books.worker(8, (2, START, 0), (2, FINISH, 0))
    books.struck(7, 1.9, killed=True)
    balance = books.balance()
    assert balance.culprits == []
    assert balance.repeats == 1
    assert balance.because == {"worker killed": 1}
    assert balance.recoveries_s == [pytest.approx(0.1)]


def test_a_death_explains_only_what_its_worker_still_held(books: Books) -> None:
    books.accepted(1)
    books.worker(7, (1, START, 0), (1, FINISH, 0))
    books.worker(8, (60, START, 0), (60, FINISH, 0))
    books.struck(7, 59)
    assert books.wrong() == [(0, "ran 2 times without a fault that explains it")]
    books.story.outages.append(span(0, 58))  # then it could not have been settled
    assert books.wrong() == []


def test_a_death_explains_nothing_of_a_later_process_with_the_same_number(books: Books) -> None:
    books.accepted(1)
    books.struck(7, 0.5)
    books.struck(7, 9.5)
    books.worker(7, (10, START, 0), (10, FINISH, 0), up=9.8)
    books.worker(8, (11, START, 0), (11, FINISH, 0))
    assert books.wrong() == [(0, "ran 2 times without a fault that explains it")]


def test_a_leftover_is_noticed(books: Books) -> None:
    books.accepted(1)
    books.worker(7, (1, START, 0), (1, FINISH, 0))
    books.left = ["{t}:inflight:9"]
    assert books.wrong() == [(-1, "left in the store: {t}:inflight:9")]


def test_a_dead_job_needs_a_reason(books: Books) -> None:
    books.producer((Event.OFFERED, 0, 2), (Event.KIND, 0, Kind.DISCARD), (Event.KIND, 1, Kind.DISCARD), (Event.ACCEPTED, 0, 2))
    books.worker(7, (1, START, 0), (1, FAIL, 0), (1, START, 1), (1, FAIL, 1), kind=Kind.DISCARD)
    books.dead = {0: "discarded: Discard: by design", 1: ""}
    assert books.wrong() == [(1, "dead without a reason")]


def test_a_job_that_should_have_finished_must_not_be_dead(books: Books) -> None:
    books.accepted(2)
    books.worker(7, (1, START, 0), (1, START, 1), (1, FINISH, 1))
    books.dead = {0: "lost: SIGKILL: its worker was killed", 1: "failed: OSError: it finished"}
    assert books.wrong() == [
        (0, "dead, though of a kind that ends well: lost: SIGKILL: its worker was killed"),
        (1, "finished, and is dead"),
    ]


def test_what_was_refused_must_not_run_and_what_is_unsure_may(books: Books) -> None:
    books.producer((Event.OFFERED, 0, 4), (Event.REFUSED, 0, 1), (Event.UNSURE, 1, 3))
    books.worker(7, (1, START, 0), (1, FINISH, 0), (1, START, 1), (1, FINISH, 1), (1, START, 2))
    balance = books.balance()
    assert [(culprit.job, culprit.what) for culprit in balance.culprits] == [
        (0, "ran, and was refused"),
        (2, "lost: accepted, started, never ended"),
    ]
    assert (balance.jobs, balance.unsure) == (2, 3)


def test_a_job_that_nobody_offered_is_noticed(books: Books) -> None:
    books.accepted(1)
    books.worker(7, (1, START, 0), (1, FINISH, 0))
    books.dead = {99: "failed: ValueError: boom"}
    assert books.wrong() == [(99, "dead, and nobody offered it")]


def test_runs_that_fail_by_design_are_no_repeats(books: Books) -> None:
    books.producer((Event.OFFERED, 0, 1), (Event.KIND, 0, Kind.RETRY), (Event.ACCEPTED, 0, 1))
    runs = [(float(at), event, 0) for at in range(FATES[Kind.RETRY].failures) for event in (START, FAIL)]
    books.worker(7, *runs, (5, START, 0), (5, FINISH, 0), kind=Kind.RETRY)
    assert books.wrong() == []
    books.worker(8, (6, START, 0), (6, FINISH, 0), kind=Kind.RETRY)
    assert books.wrong() == [(0, "ran 4 times without a fault that explains it")]


def test_a_lease_may_only_be_taken_from_a_machine_that_was_cut_off(books: Books) -> None:
    books.accepted(1)
    books.worker(7, (1, START, 0), (1, FINISH, 0), (9, Event.DISOWNED, 0))
    books.worker(8, (8, START, 0), (8, FINISH, 0), machine="B")
    assert books.wrong() == [(-1, "9.000000 a worker lost its lease, and nothing had cut it off: w-A-7-0")]
    books.story.cut_off.append(span(2, 8, "B"))
    assert len(books.wrong()) == 1
    books.story.cut_off.append(span(2, 8, "A"))
    assert books.wrong() == []
    assert books.balance().because == {"lease taken": 1}
    books.story.cut_off.clear()
    books.story.crashes.append(span(8, 8.5))  # the store had forgotten who claimed it
    assert books.wrong() == []


def test_a_drain_explains_what_it_has_stopped_and_nothing_else(books: Books) -> None:
    books.accepted(2)
    books.worker(7, (1, START, 0), (2, FAIL, 0), (1, START, 1), (2, FINISH, 1))
    books.worker(8, (3, START, 0), (3, FINISH, 0), (3, START, 1), (3, FINISH, 1), machine="B")
    books.story.drained.append(span(1.5, 2.5, "B"))
    twice = "ran 2 times without a fault that explains it"
    assert books.wrong() == [(0, twice), (1, twice)]
    books.story.drained.append(span(1.5, 2.5, "A"))
    assert books.wrong() == [(1, twice)]


def test_a_drain_explains_a_run_that_nothing_stops_and_that_goes_down_with_its_worker(books: Books) -> None:
    books.accepted(1)
    books.worker(7, (3, START, 0))
    books.worker(8, (9, START, 0), (9, FINISH, 0), machine="B")
    twice = "ran 2 times without a fault that explains it"
    books.story.drained.append(span(1, 2, "A"))
    assert books.wrong() == [(0, twice)]
    books.story.drained.append(span(2, 8, "A"))
    assert books.wrong() == []


def test_a_machine_that_was_cut_off_may_be_the_last_to_run_a_job(books: Books) -> None:
    books.accepted(1)
    books.worker(7, (9, START, 0), (9, FINISH, 0), (10, Event.DISOWNED, 0))  # claimed before it was frozen
    books.worker(8, (7, START, 0), (7, FINISH, 0), machine="B")
    books.story.cut_off.append(span(2, 8, "A"))
    assert books.wrong() == []


def test_a_crash_of_the_store_explains_what_ran_just_before_it(books: Books) -> None:
    books.accepted(2)
    books.worker(7, (1, START, 0), (1, FINISH, 0), (19, START, 1), (19, FINISH, 1))
    books.worker(8, (21, START, 0), (21, FINISH, 0), (21, START, 1), (21, FINISH, 1))
    books.story.crashes.append(span(20, 21))
    assert books.wrong() == [(0, "ran 2 times without a fault that explains it")]


@linux_only
def test_a_run_that_does_not_come_to_rest_is_stuck_and_says_what_it_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.chaos.run.SETTLE_S", -1.0)
    monkeypatch.setattr(Run, "_is_empty", lambda run: False)
    result = Run(Plan(store="memory", seed=1, seconds=0.5, only="none")).go()
    try:
        assert (result.verdict, result.kept) == ("stuck", False)
        assert "jobs are left" in result.why
        assert "Stats(" in result.why
        assert "most recent call first" in (Path(result.directory) / "A.log").read_text()  # stacks
        assert result.directory in details(result)
    finally:
        shutil.rmtree(result.directory)


@linux_only
@pytest.mark.timeout(170)
def test_a_short_run_on_two_stores_keeps_every_promise() -> None:
    command = [sys.executable, "-m", "tests.chaos", "--seconds", "4", "--store", "redis", "memory", "--seed", "7", "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=160, check=False)
    assert done.stdout, done.stderr
    told = json.loads(done.stdout)
    assert done.returncode == 0, done.stdout
    assert told["kept"]
    for run in told["runs"]:
        assert run["verdict"] == "kept"
        assert run["jobs"] > 0
        assert run["faults"] >= 5
