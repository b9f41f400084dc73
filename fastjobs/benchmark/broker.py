"""The broker of memory:// in a process of its own: ``python -m fastjobs.benchmark.broker SOCKET``. Says so once it serves."""

from __future__ import annotations

import os
import sys

import uvloop

from fastjobs.backends.broker import serve
from fastjobs.children import end_with


def main() -> None:
    """The entry of the process."""
    end_with(os.getppid(), 0)
    uvloop.run(serve(sys.argv[1], started=lambda: print("serving", flush=True)))


if __name__ == "__main__":
    main()
