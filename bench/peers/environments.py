"""A virtual environment per peer, made from its pinned requirements and kept until they change."""

from __future__ import annotations

import subprocess
import sys
from functools import cache
from pathlib import Path

from measure import Trouble

HERE = Path(__file__).parent
KEPT_IN = HERE / ".envs"


@cache
def interpreter(package: str, python: str) -> Path:
    """The Python that has *package*. Trouble if it cannot be installed here."""
    requirements = HERE / "requirements" / f"{package}.txt"
    place = KEPT_IN / f"{package}-{spoken_by(python).rpartition('.')[0]}"
    stamp, wanted = place / "requirements.txt", requirements.read_text()
    if not stamp.exists() or stamp.read_text() != wanted:
        print(f"installing {package}", file=sys.stderr)
        _call(python, "-m", "venv", "--clear", str(place))
        _call(str(place / "bin" / "python"), "-m", "pip", "install", "-q", "-r", str(requirements))
        stamp.write_text(wanted)
    return place / "bin" / "python"


def spoken_by(python: str) -> str:
    """The version of the language."""
    return _tell(python, "import platform; print(platform.python_version())")


def version(package: str, python: Path) -> str:
    """Of *package*, installed there."""
    return _tell(str(python), f"from importlib.metadata import version; print(version({package!r}))")


def _tell(python: str, code: str) -> str:
    return subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def _call(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        errors = [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("ERROR")] or ["?"]
        raise Trouble(f"not run: cannot be installed here: {errors[-1]}")
