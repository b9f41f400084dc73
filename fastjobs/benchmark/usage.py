"""What processes of this machine have used, as /proc tells it; nothing where there is none."""

from __future__ import annotations

import os
from typing import Final

TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100


def cpu_of(pid: int) -> float | None:
    """CPU seconds of process *pid* and of its children that it has waited for; None where the system does not tell."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return None
    return sum(int(field) for field in fields[11:15]) / TICKS_PER_S


def private_bytes(pid: int) -> int:
    """Memory of *pid* that it shares with nobody; 0 where the system does not tell."""
    try:
        with open(f"/proc/{pid}/smaps_rollup") as file:
            return 1024 * sum(int(line.split()[1]) for line in file if line.startswith(("Private_Clean:", "Private_Dirty:")))
    except OSError:
        return 0


def children_of(pid: int) -> list[int]:
    """Process ids of its children."""
    try:
        with open(f"/proc/{pid}/task/{pid}/children") as file:
            return [int(child) for child in file.read().split()]
    except OSError:
        return []


def name_of(pid: int) -> str:
    """What `ps` calls it."""
    try:
        with open(f"/proc/{pid}/comm") as file:
            return file.read().strip()
    except OSError:
        return ""


def parent_of(pid: int) -> int | None:
    """The process that started it."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return int(file.read().rpartition(")")[2].split()[1])
    except OSError:
        return None
