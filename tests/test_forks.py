"""What a process forked from a worker has of the worker: nothing."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

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
