"""The broker of memory:// in a process of its own: ``python -m fastjobs.benchmark.broker SOCKET``. Says so once it serves."""

from __future__ import annotations

import sys

import uvloop

from fastjobs.backends.broker import serve


def main() -> None:
    """The entry of the process."""
    uvloop.run(serve(sys.argv[1], started=lambda: print("serving", flush=True)))


if __name__ == "__main__":
    main()
