"""Durations and times as users write them."""

from __future__ import annotations

import math
import re
from datetime import datetime, timedelta
from typing import TypeAlias

from fastjobs.errors import ConfigError

Duration: TypeAlias = float | int | timedelta | str
"""Seconds, a timedelta, or text such as "90s", "5m", "2h30m", "1d", "500ms"."""

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d|w)")
_WHOLE = re.compile(r"(?:\d+(?:\.\d+)?(?:ms|s|m|h|d|w))+|\d+(?:\.\d+)?", re.ASCII)

LONGEST_S = 100 * 366 * 86400.0
"""A century: longer durations and later times are taken for mistakes (milliseconds given as seconds, mostly)."""


def duration_s(value: Duration, field: str, *, zero: bool = True) -> float:
    """*value* in seconds.

    ConfigError naming *field* if it is no duration, negative, not finite, over a century, or 0 without *zero*.
    """
    if isinstance(value, timedelta):
        seconds = value.total_seconds()
    elif isinstance(value, str):
        text = value.replace(" ", "").lower()
        if not _WHOLE.fullmatch(text):
            raise ConfigError(
                f'{field}: {value!r} is not a duration; use seconds, a timedelta, or text like "90s", "5m", "2h30m"'
            )
        parts = _PART.findall(text)
        seconds = sum(float(number) * _UNITS[unit] for number, unit in parts) if parts else float(text)
    elif isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ConfigError(
            f'{field}: a {type(value).__name__} is not a duration; use seconds, a timedelta, or text like "90s", "5m", "2h30m"'
        )
    else:
        seconds = value  # compared before float(): an int of a thousand digits would overflow
    if isinstance(seconds, float) and not math.isfinite(seconds):
        raise ConfigError(f"{field}: must be a finite number of seconds, got {value!r}")
    if seconds < 0 or (seconds == 0 and not zero):
        raise ConfigError(f"{field}: must be {'0 or more' if zero else 'above 0'}, got {value!r}")
    if seconds > LONGEST_S:
        raise ConfigError(f"{field}: more than a century; durations are in seconds")
    return float(seconds)


def epoch_s(value: datetime, field: str) -> float:
    """An aware datetime as seconds since the epoch. ConfigError naming *field* if it is naive or no datetime."""
    if not isinstance(value, datetime):
        raise ConfigError(f"{field}: must be an aware datetime, got a {type(value).__name__}")
    if value.tzinfo is None or value.utcoffset() is None:
        raise ConfigError(f"{field}: {value!r} has no timezone; use datetime.now(UTC) + … or .replace(tzinfo=UTC)")
    return value.timestamp()


def duration_text(seconds: float) -> str:
    """*seconds* as people read it: "0.42 s", "12.0 s", "5m 3s", "2h 30m", "4d 12h"."""
    if seconds < 10:
        return f"{seconds:.2f} s"
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for size, big, part, small in ((86400, "d", 3600, "h"), (3600, "h", 60, "m"), (60, "m", 1, "s")):
        if whole >= size:
            return f"{whole // size}{big} {whole % size // part}{small}"
    raise AssertionError(seconds)
