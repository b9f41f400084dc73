"""What a process leaves to a fresh interpreter: bytes in an unnamed file, whose descriptor stands in an environment variable.

Not the bytes themselves: on Linux one string of the environment ends at 128 KiB, which a few thousand handlers exceed.
"""

from __future__ import annotations

import os

from fastjobs.slots import memory_file


def leave(text: bytes) -> int:
    """The descriptor of a file that holds *text*, to be inherited. Close it once the heir is under way."""
    fd = memory_file("fastjobs-bequest")
    with open(fd, "wb", closefd=False) as file:
        file.write(text)
    os.lseek(fd, 0, os.SEEK_SET)
    os.set_inheritable(fd, True)
    return fd


def take(variable: str) -> bytes | None:
    """What was left to this process under *variable*, once; None if nothing was."""
    number = os.environ.pop(variable, None)
    if number is None:
        return None
    with open(int(number), "rb") as file:
        return file.read()
