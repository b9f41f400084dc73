"""Standard streams that are there, and that bear the end of their readers."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from typing import Any, Final, TextIO

GONE: Final = (BrokenPipeError, ConnectionResetError)


def open_missing() -> None:
    """Give this process the standard streams it was started without (``>&-``): a socket would take their numbers."""
    for fd, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(fd)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)  # the lowest number that is free: this one, as those below it are open
            os.set_inheritable(null, True)
        if getattr(sys, name) is None:
            setattr(sys, name, open(fd, mode, closefd=False))  # noqa: SIM115 - stays open


def turn_to_nowhere(fd: int) -> None:
    """Let what is still to be written to *fd* go: it cannot be written, and Python would say so once more at its end."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, fd)
    os.close(null)


def flush_standard() -> None:
    """Write out what print has buffered, before a fork or the end. What nobody reads any more is let go."""
    for stream, fd in ((sys.stdout, 1), (sys.stderr, 2)):
        try:
            stream.flush()
        except GONE:
            turn_to_nowhere(fd)
        except (OSError, ValueError, AttributeError):  # a full disk, closed, none: who printed has been told, or cannot be
            continue


def outlive_readers() -> None:
    """Let this process's own standard streams bear the end of their readers: ``fastjobs supervise 2>&1 | head -1``."""
    for name, fd in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name)
        with contextlib.suppress(OSError, ValueError, AttributeError):  # not one of the system's: whoever set it knows why
            if stream.fileno() == fd:
                setattr(sys, name, sturdy(stream, fd))


class _Raw(io.FileIO):
    """A descriptor that is turned to nowhere once its reader has gone."""

    def write(self, data: object) -> int:
        try:
            return super().write(data) or 0  # type: ignore[arg-type]
        except GONE:
            turn_to_nowhere(self.fileno())
            return memoryview(data).nbytes  # type: ignore[arg-type]


def sturdy(stream: TextIO, fd: int) -> TextIO:
    """A text stream like *stream* to *fd*. A handler that prints has not failed because nobody reads any more."""
    with contextlib.suppress(OSError, ValueError):
        stream.flush()
    raw: Any = _Raw(fd, "w", closefd=False)
    unbuffered = bool(getattr(stream, "write_through", False))  # python -u: no buffer at all
    return io.TextIOWrapper(
        raw if unbuffered else io.BufferedWriter(raw),
        encoding=stream.encoding,
        errors=stream.errors,
        line_buffering=bool(getattr(stream, "line_buffering", True)),
        write_through=unbuffered,
    )
