"""Durations and times as users write them."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastjobs.durations import LONGEST_S, duration_s, duration_text, epoch_s
from fastjobs.errors import ConfigError


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (0, 0.0),
        (1.5, 1.5),
        (90, 90.0),
        ("90s", 90.0),
        ("90", 90.0),
        ("0.5", 0.5),
        ("5m", 300.0),
        ("2h30m", 9000.0),
        ("2h 30m", 9000.0),
        ("1d", 86400.0),
        ("1w", 604800.0),
        ("500ms", 0.5),
        ("1m500ms", 60.5),
        ("1.5h", 5400.0),
        ("5M", 300.0),
        (timedelta(minutes=1, milliseconds=5), 60.005),
    ],
)
def test_a_duration_is_seconds_a_timedelta_or_text(value: Any, seconds: float) -> None:
    assert duration_s(value, "delay") == pytest.approx(seconds, rel=1e-12)


@pytest.mark.parametrize(
    "value",
    [
        "",
        " ",
        "s",
        "5 minutes",
        "5x",
        "-5s",
        "1e3",
        "1h-5m",
        "٥s",
        "5,5s",
        ".5s",
        "5.s",
        "inf",
        "nan",
        "9" * 400,
        "5m3",
        True,
        None,
        b"5s",
        [],
        {},
        complex(1),
        math.inf,
        -math.inf,
        math.nan,
        -0.001,
        -1,
        timedelta(seconds=-1),
        10**1000,
        -(10**1000),
        LONGEST_S * 1.01,
        timedelta.max,
        1700000000000,
    ],
)
def test_what_is_no_duration_is_refused_and_the_field_named(value: Any) -> None:
    with pytest.raises(ConfigError, match=r"^EnqueueOptions\(delay\): "):
        duration_s(value, "EnqueueOptions(delay)")


def test_zero_is_refused_where_it_makes_no_sense() -> None:
    assert duration_s(0, "delay") == 0.0
    for zero in (0, 0.0, "0s", timedelta()):
        with pytest.raises(ConfigError, match="above 0"):
            duration_s(zero, "timeout", zero=False)


@given(st.text(max_size=12) | st.floats() | st.integers() | st.timedeltas())
def test_any_value_is_a_finite_duration_or_a_config_error(value: Any) -> None:
    try:
        seconds = duration_s(value, "delay")
    except ConfigError:
        return
    assert 0 <= seconds <= LONGEST_S
    assert type(seconds) is float


@given(st.integers(0, 9999), st.sampled_from([("ms", 0.001), ("s", 1), ("m", 60), ("h", 3600), ("d", 86400), ("w", 604800)]))
def test_a_number_with_a_unit_is_so_many_of_it(number: int, unit: tuple[str, float]) -> None:
    name, size = unit
    if number * size <= LONGEST_S:
        assert duration_s(f"{number}{name}", "delay") == pytest.approx(number * size)


def test_an_aware_time_is_seconds_since_the_epoch() -> None:
    assert epoch_s(datetime(1970, 1, 2, tzinfo=UTC), "run_at") == 86400.0
    assert epoch_s(datetime(1970, 1, 1, 2, tzinfo=timezone(timedelta(hours=2))), "run_at") == 0.0


def test_a_naive_time_is_refused_with_the_fix() -> None:
    with pytest.raises(ConfigError, match=r"run_at: .*no timezone.*tzinfo=UTC"):
        epoch_s(datetime(2030, 1, 1), "run_at")  # noqa: DTZ001


@pytest.mark.parametrize("value", ["2030-01-01", 1.7e9, None, timedelta(1), datetime(2030, 1, 1).date()])  # noqa: DTZ001
def test_what_is_no_datetime_is_refused(value: Any) -> None:
    with pytest.raises(ConfigError, match="run_at: must be an aware datetime"):
        epoch_s(value, "run_at")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.00 s"),
        (0.42, "0.42 s"),
        (12, "12.0 s"),
        (303, "5m 3s"),
        (9000, "2h 30m"),
        (86400 * 4.5, "4d 12h"),
        (3599.7, "1h 0m"),
    ],
)
def test_a_duration_is_shown_as_people_read_it(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text


@given(st.floats(0, LONGEST_S))
def test_any_duration_can_be_shown(seconds: float) -> None:
    assert 1 <= len(duration_text(seconds)) < 20
