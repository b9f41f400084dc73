"""JSON lines that come from a file: every line is stored as it reads, told as refused, or blank."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
from hypothesis import strategies as st

from fastjobs import JobQueue
from fastjobs.backends.memory import MemoryBackend
from fastjobs.backends.memory_core import MemoryStore
from fastjobs.cli.enqueue import Bulk, Progress
from fastjobs.envelope import read_job
from fastjobs.options import EnqueueOptions
from tests.fuzz.strategies import damaged, json_values, noise, texts
from tests.fuzz.surface import Check, Surface

LIMIT = 300
"""Bytes of a payload."""

_LINES = (
    b'{"path": "a.png"}',
    b'{"path": "b", "width": 7}',
    b'{"path": 5}',
    b'{"pth": "a"}',
    b"[1]",
    b"null",
    b"",
    b"  ",
    b'{"path": "' + b"x" * LIMIT + b'"}',
    b'{"path": "\xf0\x9f\x98\x80\\u0000"}',
)
_ENDS = (b"\n", b"\n", b"\r\n", b"\n\n", b"\r", b"\0", b"\xef\xbb\xbf")

_odd = st.dictionaries(st.sampled_from(["path", "width"]) | texts, json_values, max_size=3)
_line = st.sampled_from(_LINES) | damaged(_LINES) | noise | _odd.map(lambda value: str(value).replace("'", '"').encode())
files = st.lists(st.tuples(_line, st.sampled_from(_ENDS)), max_size=6).map(
    lambda parts: b"".join(text + end for text, end in parts)
)


class _Told(Progress):
    """Counts what the user is told of."""

    def __init__(self) -> None:
        super().__init__(io.StringIO(), None)

    @property
    def lines(self) -> list[str]:
        return self._stream.getvalue().splitlines()


@contextmanager
def _shop() -> Iterator[Check]:
    core = MemoryStore()
    jobs = JobQueue(MemoryBackend(core), max_payload_bytes=LIMIT)

    @jobs.job
    async def resize(path: str, width: int = 800) -> None: ...

    jobs.load()
    with asyncio.Runner() as runner:

        def judge(text: bytes) -> bool:
            told = _Told()
            bulk = Bulk(jobs, "resize", EnqueueOptions(), io.BytesIO(text), told)
            runner.run(bulk.store())
            _judge(text, bulk, told.lines, [read_job(envelope).payload for envelope in core.peek("default", 1000)])
            core.purge("default")
            return bulk.stored > 0

        yield judge


def _judge(text: bytes, bulk: Bulk, told: list[str], payloads: list[bytes]) -> None:
    lines = text.split(b"\n")
    blank = sum(not line.removeprefix(b"\xef\xbb\xbf" if number == 0 else b"").strip() for number, line in enumerate(lines))
    assert bulk.stored + bulk.refused == len(lines) - blank
    assert len(payloads) == bulk.stored
    assert len(told) == bulk.refused
    assert all(line.startswith("line ") and line.isprintable() for line in told)
    stored = iter(payloads)
    for number, line in enumerate(lines, 1):
        text = line.removeprefix(b"\xef\xbb\xbf" if number == 1 else b"")
        if text.strip() and not any(said.startswith(f"line {number:,} refused") for said in told):
            _same(text, next(stored))


def _same(line: bytes, payload: bytes) -> None:
    sent: dict[str, Any] = msgspec.json.decode(line)
    arrived = msgspec.json.decode(payload)
    assert sent == {name: arrived[name] for name in sent}


SURFACE = Surface(name="JSON lines", inputs=files, opened=_shop, weight=10, offspring=4)
