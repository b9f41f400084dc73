"""Children's output, read by the supervisor so that it can be shown above a live line."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Final

READ_BYTES: Final = 65_536

LONGEST_LINE: Final = 1 << 20
"""A line longer than this is passed on in pieces."""

Output = Callable[[int, bytes], None]
"""Takes a stream, 1 or 2, and whole lines with their newlines."""


def write_through(stream: int, lines: bytes) -> None:
    """The output that passes everything on as it is."""
    while lines:
        lines = lines[os.write(stream, lines) :]


class Relay:
    """Two pipes that all children write to, in place of their stdout and stderr. *pipes*: those of a handover, or []."""

    def __init__(self, output: Output, pipes: list[int]) -> None:
        self._output = output
        self.pipes = pipes or [*os.pipe(), *os.pipe()]  #: stdout's read and write end, stderr's read and write end
        self._rest = {self.pipes[0]: b"", self.pipes[2]: b""}
        for fd in self.read_ends:
            os.set_blocking(fd, False)

    @property
    def read_ends(self) -> tuple[int, int]:
        """For the supervisor."""
        return self.pipes[0], self.pipes[2]

    @property
    def write_ends(self) -> tuple[int, int]:
        """For children: in place of 1 and 2."""
        return self.pipes[1], self.pipes[3]

    def pass_on(self, *, final: bool = False) -> None:
        """Hand over all whole lines that have come; with *final* what is left of one too."""
        for stream, fd in enumerate(self.read_ends, start=1):
            self._read(stream, fd)
            if final and self._rest[fd]:
                self._output(stream, self._rest[fd] + b"\n")
                self._rest[fd] = b""

    def _read(self, stream: int, fd: int) -> None:
        while True:
            try:
                data = os.read(fd, READ_BYTES)
            except BlockingIOError:
                return
            whole, newline, rest = (self._rest[fd] + data).rpartition(b"\n")
            if len(rest) > LONGEST_LINE:
                whole, newline, rest = whole + newline + rest, b"\n", b""
            if whole or newline:
                self._output(stream, whole + newline)
            self._rest[fd] = rest
            if len(data) < READ_BYTES:
                return
