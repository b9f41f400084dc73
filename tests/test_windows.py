"""Windows: enqueue only. Simulated: what that system lacks cannot be imported."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import asyncio, os, subprocess, sys, tempfile
sys.platform = "win32"
for name in ("fcntl", "resource", "pwd", "uvloop"):
    sys.modules[name] = None
del os.fork, os.register_at_fork, os.getuid, os.geteuid, os.memfd_create
from fastjobs import JobQueue
jobs = JobQueue("memory://")

@jobs.job
async def resize(path: str) -> None: ...

async def main():
    await resize.enqueue("a.png")
    print(await jobs.process_one())

asyncio.run(main())
"""


def test_enqueueing_needs_nothing_that_windows_lacks() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "True\n"
