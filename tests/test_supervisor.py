"""Real supervisors with real workers: killed, drained, reloaded, resized. Tests wait for what the processes say."""

from __future__ import annotations

import os
import pty
import signal
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
import pytest

from fastjobs import clock
from tests.processes import app
from tests.processes.driver import Supervised
from tests.processes.stores import dead, enqueue, leases, ready, stats

socket_only = pytest.mark.parametrize("store_kind", ["socket"])
each_server = pytest.mark.parametrize("store_kind", ["socket", "redis", "postgres"])

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, or uses what only Linux has")


# -- running and ending -----------------------------------------------------------------------------------------------


@each_server
def test_a_burst_runs_everything_and_says_how_it_went(store_url: str) -> None:
    enqueue(store_url, *(app.count.prepare(n) for n in range(3000)))
    enqueue(store_url, app.count.options(delay="1h").prepare(0))
    with Supervised(store_url, workers=4, burst=True) as fleet:
        assert fleet.ends() == 0
        final = fleet.final()
    assert (final["done"], final["dead"], final["ready"], final["delayed"]) == (3000, 0, 0, 1)
    assert final["overall_rate"] > 0
    assert stats(store_url).running == 0
    assert leases(store_url) == {}


@socket_only
def test_a_burst_in_which_a_job_died_exits_with_1(store_url: str) -> None:
    enqueue(store_url, app.jobs.prepare("count", {"n": 1}), app.stubborn.options(max_attempts=1).prepare(1))
    with Supervised(store_url, workers=1, burst=True, env={"TEST_STUCK_S": "0.1"}, worker={"grace": 0.1}) as fleet:
        assert fleet.ends() == 1
        assert fleet.final()["dead"] == 1


@each_server
def test_sigterm_lets_what_runs_finish(store_url: str, tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with Supervised(store_url, workers=2) as fleet:
        enqueue(store_url, app.hold_until.prepare(1, str(fifo)))
        fleet.expect("started")
        fleet.send(signal.SIGTERM)
        assert "draining: 1 running" in fleet.log("draining")
        fifo.write_text("go on")
        fleet.expect("ran", job=1)
        assert fleet.ends() == 0
        assert fleet.final()["done"] == 1
    assert leases(store_url) == {}


@each_server
def test_a_worker_that_is_told_to_stop_by_others_too_drains_all_the_same(store_url: str, tmp_path: Path) -> None:
    """systemd sends SIGTERM to every process of a unit at once, and the supervisor one more to its workers."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with Supervised(store_url, workers=1) as fleet:
        enqueue(store_url, app.hold_until.prepare(1, str(fifo)))
        worker = fleet.expect("started")["pid"]
        fleet.kill(worker, signal.SIGTERM)
        fleet.send(signal.SIGTERM)
        fleet.log("draining")
        fleet.kill(worker, signal.SIGTERM)
        fifo.write_text("go on")
        fleet.expect("ran", job=1)
        assert fleet.ends() == 0
        assert fleet.final()["done"] == 1
    assert leases(store_url) == {}


@each_server
def test_a_drain_over_its_grace_time_gives_the_job_back_without_a_loss(store_url: str) -> None:
    with Supervised(store_url, workers=2, worker={"grace": 0.2}) as fleet:
        enqueue(store_url, app.hold.prepare(1))
        fleet.expect("started")
        fleet.send(signal.SIGTERM)
        assert fleet.ends() == 128 + signal.SIGTERM
        assert fleet.final()["released"] == 1
    [job] = ready(store_url)
    assert (job.attempts, job.losses, job.history) == (0, 0, None)
    assert leases(store_url) == {}


@each_server
def test_the_second_sigint_ends_at_once_and_gives_the_jobs_back(store_url: str) -> None:
    with Supervised(store_url, workers=2, worker={"concurrency": 1, "grace": 600}) as fleet:
        enqueue(store_url, app.hold.prepare(1), app.block.prepare(2))
        fleet.expect("started")
        fleet.expect("started")
        fleet.send(signal.SIGINT)
        fleet.log("draining: 2 running")
        fleet.send(signal.SIGINT)
        assert fleet.ends() == 128 + signal.SIGINT
    assert sorted(job.name for job in ready(store_url)) == ["block", "hold"]
    assert {(job.attempts, job.losses) for job in ready(store_url)} == {(0, 0)}
    assert leases(store_url) == {}


@socket_only
@pytest.mark.parametrize("signals", [1, 2])
def test_stopping_while_nothing_runs_is_no_drain_cut_short(store_url: str, signals: int) -> None:
    with Supervised(store_url, workers=2, worker={"grace": 0}) as fleet:
        fleet.progress(workers=2)
        fleet.send(signal.SIGTERM)
        if signals == 2:
            fleet.log("stopping: nothing is running")
            fleet.send(signal.SIGTERM)
        assert fleet.ends() == 0


@socket_only
def test_a_closing_terminal_drains(store_url: str) -> None:
    master, slave = pty.openpty()
    with Supervised(store_url, workers=1, terminal=slave) as fleet:
        os.close(slave)
        fleet.progress(workers=1)
        os.close(master)
        assert fleet.ends() == 0


@socket_only
def test_children_do_not_outlive_a_killed_supervisor_and_the_next_one_has_their_jobs(store_url: str) -> None:
    with Supervised(store_url, workers=2, worker={"lease_ttl": 1}) as fleet:
        enqueue(store_url, app.hold.prepare(1))
        fleet.expect("started")
        children = fleet.children()
        fleet.process.kill()
        assert psutil.wait_procs(children, timeout=10)[1] == []
    with Supervised(store_url, workers=1, worker={"lease_ttl": 1, "grace": 0}) as fleet:
        again = fleet.expect("started", job=1)
        assert (again["attempt"], again["losses"]) == (1, 1)
        fleet.send(signal.SIGTERM)
        fleet.ends()


# -- deaths -----------------------------------------------------------------------------------------------------------


@each_server
def test_a_killed_workers_jobs_run_again_at_once_and_it_alone_is_replaced(store_url: str) -> None:
    with Supervised(store_url, workers=4, worker={"grace": 0}) as fleet:
        fleet.progress(workers=4)
        before = {child.pid for child in fleet.children()}
        enqueue(store_url, app.hold.prepare(1))
        first = fleet.expect("started")
        killed_at = clock.monotonic()
        fleet.kill(first["pid"])
        second = fleet.expect("started", job=1)
        took_s = clock.monotonic() - killed_at
        assert took_s < 1.0, "goal 0.1 s; a loaded machine gets more"
        assert (second["attempt"], second["losses"]) == (1, 1)
        assert "killed by SIGKILL" in fleet.log("the next one starts in 0.10 s")
        fleet.progress(workers=4)
        after = {child.pid for child in fleet.children()}
        assert before - after == {first["pid"]}
        assert len(after) == len(before)
        fleet.send(signal.SIGTERM)
        fleet.ends()


@socket_only
def test_a_job_that_kills_its_worker_is_dead_after_its_third_loss_alone(store_url: str) -> None:
    enqueue(store_url, app.kill_worker.prepare(), *(app.tell.prepare(n) for n in range(5)))
    with Supervised(store_url, workers=1, burst=True) as fleet:
        assert fleet.ends() == 1
        runs = [event["losses"] for event in fleet.seen if event["what"] == "started"]
        told = sorted(event["job"] for event in fleet.seen if event["what"] == "ran")
        # What the killed workers had ended but not settled was run again, and counts once.
        assert (fleet.final()["done"], fleet.final()["dead"]) == (5, 1)
    assert runs == [0, 1, 2]
    assert told == list(range(5))
    [job] = dead(store_url)
    assert job.losses == 3
    assert job.attempts == 0
    assert [(failure.kind, failure.error) for failure in job.history or ()] == [("lost", "SIGKILL")] * 3
    assert "peak memory" in (job.history or [])[0].message


@socket_only
def test_a_task_that_ends_its_worker_counts_as_a_loss_of_the_job_that_left_it(store_url: str) -> None:
    enqueue(store_url, app.exit_beside.prepare())
    with Supervised(store_url, workers=1, burst=True) as fleet:
        fleet.log("SystemExit was raised in a task that nobody awaits")
        assert fleet.ends() == 1
    [job] = dead(store_url)
    assert (job.attempts, [failure.error for failure in job.history or ()]) == (0, ["exit code 5"] * 3)


@socket_only
def test_what_a_killed_worker_had_started_dies_with_it(store_url: str) -> None:
    with Supervised(store_url, workers=1, worker={"grace": 0}) as fleet:
        enqueue(store_url, app.leave_child.prepare(1, hold=True))
        first = fleet.expect("started")
        child = psutil.Process(first["child"])
        fleet.kill(first["pid"])
        fleet.expect("started")
        assert psutil.wait_procs([child], timeout=10)[1] == []
        fleet.send(signal.SIGTERM)
        fleet.ends()


@socket_only
def test_what_a_handler_left_running_outlives_a_worker_that_ends_by_itself(store_url: str) -> None:
    with Supervised(store_url, workers=1) as fleet:
        enqueue(store_url, app.leave_child.prepare(1, hold=False))
        child = psutil.Process(fleet.expect("started")["child"])
        fleet.send(signal.SIGTERM)
        assert fleet.ends() == 0
        assert child.is_running()
        child.kill()


BROKEN = """
from contextlib import asynccontextmanager
from fastjobs import JobQueue
@asynccontextmanager
async def lifespan():
    raise RuntimeError('no database')
    yield
jobs = JobQueue(lifespan=lifespan)
@jobs.job
async def work(): ...
"""


@socket_only
def test_workers_that_die_young_come_back_later_and_later(store_url: str, tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text(BROKEN)
    with Supervised(store_url, "broken", cwd=tmp_path, workers=1) as fleet:
        for delay in ("0.10", "0.20", "0.40"):
            assert "ended with exit code 1" in fleet.log(f"the next one starts in {delay} s")
        fleet.send(signal.SIGTERM)
        assert fleet.ends() == 0
        assert "no database" in fleet.stderr()


@socket_only
def test_a_burst_whose_workers_never_come_up_ends_with_1(store_url: str, tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text(BROKEN)
    enqueue(store_url, app.jobs.prepare("work"))
    with Supervised(store_url, "broken", cwd=tmp_path, workers=1, burst=True) as fleet:
        fleet.log("no worker comes up")
        assert fleet.ends() == 1
    assert stats(store_url).queues[0].ready == 1


@socket_only
def test_a_store_that_refuses_the_workers_ends_it_with_4(store_url: str, tmp_path: Path) -> None:
    (tmp_path / "refused.py").write_text(
        "from fastjobs import JobQueue\n"
        "from fastjobs.backends.memory import MemoryBackend\n"
        "from fastjobs.errors import SchemaError\n"
        "class Old(MemoryBackend):\n"
        "    url = 'redis://old'\n"
        "    def __init__(self): super().__init__(); self.url = 'redis://old'\n"
        "    def clone(self): return Old()\n"
        "    async def open(self): raise SchemaError('this schema is of the day before yesterday')\n"
        "jobs = JobQueue(Old())\n"
        "@jobs.job\n"
        "async def work(): ...\n"
    )
    with Supervised(store_url, "refused", cwd=tmp_path, workers=2) as fleet:
        assert fleet.ends() == 4
        assert "the day before yesterday" in fleet.stderr()


@socket_only
def test_a_silent_loop_is_killed_and_its_stacks_stand_in_the_jobs_history(store_url: str) -> None:
    enqueue(store_url, app.block.options(max_losses=1).prepare(1))
    with Supervised(store_url, workers=1, watchdog=2, burst=True) as fleet:
        fleet.log("its loop has been silent")
        assert "in block" in fleet.log("its stacks")
        assert fleet.ends() == 1
    [job] = dead(store_url)
    assert job.history is not None
    assert "in block" in job.history[-1].traceback
    assert job.history[-1].error == "watchdog"
    assert "its event loop had not turned for 2." in job.history[-1].message


@socket_only
def test_the_watchdog_leaves_a_slow_lifespan_alone(store_url: str, tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(
        "import asyncio\n"
        "from contextlib import asynccontextmanager\n"
        "from fastjobs import JobQueue\n"
        "from tests.processes.app import tell\n"
        "@asynccontextmanager\n"
        "async def lifespan():\n"
        "    await asyncio.sleep(2.5)\n"
        "    yield\n"
        "    await asyncio.sleep(2.5)\n"
        "jobs = JobQueue(lifespan=lifespan)\n"
        "jobs.registry.add(tell.handler)\n"
    )
    enqueue(store_url, app.tell.prepare(1))
    with Supervised(store_url, "slow", cwd=tmp_path, workers=1, watchdog=2, burst=True) as fleet:
        fleet.expect("ran", job=1)
        assert fleet.ends() == 0
        assert "silent" not in fleet.stderr()


@socket_only
def test_a_job_that_no_time_limit_stops_has_its_worker_replaced_and_fails(store_url: str) -> None:
    with Supervised(store_url, workers=1, env={"TEST_STUCK_S": "0.1"}, worker={"grace": 0.3}) as fleet:
        enqueue(store_url, app.stubborn.options(max_attempts=2).prepare(1), app.hold.prepare(2))
        first = fleet.expect("started", job=1)
        fleet.log("a job of it cannot be stopped")
        beside = fleet.expect("started", job=2)
        again = fleet.expect("started", job=2)
        assert beside["pid"] == first["pid"] != again["pid"]
        assert again["losses"] == 0
        fleet.expect("started", job=1)
        fleet.send(signal.SIGTERM)
        fleet.ends()


@socket_only
def test_such_a_job_has_no_more_attempts_than_its_handler_allows(store_url: str) -> None:
    enqueue(store_url, app.stubborn.prepare(1))
    with Supervised(store_url, workers=1, env={"TEST_STUCK_S": "0.1"}, worker={"grace": 0.3}, burst=True) as fleet:
        assert fleet.ends() == 1
    [job] = dead(store_url)
    assert (job.attempts, [failure.kind for failure in job.history or []]) == (1, ["timeout"])


@linux_only
@socket_only
def test_maintenance_is_replaced_and_the_workers_do_not_notice(store_url: str) -> None:
    with Supervised(store_url, workers=2, worker={"grace": 0}) as fleet:
        enqueue(store_url, app.hold.prepare(1))
        worker = fleet.expect("started")["pid"]
        workers = {worker} | {child.pid for child in fleet.children()}
        maintenance = _maintenance(fleet)
        fleet.kill(maintenance)
        fleet.log("maintenance (process")
        assert _maintenance(fleet) != maintenance
        fleet.kill(worker)
        fleet.expect("started", job=1, losses=1)
        assert workers & {child.pid for child in fleet.children()} == workers - {worker, maintenance}
        fleet.send(signal.SIGTERM)
        fleet.ends()


@linux_only
@socket_only
def test_a_stop_while_maintenance_waits_for_its_restart_gives_the_jobs_back_all_the_same(store_url: str) -> None:
    with Supervised(store_url, workers=1, worker={"grace": 600}) as fleet:
        enqueue(store_url, app.hold.prepare(1))
        fleet.expect("started")
        for _ in range(5):  # the next one would start in 1.6 s
            fleet.kill(_maintenance(fleet))
            fleet.log("maintenance (process")
        fleet.send(signal.SIGTERM)
        fleet.log("draining")
        fleet.send(signal.SIGTERM)
        assert fleet.ends() == 128 + signal.SIGTERM
    assert [(job.attempts, job.losses) for job in ready(store_url)] == [(0, 0)]
    assert leases(store_url) == {}


@linux_only
@socket_only
def test_a_silent_maintenance_is_replaced(store_url: str) -> None:
    with Supervised(store_url, workers=1, worker={"grace": 0, "lease_ttl": 3}) as fleet:
        enqueue(store_url, app.hold.prepare(1))
        worker = fleet.expect("started")["pid"]
        fleet.progress(ready=0)  # maintenance has shown itself
        fleet.kill(_maintenance(fleet), signal.SIGSTOP)
        fleet.log("has been silent")
        fleet.kill(worker)
        fleet.expect("started", job=1, losses=1)
        fleet.send(signal.SIGTERM)
        fleet.ends()


def _maintenance(fleet: Supervised) -> int:
    """Its pid, once it is there."""
    while not (found := [child.pid for child in fleet.children() if child.name() == "fj-maintenance"]):
        fleet.progress()
    return found[0]


# -- number, code, limits ---------------------------------------------------------------------------------------------


@socket_only
def test_sigttin_and_sigttou_change_the_number_of_workers(store_url: str) -> None:
    with Supervised(store_url, workers=1) as fleet:
        fleet.progress(workers=1)
        fleet.send(signal.SIGTTIN)
        fleet.log("2 workers now")
        fleet.progress(workers=2)
        fleet.send(signal.SIGTTOU)
        fleet.log("1 worker now")
        fleet.progress(workers=1)
        fleet.send(signal.SIGTTOU)
        fleet.send(signal.SIGTTIN)
        fleet.log("2 workers now")
        fleet.send(signal.SIGTERM)
        assert fleet.ends() == 0


APP = """
from fastjobs import JobQueue
from tests.processes.events import say
from tests.processes.app import hold_until
VERSION = {version}
jobs = JobQueue()
@jobs.job
async def version():
    say("ran", version=VERSION)
jobs.registry.add(hold_until.handler)
"""


@each_server
def test_sighup_loads_new_code_in_the_same_process_and_loses_nothing(store_url: str, tmp_path: Path) -> None:
    fifo, code = tmp_path / "fifo", tmp_path / "shop.py"
    os.mkfifo(fifo)
    code.write_text(APP.format(version=1))
    with Supervised(store_url, "shop", cwd=tmp_path, workers=2) as fleet:
        enqueue(store_url, app.jobs.prepare("version"), app.hold_until.prepare(7, str(fifo)))
        fleet.expect("ran", version=1)
        holder = fleet.expect("started", job=7)["pid"]
        # Of another size: Python takes a source of the same size and second for the one it has compiled.
        code.write_text(APP.format(version=2) + "# newer\n")
        fleet.send(signal.SIGHUP)
        assert fleet.expect("up")["pid"] == fleet.process.pid
        fifo.write_text("go on")
        assert fleet.expect("ran", job=7)["pid"] == holder
        _wait_until_gone(fleet, holder)
        enqueue(store_url, *(app.jobs.prepare("version") for _ in range(4)))
        while (event := fleet.expect("ran"))["version"] == 1:
            enqueue(store_url, app.jobs.prepare("version"))
        assert event["version"] == 2
        fleet.send(signal.SIGTERM)
        assert fleet.ends() == 0
        assert fleet.final()["done"] >= 6
    assert leases(store_url) == {}


@socket_only
def test_new_code_may_have_thousands_of_handlers(store_url: str, tmp_path: Path) -> None:
    """What one image leaves to the next is more than a string of the environment may hold."""
    many = "for n in range(3000): jobs.job(name=f'a_handler_with_an_ordinary_name_{n:04}')(lambda: None)\n"
    code = tmp_path / "shop.py"
    code.write_text(APP.format(version=1) + many)
    with Supervised(store_url, "shop", cwd=tmp_path, workers=1) as fleet:
        code.write_text(APP.format(version=2) + many + "# newer\n")
        fleet.send(signal.SIGHUP)
        fleet.expect("up", reloaded=True)
        enqueue(store_url, app.jobs.prepare("version"))
        fleet.expect("ran")
        fleet.send(signal.SIGTERM)
        assert fleet.ends() == 0


@socket_only
def test_a_trial_that_hangs_gives_way_to_the_next(store_url: str, tmp_path: Path) -> None:
    code = tmp_path / "shop.py"
    code.write_text(APP.format(version=1))
    with Supervised(store_url, "shop", cwd=tmp_path, workers=1) as fleet:
        code.write_text("import time\ntime.sleep(600)\n")
        fleet.send(signal.SIGHUP)
        fleet.log("loading new code")
        code.write_text(APP.format(version=2) + "# newer\n")
        fleet.send(signal.SIGHUP)
        fleet.log("the import that is under way is given up")
        fleet.expect("up", reloaded=True)
        fleet.send(signal.SIGTERM)
        assert fleet.ends() == 0


@socket_only
def test_broken_new_code_leaves_the_old_one_running(store_url: str, tmp_path: Path) -> None:
    code = tmp_path / "shop.py"
    code.write_text(APP.format(version=1))
    with Supervised(store_url, "shop", cwd=tmp_path, workers=1) as fleet:
        fleet.progress(workers=1)
        before = {child.pid for child in fleet.children()}
        code.write_text("import nothing_of_that_name\n")
        fleet.send(signal.SIGHUP)
        assert "nothing_of_that_name" in fleet.log("the old one stays")
        enqueue(store_url, app.jobs.prepare("version"))
        assert fleet.expect("ran", version=1)["pid"] in before
        fleet.send(signal.SIGTERM)
        assert fleet.ends() == 0


@socket_only
def test_a_worker_is_replaced_after_so_many_jobs(store_url: str) -> None:
    enqueue(store_url, *(app.tell.prepare(n) for n in range(40)))
    with Supervised(store_url, workers=1, worker={"max_jobs": 10, "batch": 5}) as fleet:
        fleet.log("it has run")
        first = fleet.expect("ran")["pid"]
        _wait_until_gone(fleet, first)
        enqueue(store_url, app.tell.prepare(99))
        assert fleet.expect("ran", job=99)["pid"] != first
        fleet.send(signal.SIGTERM)
        assert fleet.ends() == 0
        assert fleet.final()["done"] == 41
        runs = Counter(event["pid"] for event in fleet.seen if event["what"] == "ran")
        assert max(runs.values()) <= 10


@linux_only
@socket_only
def test_a_worker_is_replaced_when_it_has_grown(store_url: str) -> None:
    with Supervised(store_url, workers=1, worker={"max_rss_mb": 200}) as fleet:
        enqueue(store_url, app.grow.prepare(300))
        fleet.log("MiB of resident memory")
        enqueue(store_url, app.tell.prepare(1))
        fleet.expect("ran", job=1)
        fleet.send(signal.SIGTERM)
        assert fleet.ends() == 0


# -- processes --------------------------------------------------------------------------------------------------------


@linux_only
@socket_only
def test_as_pid_1_it_reaps_orphans(store_url: str) -> None:
    with Supervised(store_url, workers=1, subreaper=True) as fleet:
        enqueue(store_url, app.orphan.prepare())
        fleet.expect("ran")
        fleet.progress()
        fleet.progress()
        assert [child for child in fleet.children() if child.status() == psutil.STATUS_ZOMBIE] == []
        fleet.send(signal.SIGTERM)
        assert fleet.ends() == 0


@socket_only
def test_a_job_that_cancels_the_tasks_of_its_worker_counts_losses(store_url: str) -> None:
    enqueue(store_url, app.cancel_everything.prepare(), *(app.tell.prepare(n) for n in range(5)))
    with Supervised(store_url, workers=1, burst=True) as fleet:
        fleet.log("a handler cancelled the tasks of its worker")
        assert fleet.ends() == 1
        assert [event["losses"] for event in fleet.seen if event["what"] == "started"] == [0, 1, 2]
        assert sorted({event["job"] for event in fleet.seen if event["what"] == "ran"}) == list(range(5))
    assert len(dead(store_url)) == 1


@socket_only
def test_sigusr1_shows_the_stacks_of_all_children(store_url: str) -> None:
    with Supervised(store_url, workers=2, worker={"grace": 0}) as fleet:
        enqueue(store_url, app.hold.prepare(1))
        fleet.expect("started")
        fleet.send(signal.SIGUSR1)
        names = [fleet.log("stacks of worker"), fleet.log("stacks of worker"), fleet.log("stacks of maintenance")]
        assert all("most recent call first" in stacks for stacks in names[:2])
        while fleet.stderr().count("most recent call first") < 3:
            fleet.progress()
        fleet.send(signal.SIGTERM)
        fleet.ends()


@socket_only
@pytest.mark.parametrize("how", [{"preload": False}, {"env": {"TEST_APP_THREAD": "1"}}], ids=["told", "threads"])
def test_without_preload_each_process_imports_the_app(store_url: str, how: dict[str, Any]) -> None:
    enqueue(store_url, *(app.tell.prepare(n) for n in range(3)))
    with Supervised(store_url, workers=2, burst=True, **how) as fleet:
        if "env" in how:
            assert "tracing" in fleet.log("starts threads")
        assert fleet.ends() == 0
        assert sorted(event["job"] for event in fleet.seen if event["what"] == "ran") == [0, 1, 2]


@socket_only
def test_output_of_the_children_comes_in_whole_lines(store_url: str) -> None:
    enqueue(store_url, app.speak.prepare("hello\nworld"))
    with Supervised(store_url, workers=1, burst=True, relay=True) as fleet:
        assert fleet.ends() == 0
        lines = "".join(event["text"] for event in fleet.seen if event["what"] == "output" and event["stream"] == 1)
    assert lines == "hello\nworld\n"


# -- memory:// --------------------------------------------------------------------------------------------------------


def test_memory_is_served_to_workers_and_to_other_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    with Supervised("memory://", workers=2) as fleet:
        url = _broker_url(fleet, monkeypatch)
        enqueue(url, app.tell.prepare(1))
        fleet.expect("ran", job=1)
        fleet.send(signal.SIGHUP)
        fleet.expect("up", reloaded=True)
        enqueue(url, app.tell.prepare(2))
        fleet.expect("ran", job=2)
        fleet.send(signal.SIGTERM)
        assert fleet.ends() == 0
        assert fleet.final()["done"] == 2


def test_a_second_supervisor_of_the_same_memory_is_refused(tmp_path: Path) -> None:
    shared = {"XDG_RUNTIME_DIR": str(tmp_path)}
    with Supervised("memory://", workers=1, env=shared) as first:
        second = Supervised("memory://", workers=1, env=shared)
        try:
            assert second.ends() != 0
            assert "a supervisor of this app runs here already" in second.stderr()
        finally:
            second.__exit__(None, None, None)
        first.progress(workers=1)
        first.send(signal.SIGTERM)
        assert first.ends() == 0


@linux_only
def test_the_end_of_the_broker_is_the_end_of_the_store(monkeypatch: pytest.MonkeyPatch) -> None:
    with Supervised("memory://", workers=2) as fleet:
        url = _broker_url(fleet, monkeypatch)
        enqueue(url, app.hold.prepare(1))
        fleet.expect("started")
        fleet.kill(next(child.pid for child in fleet.children() if child.name() == "fj-broker"))
        fleet.log("its jobs are lost")
        assert fleet.ends() == 1


def _broker_url(fleet: Supervised, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where a producer in another process finds the store."""
    from fastjobs.backends.broker import socket_path

    monkeypatch.setenv("XDG_RUNTIME_DIR", str(fleet.directory))
    fleet.progress(workers=2)
    return f"memory+unix://{socket_path(app.jobs.app_id)}"


def _wait_until_gone(fleet: Supervised, pid: int) -> None:
    while pid in {child.pid for child in fleet.children()}:
        fleet.progress()
