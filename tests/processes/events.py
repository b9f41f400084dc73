"""What happens in the processes of a test, as datagrams to the test."""

from __future__ import annotations

import json
import os
import socket
from typing import Any

VARIABLE = "TEST_EVENTS"
"""Path of the test's socket."""


def say(what: str, **details: Any) -> None:
    """Tell the test. Waits when the test is behind."""
    message = json.dumps({"what": what, "pid": os.getpid(), **details})
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as speaker:
        speaker.sendto(message.encode(), os.environ[VARIABLE])
