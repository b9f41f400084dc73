"""Logging as the command line sets it up: one text line or one JSON object per record, each with its job's id and name.

Only where the user's own code has not set up logging: nothing here runs once the root logger has a handler.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final, Literal, TextIO

import msgspec

from fastjobs.context import JobRecordFilter

Style = Literal["text", "json"]

LEVELS: Final = {"DEBUG": "DEBUG", "INFO": "INFO ", "WARNING": "WARN ", "ERROR": "ERROR", "CRITICAL": "FATAL"}

CLEAR_LINE: Final = "\r\x1b[2K"
"""Wipes what stands in the terminal's current line: the live line, which is drawn again a moment later."""


def set_up(style: Style, *, verbose: bool = False, stream: TextIO | None = None, over_live_line: bool = False) -> bool:
    """Log to *stream* (stderr) from INFO up, fastjobs' own records from DEBUG up if *verbose*.

    False, and nothing done, if the root logger has handlers. With *over_live_line* each record first wipes the line of the
    terminal it is written to.
    """
    root = logging.getLogger()
    if root.handlers:
        return False
    handler = LineHandler(stream or sys.stderr, CLEAR_LINE if over_live_line else "")
    handler.setFormatter(JsonLines() if style == "json" else TextLines())
    handler.addFilter(JobRecordFilter())
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    if verbose:
        logging.getLogger("fastjobs").setLevel(logging.DEBUG)
    return True


class LineHandler(logging.StreamHandler[TextIO]):
    """Writes each record in one piece, so that the lines of several processes on one terminal or pipe stay whole."""

    def __init__(self, stream: TextIO, before: str = "") -> None:
        super().__init__(stream)
        self._before = before

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self.stream.write(f"{self._before}{self.format(record)}\n")
            self.flush()
        except RecursionError:
            raise
        except Exception:
            self.handleError(record)


class TextLines(logging.Formatter):
    """``12:00:05 INFO  shop  message``, by this machine's clock; inside a job ``… shop  resize 0192…: message``."""

    def format(self, record: logging.LogRecord) -> str:
        clock_time = time.strftime("%H:%M:%S", time.localtime(record.created))
        level = LEVELS.get(record.levelname, record.levelname)
        message = record.getMessage()
        job_id: str = getattr(record, "job_id", "")
        if job_id and job_id not in message:
            message = f"{getattr(record, 'job_name', '')} {job_id}: {message}"
        return "\n".join((f"{clock_time} {level} {record.name}  {message}", *_details(record, self.formatException)))


class JsonLines(logging.Formatter):
    """One JSON object a line: ts (UTC), level, logger, message, job_id and job_name ("" outside jobs), pid, exc if any."""

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, object] = {
            "ts": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            "job_id": getattr(record, "job_id", ""),
            "job_name": getattr(record, "job_name", ""),
            "pid": record.process,
        }
        if details := _details(record, self.formatException):
            fields["exc"] = "\n".join(details)
        try:
            return msgspec.json.encode(fields).decode()
        except UnicodeEncodeError:  # lone surrogates, as in names of files that are no UTF-8
            clean = {key: _storable(value) for key, value in fields.items()}
            return msgspec.json.encode(clean).decode()


def _details(record: logging.LogRecord, describe: Callable[..., str]) -> list[str]:
    """Traceback and stack of *record*, as far as it has them."""
    details = []
    if record.exc_info and not record.exc_text:
        record.exc_text = describe(record.exc_info)
    if record.exc_text:
        details.append(record.exc_text)
    if record.stack_info:
        details.append(record.stack_info)
    return details


def _storable(value: object) -> object:
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value
