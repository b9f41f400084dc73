"""``fastjobs bench``: every scenario on every store, each job counted, and nothing left behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from fastjobs.backends import make_store
from fastjobs.benchmark import place, scenarios
from fastjobs.benchmark.place import place_at
from fastjobs.benchmark.run import SCENARIOS, check
from fastjobs.cli.bench import lines
from fastjobs.errors import ConfigError, WorkerError
from fastjobs.model import Entry
from tests.stores import Place

servers = pytest.mark.parametrize("store_kind", ["redis", "postgres"])


def bench(*args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fastjobs", "bench", "-n", "2", *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)


def results(*args: str) -> dict[str, Any]:
    done = bench("--json", *args)
    assert done.returncode == 0, done.stderr
    return {result["scenario"]: result for result in msgspec.json.decode(done.stdout)["results"]}


def test_all_scenarios_run_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    found = results("--jobs", "1000", "--scenario", "all")
    assert list(found) == list(SCENARIOS)
    assert (found["noop"]["jobs"], found["retry"]["jobs"], found["cpu"]["jobs"]) == (1000, 300, 10)
    assert found["cpu"]["worker_cpu_us"] > 2000
    assert found["latency"]["p50_ms"] <= found["latency"]["p99_ms"] <= found["latency"]["p999_ms"]
    assert 0 < found["loaded"]["load_per_s"] < found["noop"]["drain_per_s"]


@servers
async def test_on_a_server_jobs_stand_apart_from_the_users_and_none_is_left(place: Place, store_kind: str) -> None:
    mine = place.backend()
    await mine.push("p", 1, 1, [Entry(bytes(16), "bench", 5, b"mine")])
    found = results("--jobs", "500", "--scenario", "noop", "--backend", place.url())
    assert found["noop"]["drain_per_s"] > 0
    assert found["noop"]["store_drain_cpu_us"] is not None
    assert [(queue.queue, queue.ready) for queue in (await mine.stats()).queues] == [("bench", 1)]
    await mine.purge("bench")
    await mine.close()


@servers
async def test_what_an_interrupted_run_left_is_not_counted_by_the_next(place: Place, store_kind: str) -> None:
    option = "schema" if store_kind == "postgres" else "namespace"
    left = make_store(re.sub(rf"{option}=\w+", f"{option}=fastjobs_bench", place.url()))
    await left.push("p", 1, 1, [Entry(bytes(16), "bench", 5, b"left")])
    await left.close()
    assert results("--jobs", "500", "--scenario", "noop", "--backend", place.url())["noop"]["jobs"] == 500


async def test_a_lost_job_fails_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scenarios, "SILENCE_S", 1.0)

    class Losing:
        """Counts one job more than was stored."""

        async def enqueue_many(self, calls: Any) -> int:
            return await jobs.enqueue_many(list(calls)[1:]) + 1

        async def __aenter__(self) -> None: ...

        async def __aexit__(self, *exc: object) -> None:
            await jobs.close()

    jobs = scenarios.jobs
    async with place.place_at("memory://") as at:
        with jobs.override(at.url):
            monkeypatch.setattr(scenarios, "jobs", Losing())
            meter = scenarios_meter(at)
            with pytest.raises(WorkerError, match="no job was done for 1 s; 99 of 100 are"):
                await scenarios.drain(at.url, meter, "noop", 100, 1, lambda what, share: None)


async def test_single_enqueues_that_store_nothing_fail_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    async def forgets(number: int) -> None: ...

    monkeypatch.setattr(scenarios, "noop", SimpleNamespace(enqueue=forgets))
    with scenarios.jobs.override("memory://"), pytest.raises(WorkerError, match="of 501 jobs 0 are in the store"):
        await scenarios.singles("single", 300, 10, lambda what, share: None)


async def test_workers_that_do_not_come_up_are_told_of_at_once() -> None:
    with scenarios.jobs.override("memory://"), pytest.raises(WorkerError, match="workers: must be from 1"):
        await scenarios.latency("unix:///no-such-store", "latency", 10, -1, 0.0, lambda what, share: None)


async def test_a_load_that_fails_fails_the_latency_beside_it() -> None:
    async with place.place_at("memory://") as at:
        with scenarios.jobs.override(at.url):
            process = await place.start_own("load", "broken://", "100")
            with pytest.raises(WorkerError, match="has failed"):
                scenarios._paced(await scenarios._end(process))


@servers
async def test_two_at_one_store_would_measure_each_other(place: Place, store_kind: str) -> None:
    async with place_at(place.url()):
        done = bench("--backend", place.url(), "--jobs", "500", "--scenario", "noop")
    assert (done.returncode, done.stdout) == (4, "")
    assert done.stderr.startswith("error: another `fastjobs bench` is at work on this store")
    assert bench("--backend", place.url(), "--jobs", "500", "--scenario", "noop").returncode == 0


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("scenario", ["cpu", "latency"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_however_it_ends_none_of_its_processes_is_left(scenario: str, number: signal.Signals, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "fastjobs", "bench", "--scenario", scenario, "--jobs", "1000000"]
    variables = {**os.environ, "TMPDIR": str(tmp_path)}
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=variables,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # what a shell starts with & ignores it
    )
    deadline = time.monotonic() + 60
    while not any("fleet" in command for command in _own(tmp_path)):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(number)
    said, _ = process.communicate(timeout=60)  # to the end: the last of its processes has closed the pipe
    assert said == ""
    assert process.returncode == {signal.SIGTERM: 143, signal.SIGINT: 130}.get(number, -number)
    while left := _own(tmp_path):
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


def _own(directory: Path) -> list[str]:
    """Command lines of the processes that work with *directory* as their TMPDIR."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if f"TMPDIR={directory}".encode() in (entry / "environ").read_bytes().split(b"\0"):
                found.append((entry / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:
            continue
    return found


def scenarios_meter(at: place.Place) -> Any:
    from fastjobs.benchmark.meters import meter_of

    return meter_of(at.url, at.broker)


def test_scenarios_come_in_the_order_of_the_table_with_what_they_need() -> None:
    assert check([]) == ["noop", "single", "latency"]
    assert check(["latency", "retry"]) == ["retry", "latency"]
    assert check(["loaded"]) == ["noop", "loaded"]
    with pytest.raises(ConfigError, match="there is no fast; there are: noop, "):
        check(["fast"])


def test_wrong_options_are_refused() -> None:
    for args, said in ((["--scenario", "x"], "--scenario: "), (["--jobs", "1"], "--jobs: "), (["-n", "0"], "--workers: ")):
        done = bench(*args)
        assert (done.returncode, done.stderr.startswith(f"error: {said}")) == (2, True)


def test_the_table_says_what_it_does_not_know() -> None:
    drained = scenarios.Drained(
        scenario="noop",
        jobs=1000,
        workers=2,
        enqueue_per_s=123456.7,
        drain_per_s=200000.0,
        producer_cpu_us=2.5,
        worker_cpu_us=2.0,
        store_enqueue_cpu_us=None,
        store_drain_cpu_us=None,
        worker_mib=5.5,
        tail_s=0.014,
    )
    head, row, *_ = lines([drained])
    assert row.split() == ["noop", "1,000", "123,457", "~200,000", "~100,000", "2.50", "2.00", "?", "5.5", "0.01"]
    assert head.split("  ")[0] == "scenario"
