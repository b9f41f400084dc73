"""What a process forked from a worker has of the worker: nothing."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from fastjobs.forks import EXIT_RETURNED
from tests.processes import app
from tests.processes.driver import Supervised
from tests.processes.stores import enqueue

socket_only = pytest.mark.parametrize("store_kind", ["socket"])
each_server = pytest.mark.parametrize("store_kind", ["socket", "redis", "postgres"])
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

# The hook registered first runs first in the copy: before it has shed anything.
EARLY = """
import os, signal, socket

os.register_at_fork(after_in_child=lambda: os.kill(os.getpid(), signal.SIGTERM))
from fastjobs.forks import Guard

ours, told = socket.socketpair()
ours.setblocking(False)
told.setblocking(False)
signal.signal(signal.SIGTERM, lambda *_: None)
signal.set_wakeup_fd(told.fileno())
with Guard(lambda: None, [signal.SIGTERM]):
    pid = os.fork()
    if not pid:
        os._exit(0)
    _, status = os.waitpid(pid, 0)
try:
    heard = ours.recv(10)
except BlockingIOError:
    heard = b""
print(os.waitstatus_to_exitcode(status), heard, signal.pthread_sigmask(signal.SIG_BLOCK, []))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no fork")
def test_a_signal_that_is_quicker_than_the_copy_is_the_copys_own() -> None:
    """`Pool.terminate` may end a process that has not run yet; its worker must not take that for an order to drain."""
    done = subprocess.run([sys.executable, "-c", EARLY], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == [str(-signal.SIGTERM), "b''", "set()"]


@linux_only
@socket_only
def test_a_handlers_own_children_do_not_have_the_mapping(store_url: str) -> None:
    with Supervised(store_url, workers=1) as fleet:
        enqueue(store_url, app.fork_and_look.prepare())
        assert fleet.expect("ran")["mapped"] is False
        fleet.send(signal.SIGTERM)
        assert fleet.ends() == 0


@socket_only
def test_a_handler_may_use_multiprocessing(store_url: str) -> None:
    """The processes of a pool are ended by SIGTERM, which is theirs and not their worker's."""
    enqueue(store_url, *(app.use_a_pool.prepare() for _ in range(4)))
    with Supervised(store_url, workers=1, worker={"concurrency": 2}, burst=True) as fleet:
        assert fleet.ends() == 0
        ran = [event for event in fleet.seen if event["what"] == "ran"]
        assert [event["job"] for event in ran] == [10] * 4
        assert len({event["pid_of_worker"] for event in ran}) == 1


@socket_only
def test_a_forked_process_that_comes_back_from_its_handler_is_ended(store_url: str) -> None:
    calls = [app.come_back_from_a_thread.prepare(), *(app.come_back_from_the_loop.prepare(fail=fail) for fail in (True, False))]
    enqueue(store_url, *calls)
    with Supervised(store_url, workers=1, burst=True) as fleet:
        for _ in calls:
            assert fleet.expect("ran")["ended"] == EXIT_RETURNED
        assert fleet.ends() == 0
        assert (fleet.final()["done"], fleet.final()["dead"]) == (3, 0)
        assert fleet.stderr().count("a process that") == 3


@linux_only
@each_server
def test_a_handlers_own_children_do_not_have_the_connections(store_url: str) -> None:
    with Supervised(store_url, workers=1) as fleet:
        enqueue(store_url, app.fork_and_look_at_sockets.prepare())
        event_loop = 2  # the pair that wakes uvloop for signals
        assert fleet.expect("ran")["sockets"] <= event_loop
        fleet.send(signal.SIGTERM)
        assert fleet.ends() == 0
