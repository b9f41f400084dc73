"""Ports of the loopback for the servers of tests."""

from __future__ import annotations

import random
import socket

LOWEST, HIGHEST = 15_000, 32_000  # below what Linux and macOS give to clients, so that no connection takes one in between


def free_port() -> int:
    """A port that nobody listens on now. OSError if there is none."""
    for port in random.SystemRandom().sample(range(LOWEST, HIGHEST), 1_000):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise OSError(f"no free port between {LOWEST} and {HIGHEST}")
