"""Drain rate of whole worker processes on a real store: enqueue N no-op jobs, then run them at least once, all counted.

    python bench/drain.py memory                                     # broker in one process, workers over its Unix socket
    python bench/drain.py redis://127.0.0.1:6379/9                   # the namespace bench-… of this store
    python bench/drain.py 'postgresql://postgres@/postgres?host=/run' --workers 2
    options: --jobs 300000 --workers 1 --rounds 3

Prints a line a round (enqueue and drain in jobs/s, CPU µs per job of producer and workers) and the medians. The clock runs from
the workers' start, forks included, until the last job is settled. Run the bare probe of the machine beside it and quote ratios.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable

import uvloop

from fastjobs import JobQueue, WorkerOptions
from fastjobs.backends import make_store
from fastjobs.ids import fresh_name
from fastjobs.slots import Slots, Word
from fastjobs.worker import Worker

jobs = JobQueue()


@jobs.job
async def noop(value: int) -> None:
    """Nothing, as quickly as possible."""


def fork(main: Callable[[], Awaitable[object]]) -> int:
    """Run *main* in a child on its own loop."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        uvloop.run(main())  # type: ignore[arg-type]
        status = 0
    finally:
        sys.stdout.flush()
        os._exit(status)


def wait(pid: int) -> None:
    """Wait for a child that must end well."""
    if os.waitpid(pid, 0)[1]:
        raise SystemExit("a child process failed")


async def fill(count: int, report: int) -> None:
    """Enqueue *count* jobs."""
    started, cpu = time.monotonic(), time.process_time()
    async with jobs:
        await jobs.enqueue_many(noop.prepare(i) for i in range(count))
    seconds, cpu = time.monotonic() - started, time.process_time() - cpu
    os.write(report, f"{count / seconds} {cpu / count * 1e6}\n".encode())


async def work(count: int, slots: Slots, index: int, lease: str, report: int) -> None:
    """One worker, until all workers together have done *count* jobs and nothing is leased."""
    backend = jobs.store()
    worker = Worker(backend, jobs, WorkerOptions(), lease=lease, slot=slots.slots[index])
    task = asyncio.create_task(worker.run())
    while slots.total(Word.DONE) < count:
        await asyncio.sleep(0.005)
        if task.done():
            break
    worker.drain()
    await task
    await backend.close()
    os.write(report, f"{time.process_time()}\n".encode())


def measure(count: int, workers: int) -> tuple[float, float]:
    """One round: (enqueue, drain) in jobs/s."""
    reading, writing = os.pipe()
    wait(fork(lambda: fill(count, writing)))
    slots, lease = Slots.create(workers, 100), fresh_name()
    started = time.monotonic()
    children = []
    for index in range(workers):
        slots.slots[index].words[Word.NUMBER] = index + 1
        children.append(fork(lambda index=index: work(count, slots, index, lease, writing)))  # type: ignore[misc]
    for child in children:
        wait(child)
    seconds = time.monotonic() - started
    os.close(writing)
    with os.fdopen(reading) as lines:
        enqueue, cpu = map(float, lines.readline().split())
        worker_cpu = sum(float(line) for line in lines) / count * 1e6
    done = slots.total(Word.DONE)
    if done != count:
        raise SystemExit(f"ran {done} of {count} jobs")
    print(
        f"enqueue {enqueue:>10,.0f} jobs/s ({cpu:.2f} µs CPU)   "
        f"drain {count / seconds:>10,.0f} jobs/s ({worker_cpu:.2f} µs CPU)",
        flush=True,
    )
    return enqueue, count / seconds


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store")
    parser.add_argument("--jobs", type=int, default=300_000)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    broker = None
    url = options.store
    if url == "memory":
        path = tempfile.mkdtemp(prefix="fjbench-") + "/broker.sock"
        broker = fork(lambda: _serve(path))
        while not os.path.exists(path):
            time.sleep(0.01)
        url = f"memory+unix://{path}"
    elif url.startswith(("redis", "unix", "valkey")):
        url += ("&" if "?" in url else "?") + "namespace=bench-drain"
    elif url.startswith("postgres"):
        url += ("&" if "?" in url else "?") + "schema=bench_drain"
    make_store(url)
    jobs.use(url)
    rounds = [measure(options.jobs, options.workers) for _ in range(options.rounds)]
    if broker is not None:
        os.kill(broker, signal.SIGTERM)
        os.waitpid(broker, 0)
    print(
        f"median enqueue {statistics.median(r[0] for r in rounds):,.0f} jobs/s, "
        f"drain {statistics.median(r[1] for r in rounds):,.0f} jobs/s ({options.workers} worker(s))"
    )


async def _serve(path: str) -> None:
    from fastjobs.backends.broker import serve

    await serve(path)


if __name__ == "__main__":
    main()
