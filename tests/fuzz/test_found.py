"""Inputs that once made something else of themselves than what is documented: each failed before its fix."""

from __future__ import annotations

import struct
from typing import Any

import pytest

from fastjobs.envelope import encode_job
from fastjobs.model import MOST_COUNTED, Job
from fastjobs.slots import Word
from tests.fuzz.surfaces import SURFACES

BY_NAME = {surface.name: surface for surface in SURFACES}

_MANY_LOSSES = encode_job(Job(1, 0, bytes(16), "", "", b"", 0.0, 0, MOST_COUNTED, 1, 1))

FOUND: tuple[tuple[str, Any], ...] = (
    ("envelopes", _MANY_LOSSES),
    ("payload bytes", b'\x02{"packed":{"data":"AAAA"},"model":{"size":3},"colour":"red","sizes":{"1":1,"a"]}}'),
    ("store URLs", "redis://a,b"),
    ("store URLs", "redis://:[hunter2@[::1]"),
    ("store URLs", "redis://:p@ss/w:rd?#hunter2@localhost"),
    ("store URLs", "postgres://:hunter2@localhost"),
    ("store URLs", "memory+unix:///?password=hunter2"),
    ("store URLs", "memory+unix://:hunter2@localhost"),
    ("replies of a broker", ((0, []), (0, b"\x92\xaaWorkerGone\xa4gone"), b"")),
    ("replies of Redis", (3, b"\0\0")),
    ("replies of Redis", (2, b"\0")),
    ("replies of Redis", (4, [b"lease", b"x"])),
    ("replies of Redis", (7, [b"id", b"1", b"no letter"])),
    ("replies of Redis", (12, None)),
    ("bytes from Redis", b"-MOVED 5 \r\n"),
    ("bytes from Redis", b"-MOVED \x99 a:7\r\n"),
    ("slots", bytes(8 * Word.STATE) + struct.pack("Q", 99)),
    ("slots", bytes(8 * Word.EXIT_STATUS) + struct.pack("Q", 2**64 - 1)),
)


@pytest.mark.parametrize(("name", "value"), FOUND)
def test_what_was_found_once_is_refused_or_taken(name: str, value: Any) -> None:
    with BY_NAME[name].opened() as check:
        check(value)
