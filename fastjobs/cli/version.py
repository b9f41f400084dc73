"""``fastjobs --version``: what a bug report needs."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from typing import Final

import fastjobs

PACKAGES: Final = ("uvloop", "redis", "hiredis", "asyncpg", "orjson", "msgspec", "click")


def lines() -> Iterator[str]:
    """fastjobs, Python, the system, then the packages it works with, without importing them."""
    yield f"fastjobs {fastjobs.__version__}"
    yield f"Python {platform.python_version()} ({platform.python_implementation()}), {platform.platform(aliased=True)}"
    for package in PACKAGES:
        yield f"{'redis-py' if package == 'redis' else package} {_version(package)}"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
