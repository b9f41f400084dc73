"""``python tests/lowest.py``: in this environment, replace what fastjobs needs by the lowest versions that it says it takes."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"

BOUND = re.compile(r"([\w.-]+)(?:\[([\w,]+)\])?>=([\w.]+)")


def lowest(requirements: list[str]) -> list[str]:
    """``name==version`` for each ``name>=version``. ValueError for a requirement without a lower bound."""
    pinned = []
    for requirement in requirements:
        bound = BOUND.match(requirement)
        if bound is None:
            raise ValueError(f"{requirement!r} has no lower bound")
        name, extras, version = bound.groups()
        pinned.append(f"{name}{f'[{extras}]' if extras else ''}=={version}")
    return pinned


def requirements() -> list[str]:
    """What fastjobs and its extras need."""
    project = tomllib.loads(PYPROJECT.read_text())["project"]
    return [*project["dependencies"], *(each for extra in project["optional-dependencies"].values() for each in extra)]


def main() -> int:
    """Install them."""
    pinned = lowest(requirements())
    print(*pinned)
    return subprocess.run([sys.executable, "-m", "pip", "install", "-q", *pinned], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
