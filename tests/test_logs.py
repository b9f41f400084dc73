"""Logging as the command line sets it up."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec
import pytest

from fastjobs import logs
from fastjobs.context import Running, running
from fastjobs.ids import id_text, new_id
from fastjobs.model import ENVELOPE_VERSION, Job


@pytest.fixture(autouse=True)
def bare_root() -> Iterator[None]:
    """The levels as they were."""
    loggers = logging.getLogger(), logging.getLogger("fastjobs")
    levels = [logger.level for logger in loggers]
    yield
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


@contextmanager
def logging_to(style: logs.Style, **options: bool) -> Iterator[io.StringIO]:
    """Set up logging as in a fresh process; pytest's own handlers stand on the root logger only from here on."""
    root = logging.getLogger()
    before, root.handlers = root.handlers, []
    stream = io.StringIO()
    try:
        assert logs.set_up(style, stream=stream, **options)
        yield stream
    finally:
        root.handlers = before


@pytest.fixture
def in_a_job() -> Iterator[Job]:
    runner = Running()
    runner.job = Job(ENVELOPE_VERSION, 5, new_id(), "resize", "default", b"{}", 0.0)
    token = running.set(runner)
    yield runner.job
    running.reset(token)


def test_a_text_line_has_time_level_logger_and_message() -> None:
    with logging_to("text") as stream:
        logging.getLogger("shop").info("%d pictures", 3)
        logging.getLogger("shop").debug("not shown")
    assert stream.getvalue()[2] == ":"
    assert stream.getvalue()[8:] == " INFO  shop  3 pictures\n"


def test_every_record_inside_a_job_names_it_once(in_a_job: Job) -> None:
    id = id_text(in_a_job.id)
    with logging_to("text") as stream:
        logging.getLogger("shop").warning("small")
        logging.getLogger("shop").warning("%s is small", id)
    first, second = stream.getvalue().splitlines()
    assert first[8:] == f" WARN  shop  resize {id}: small"
    assert second[8:] == f" WARN  shop  {id} is small"


def test_json_lines_carry_job_and_traceback(in_a_job: Job) -> None:
    with logging_to("json") as stream:
        try:
            1 / 0  # noqa: B018
        except ZeroDivisionError:
            logging.getLogger("shop").exception("odd name \udcff")
    [line] = stream.getvalue().splitlines()
    record = msgspec.json.decode(line)
    assert record["message"] == "odd name \\udcff"
    assert (record["level"], record["logger"]) == ("ERROR", "shop")
    assert (record["job_id"], record["job_name"]) == (id_text(in_a_job.id), "resize")
    assert record["exc"].startswith("Traceback")
    assert record["exc"].endswith("ZeroDivisionError: division by zero")
    assert record["ts"].endswith("Z")


def test_nothing_is_set_up_where_the_user_has_done_so() -> None:
    with logging_to("text") as stream:
        handlers = logging.getLogger().handlers[:]
        assert not logs.set_up("json", stream=stream)
        assert logging.getLogger().handlers == handlers


def test_verbose_shows_fastjobs_own_details_only() -> None:
    with logging_to("text", verbose=True) as stream:
        logging.getLogger("fastjobs.worker").debug("ours")
        logging.getLogger("shop").debug("theirs")
    assert stream.getvalue()[8:] == " DEBUG fastjobs.worker  ours\n"


def test_over_a_live_line_each_record_wipes_it_first() -> None:
    with logging_to("text", over_live_line=True) as stream:
        logging.getLogger("shop").info("news")
    assert stream.getvalue().startswith("\r\x1b[2K")
