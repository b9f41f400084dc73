"""Which app this is: the name under which a supervisor's broker is found by producers and the command line."""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path
from types import FrameType


def caller_module() -> str:
    """The module that constructs a JobQueue: the first one outside fastjobs up the stack; the demo app counts as outside."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        name = str(frame.f_globals.get("__name__", ""))
        if not name.startswith("fastjobs.") or name == "fastjobs.demo":
            if name == "__main__":
                return _main_module(frame)
            return name
        frame = frame.f_back
    return "__main__"


def _main_module(frame: FrameType) -> str:
    """The name under which others would import the script that runs."""
    spec = frame.f_globals.get("__spec__")
    if spec is not None:
        return str(spec.name)
    file = frame.f_globals.get("__file__")
    return Path(file).stem if file else "__main__"


def app_id_of(module: str) -> str:
    """The app's id: its module and a digest of the directory that holds it."""
    loaded = sys.modules.get(module) or sys.modules["__main__"]
    file = getattr(loaded, "__file__", None)
    place = os.path.dirname(os.path.realpath(file)) if file else os.getcwd()
    return f"{module}-{hashlib.sha256(os.fsencode(place)).hexdigest()[:8]}"
