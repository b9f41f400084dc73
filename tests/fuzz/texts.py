"""Texts and values as users write them: durations, times, names, ids, options of every kind, the app's name."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from datetime import timedelta
from random import Random
from typing import Any

import click
from hypothesis import strategies as st

from fastjobs import EnqueueOptions, QueueOptions, RetryPolicy, WorkerOptions
from fastjobs.app import parse_spec
from fastjobs.cli.fields import AwareTime
from fastjobs.cli.terminal import cut, printable, width_of
from fastjobs.durations import LONGEST_S, duration_s, duration_text
from fastjobs.errors import ConfigError
from fastjobs.ids import id_text, parse_id
from fastjobs.options import HandlerOptions, check_name
from fastjobs.slots import lease_name, lease_ttl_s
from fastjobs.supervisor import SuperviseOptions
from tests.fuzz.strategies import numbers, scalars, wild_texts
from tests.fuzz.surface import Surface, plain

_PIECES = (
    "1",
    "90",
    "0",
    "-1",
    "1.5",
    ".",
    "1e9",
    "٣",
    "s",
    "m",
    "ms",
    "h",
    "d",
    "w",
    "M",
    " ",
    "+",
    "inf",
    "nan",
    "1_0",
    "*/5",
    "*",
    "?",
)
_durations = st.lists(st.sampled_from(_PIECES), max_size=6).map("".join) | st.sampled_from(
    ("*/5 * * * *", "@daily", "0 0 31 2 *", "9" * 400, f"{'9' * 400}s", "0.0000000001ms", "52w", "5220w")
)
durations = _durations | numbers | wild_texts | st.timedeltas() | st.none() | st.booleans()


def judge_duration(value: Any) -> bool:
    """Seconds that mean what was said, or a ConfigError that names the field."""
    try:
        seconds = duration_s(value, "delay")
    except ConfigError as error:
        assert str(error).startswith("delay: ")
        return False
    assert math.isfinite(seconds)
    assert 0 <= seconds <= LONGEST_S
    assert duration_text(seconds)
    if isinstance(value, timedelta):
        assert seconds == value.total_seconds()
    elif isinstance(value, (int, float)):
        assert seconds == value
    assert duration_s(f"{abs(seconds):f}s", "delay") == round(seconds, 6)
    return True


_KINDS = (EnqueueOptions, HandlerOptions, QueueOptions, WorkerOptions, SuperviseOptions, RetryPolicy)
_values = durations | scalars | st.lists(wild_texts, max_size=2) | st.sampled_from((5, 1, "mail", RetryPolicy(), ["a", "b"]))
_fields = {kind: [field.name for field in dataclasses.fields(kind)] for kind in _KINDS}
options = st.sampled_from(_KINDS).flatmap(
    lambda kind: st.tuples(st.just(kind), st.dictionaries(st.sampled_from(_fields[kind]), _values, max_size=3))
)


def judge_options(given: tuple[Callable[..., Any], dict[str, Any]]) -> bool:
    """Options that hold what was given, or a ConfigError that names the one that is wrong."""
    kind, values = given
    try:
        built = kind(**values)
    except ConfigError as error:
        assert any(name in str(error) for name in values), error
        assert len(str(error)) < 2_000
        return False
    if isinstance(built, RetryPolicy):
        assert all(0 <= built.delay_s(attempt, Random(1)) <= 2 * LONGEST_S for attempt in (1, 2, 1_000_000))
    return True


_SPECS = (
    "shop:jobs",
    "shop",
    "a.b:c.d",
    "shop.py",
    "./shop:jobs",
    ":",
    "a:",
    ":a",
    "a b:c",
    "os:system",
    "1:2",
    "ü:é",
    "a:b:c",
)
named = st.tuples(st.integers(0, 6), st.sampled_from(_SPECS) | wild_texts | st.text(max_size=60))


def judge_name(given: tuple[int, str]) -> bool:
    """A text where one of seven kinds of names is expected."""
    which, text = given
    try:
        if which == 0:
            assert id_text(parse_id(text)).replace("-", "") in text.lower().replace("-", "")
        elif which == 1:
            spec = parse_spec(text, None)
            assert all(name.isidentifier() for name in f"{spec.module}.{spec.attribute}".split("."))
        elif which == 2:
            assert check_name(text, "queue").encode()
        elif which == 3:
            assert AwareTime().convert(text, None, None).utcoffset() is not None
        elif which == 4:
            assert math.isfinite(lease_ttl_s(text, 15.0))
            assert lease_ttl_s(lease_name(15.0), 1.0) == 15.0
        elif which == 5:
            shown = printable(text)
            assert shown.isprintable()
            shown.encode("utf-8")
        else:
            assert width_of(cut(text, 10)) <= 10
    except (ConfigError, ValueError, click.BadParameter) as error:
        assert not isinstance(error, UnicodeError) and str(error)  # noqa: PT018
        return False
    return True


SURFACES = (
    Surface(name="durations", inputs=durations, opened=plain(judge_duration), weight=4),
    Surface(name="options", inputs=options, opened=plain(judge_options), weight=2),
    Surface(name="names, ids, times", inputs=named, opened=plain(judge_name), weight=4),
)
