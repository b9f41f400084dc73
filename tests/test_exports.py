"""What `import fastjobs` gives, and what it costs."""

from __future__ import annotations

import ast
import inspect
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import fastjobs
from fastjobs import errors

ROOT = Path(fastjobs.__file__).parent.parent


def test_everything_promised_is_there_and_sorted() -> None:
    assert fastjobs.__all__ == sorted(fastjobs.__all__)
    for name in fastjobs.__all__:
        assert getattr(fastjobs, name) is not None


def test_every_export_has_a_docstring() -> None:
    for name in fastjobs.__all__:
        assert inspect.getdoc(getattr(fastjobs, name)), name


def test_every_error_has_the_one_base_and_stands_in_the_tree_that_the_module_draws() -> None:
    found = {name for name, kind in vars(errors).items() if inspect.isclass(kind) and issubclass(kind, Exception)}
    for name in found:
        assert issubclass(getattr(errors, name), fastjobs.FastjobsError)
    assert errors.__doc__ is not None
    drawn = {word for word in errors.__doc__.split() if word.isidentifier() and word in found}
    assert drawn == found


def test_every_error_that_users_meet_is_exported() -> None:
    internal = {"StaleCall", "WorkerGone"}
    found = {name for name, kind in vars(errors).items() if inspect.isclass(kind) and issubclass(kind, Exception)}
    assert found - internal <= set(fastjobs.__all__)


def test_a_config_error_is_a_value_error() -> None:
    assert issubclass(fastjobs.ConfigError, ValueError)


def test_no_store_library_is_imported_before_it_is_needed() -> None:
    code = "import sys, fastjobs; print(sorted({'redis', 'asyncpg', 'uvloop', 'click', 'pydantic'} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert done.stdout == "[]\n"


def test_with_the_pure_c_codec_no_module_needs_orjson() -> None:
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in sorted((ROOT / "fastjobs").rglob("*.py"))
        if path.name not in ("__init__.py", "__main__.py")
    ]
    code = f"import sys, importlib; sys.modules['orjson'] = None\nfor name in {modules}: importlib.import_module(name)"
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "FASTJOBS_CODEC": "msgspec"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=variables)
    assert done.returncode == 0, done.stderr


def test_the_package_is_marked_as_typed() -> None:
    assert (ROOT / "fastjobs" / "py.typed").is_file()


def test_the_version_is_that_of_the_distribution() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert fastjobs.__version__ == project["version"]


@pytest.mark.parametrize("path", sorted((ROOT / "fastjobs").rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_every_module_says_what_it_is_for(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree), path
