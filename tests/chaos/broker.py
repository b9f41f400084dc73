"""``python -m tests.chaos.broker``: a memory store in a process of its own.

Prints the URL of its broker; at the end of stdin what the store still holds, as JSON, and ends.
"""

from __future__ import annotations

import asyncio
import json
import sys

from tests.stores import MemoryPlace


def main() -> None:
    place = MemoryPlace()
    try:
        print(place.url(), flush=True)
        sys.stdin.read()
        print(json.dumps(asyncio.run(place.leftovers())), flush=True)
    finally:
        place.close()


if __name__ == "__main__":
    main()
