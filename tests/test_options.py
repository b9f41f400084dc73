"""Options: refused at the door, with the field in the message."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastjobs.errors import ConfigError
from fastjobs.options import EnqueueOptions, HandlerOptions, QueueOptions, WorkerOptions
from fastjobs.retry import RetryPolicy

NAMES = ["", " ", "a b", "a\n", "tab\t", "x" * 201, "nul\0", "\ud800", 5, b"mail", ["mail"]]
NUMBERS = [0, -1, 1.5, "3", True, [], 10**18, 10**300]


@pytest.mark.parametrize(
    ("kind", "field", "values"),
    [
        (EnqueueOptions, "queue", NAMES),
        (EnqueueOptions, "priority", [-1, 10, 1.0, "5", True, 10**300]),
        (EnqueueOptions, "max_attempts", NUMBERS),
        (EnqueueOptions, "max_losses", NUMBERS),
        (EnqueueOptions, "delay", [-1, "soon", True, float("nan"), timedelta(-1)]),
        (EnqueueOptions, "timeout", [0, -1, "0s", "never", float("inf")]),
        (EnqueueOptions, "run_at", ["tomorrow", 5, datetime(2030, 1, 1), timedelta(1)]),  # noqa: DTZ001
        (EnqueueOptions, "retry", [3, "exponential", {}, RetryPolicy]),
        (HandlerOptions, "name", NAMES),
        (HandlerOptions, "queue", NAMES),
        (HandlerOptions, "priority", [-1, 10, None.__class__]),
        (HandlerOptions, "max_attempts", NUMBERS),
        (HandlerOptions, "max_losses", NUMBERS),
        (HandlerOptions, "timeout", [0, "forever"]),
        (HandlerOptions, "retry", [3]),
        (HandlerOptions, "check", [None, 0, "no"]),
        (HandlerOptions, "isolate", [None, 1]),
        (HandlerOptions, "ctx", ["yes", 1]),
        (QueueOptions, "priority", [-1, 10]),
        (QueueOptions, "max_attempts", NUMBERS),
        (QueueOptions, "timeout", [0, -1]),
        (QueueOptions, "retry", [3]),
        (WorkerOptions, "concurrency", [0, -1, 10_001, 1.5, "100", True, None]),
        (WorkerOptions, "batch", [0, 10_001, 2.0, None]),
        (WorkerOptions, "grace", [-1, "soon", None]),
        (WorkerOptions, "lease_ttl", [0, -1, None]),
        (WorkerOptions, "unknown", ["ignore", None, True]),
        (WorkerOptions, "queues", [(), [], "mail", ("a b",), (1,), 5]),
        (WorkerOptions, "max_jobs", [0, "many", 1.5]),
        (WorkerOptions, "max_rss_mb", [0, "many"]),
        (WorkerOptions, "log_jobs", ["yes", 1, None]),
    ],
)
def test_a_bad_option_is_refused_and_named(kind: Callable[..., Any], field: str, values: list[Any]) -> None:
    for value in values:
        with pytest.raises(ConfigError, match=field):
            kind(**{field: value})


def test_no_attempts_at_all_is_refused_with_what_was_probably_meant() -> None:
    with pytest.raises(ConfigError, match="for no retries use 1"):
        EnqueueOptions(max_attempts=0)


def test_a_delay_and_a_time_exclude_each_other() -> None:
    with pytest.raises(ConfigError, match=r"run_at.*cannot stand beside a delay"):
        EnqueueOptions(delay=0, run_at=datetime.now(UTC))


def test_exception_filters_belong_on_the_handler() -> None:
    for policy in (RetryPolicy(retry_on=(ValueError,)), RetryPolicy(dead_on=(ValueError,))):
        with pytest.raises(ConfigError, match="belong on the handler"):
            EnqueueOptions(retry=policy)
        assert HandlerOptions(retry=policy).retry is policy


@pytest.mark.parametrize("kind", [EnqueueOptions, HandlerOptions, QueueOptions, WorkerOptions])
def test_options_without_arguments_say_nothing_and_are_frozen(kind: Any) -> None:
    options = kind()
    assert options == kind()
    with pytest.raises(AttributeError):
        setattr(options, next(iter(kind.__dataclass_fields__)), 3)
    with pytest.raises(TypeError):
        kind(5)


def test_queues_to_serve_may_be_a_list() -> None:
    queues: Any = ["mail", "video"]
    options = WorkerOptions(queues=queues)
    assert options.queues == ("mail", "video")
    assert hash(options) == hash(WorkerOptions(queues=("mail", "video")))


def test_the_largest_values_are_accepted() -> None:
    EnqueueOptions(queue="q" * 200, priority=9, max_attempts=1_000_000, max_losses=1_000, delay="100w")
    WorkerOptions(concurrency=10_000, batch=10_000, grace=0, lease_ttl=0.1, queues=("größe",))


@given(st.text(min_size=1, max_size=200))
def test_a_name_is_printable_without_spaces_or_refused(name: str) -> None:
    if name.isprintable() and " " not in name:
        assert EnqueueOptions(queue=name).queue == name
        name.encode()  # storable
    else:
        with pytest.raises(ConfigError, match=r"EnqueueOptions\(queue\)"):
            EnqueueOptions(queue=name)


anything = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.timedeltas() | st.datetimes()


@given(st.dictionaries(st.sampled_from(sorted(EnqueueOptions.__dataclass_fields__)), anything))
def test_any_enqueue_options_are_good_or_a_config_error(fields: dict[str, Any]) -> None:
    try:
        EnqueueOptions(**fields)
    except ConfigError as error:
        assert any(field in str(error) for field in fields)
