"""`jobs.sync`: enqueue from plain code."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import fastjobs
from fastjobs import Call, ConfigError, EnqueueManyError, JobQueue
from fastjobs.syncdoor import SyncDoor
from tests.faults import FaultyBackend


@pytest.fixture
def jobs(store: FaultyBackend) -> Iterator[JobQueue]:
    queue = JobQueue(store)

    @queue.job
    async def work(number: int) -> None: ...

    yield queue
    queue.sync.close()


def call(jobs: JobQueue, number: int = 0) -> Call:
    return jobs.prepare("work", {"number": number})


def ready(jobs: JobQueue) -> int:
    return sum(queue.ready for queue in jobs.sync.stats().queues)


def doors() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "fastjobs-sync"]


def test_a_call_is_stored_when_enqueue_returns(jobs: JobQueue) -> None:
    handle = jobs.sync.enqueue(call(jobs))
    assert handle.name == "work"
    assert ready(jobs) == 1


def test_jobs_may_be_named_as_in_the_async_call(jobs: JobQueue) -> None:
    jobs.sync.enqueue("elsewhere", {"path": "a"}, priority=9, queue="mail")
    jobs.sync.enqueue("work", {"number": 5})
    assert {queue.queue: queue.ready for queue in jobs.sync.stats().queues} == {"mail": 1, "default": 1}


def test_many_are_stored_from_a_generator(jobs: JobQueue) -> None:
    assert jobs.sync.enqueue_many(call(jobs, number) for number in range(2_500)) == 2_500
    assert ready(jobs) == 2_500


def test_errors_are_raised_where_the_call_is(jobs: JobQueue) -> None:
    with pytest.raises(fastjobs.SerializationError):
        jobs.sync.enqueue("work", {"number": "five"})

    def broken() -> Iterator[Call]:
        yield call(jobs)
        raise OSError("no file")

    with pytest.raises(EnqueueManyError) as caught:
        jobs.sync.enqueue_many(broken())
    assert caught.value.accepted == 1


def test_several_threads_share_one_door(store: FaultyBackend, jobs: JobQueue) -> None:
    barrier = threading.Barrier(10)
    doors_seen: set[SyncDoor] = set()

    def serve() -> None:
        barrier.wait()
        door = jobs.sync
        doors_seen.add(door)
        for number in range(50):
            door.enqueue(call(jobs, number))

    before = len(doors())
    threads = [threading.Thread(target=serve) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ready(jobs) == 500
    assert len(doors_seen) == 1
    assert len(doors()) == before + 1


async def test_it_is_refused_where_an_event_loop_runs(jobs: JobQueue) -> None:
    with pytest.raises(ConfigError, match=r"await jobs\.enqueue"):
        jobs.sync.enqueue(call(jobs))
    with pytest.raises(ConfigError, match="await"):
        jobs.sync.enqueue_many([call(jobs)])
    assert jobs.sync.close() is None


async def test_a_thread_beside_a_running_loop_may_use_it(jobs: JobQueue) -> None:
    assert (await asyncio.to_thread(jobs.sync.enqueue, call(jobs))).name == "work"


def test_no_thread_is_started_before_the_first_call(store: FaultyBackend) -> None:
    before = len(doors())
    queue = JobQueue(store)
    assert isinstance(queue.sync, SyncDoor)
    assert len(doors()) == before
    queue.sync.close()


def test_closing_ends_the_thread_and_the_next_call_starts_anew(jobs: JobQueue) -> None:
    before = set(doors())
    jobs.sync.enqueue(call(jobs))
    (mine,) = set(doors()) - before
    jobs.sync.close()
    jobs.sync.close()
    assert not mine.is_alive()
    jobs.sync.enqueue(call(jobs))
    assert ready(jobs) == 2


FORKING = """
import os, sys
from fastjobs import JobQueue
jobs = JobQueue(sys.argv[1])
jobs.sync.enqueue("work", {"from": "parent"})
for _ in range(3):
    if os.fork() == 0:
        jobs.sync.enqueue("work", {"from": "child"})
        os._exit(0)
statuses = [os.wait()[1] for _ in range(3)]
jobs.sync.enqueue("work", {"from": "parent"})
print(statuses, sum(queue.ready for queue in jobs.sync.stats().queues))
"""


@pytest.mark.parametrize("store_kind", ["socket"], indirect=True)
async def test_a_forked_child_gets_a_thread_and_connections_of_its_own(store_url: str) -> None:
    root = str(Path(fastjobs.__file__).parent.parent)
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-W", "ignore", "-c", FORKING, store_url],
        capture_output=True,
        text=True,
        timeout=30,
        env={**os.environ, "PYTHONPATH": root},
        check=False,
    )
    assert done.stdout == "[0, 0, 0] 5\n", done.stderr


def test_a_script_that_never_closes_the_door_ends_all_the_same() -> None:
    root = str(Path(fastjobs.__file__).parent.parent)
    done = subprocess.run(
        [sys.executable, "-c", "from fastjobs import JobQueue\nJobQueue('memory://').sync.enqueue('work')\nprint('end')"],
        capture_output=True,
        text=True,
        timeout=30,
        env={**os.environ, "PYTHONPATH": root},
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "end\n")
