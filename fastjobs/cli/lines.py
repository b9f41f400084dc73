"""Lines of a stream, in constant memory, as they come."""

from __future__ import annotations

from typing import IO, Final, NamedTuple

CHUNK_BYTES: Final = 256 * 1024
"""Read at once: some thousands of usual payloads."""

BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"


class Line(NamedTuple):
    """One line without its end."""

    number: int  #: 1-based
    text: bytes | None  #: None: longer than the limit, and skipped


class Lines:
    """Cuts a binary stream into lines of at most *limit_bytes*; a longer one is skipped without being kept.

    `read_bytes` is how much of the stream has been used.
    """

    def __init__(self, stream: IO[bytes], limit_bytes: int) -> None:
        self.read_bytes = 0
        self.ended = False
        self._stream = stream
        self._limit = limit_bytes
        self._rest = b""
        self._skipping = False  # inside a line that is too long
        self._number = 0

    def next(self) -> list[Line]:
        """The lines that one read completes, perhaps none. Blocks until the stream gives something; after its end `ended`."""
        chunk = _read_some(self._stream)
        self.read_bytes += len(chunk)
        self.ended = not chunk
        return self._cut(chunk)

    def _cut(self, chunk: bytes) -> list[Line]:
        *whole, rest = (self._rest + chunk).split(b"\n")
        found = [self._line(text) for text in whole]
        if self.ended and (rest or self._skipping):
            found.append(self._line(rest))
            rest = b""
        if len(rest) > self._limit:
            self._skipping = True
        self._rest = b"" if self._skipping else rest
        return found

    def _line(self, text: bytes) -> Line:
        self._number += 1
        if self._number == 1:
            text = text.removeprefix(BYTE_ORDER_MARK)
        too_long, self._skipping = self._skipping or len(text) > self._limit, False
        return Line(self._number, None if too_long else text)


def _read_some(stream: IO[bytes]) -> bytes:
    """What the stream has now, at most `CHUNK_BYTES`; b"" at its end."""
    read = getattr(stream, "read1", stream.read)  # of a pipe: what is there, not until the chunk is full
    chunk: bytes = read(CHUNK_BYTES)
    return chunk
