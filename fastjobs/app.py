"""Find the app and import it: ``module:attribute`` from the command line, FASTJOBS_APP or pyproject.toml → its JobQueue."""

from __future__ import annotations

import importlib
import os
import sys
import threading
import tomllib
import traceback
from pathlib import Path
from types import ModuleType
from typing import Final, NamedTuple

from fastjobs.errors import AppImportError, ConfigError, FastjobsError
from fastjobs.queue import JobQueue

DEFAULT_ATTRIBUTE: Final = "jobs"

NO_APP: Final = """no app to run
  Name it:      fastjobs supervise shop:jobs
  or set it:    FASTJOBS_APP=shop:jobs, or [tool.fastjobs] app = "shop:jobs" in pyproject.toml"""


class Spec(NamedTuple):
    """Where an app is."""

    module: str
    attribute: str  #: may have dots
    beside: Path | None  #: directory of the pyproject.toml that named it

    def __str__(self) -> str:
        return f"{self.module}:{self.attribute}"


def load_app(spec: str | None = None, app_dir: str | Path | None = None) -> JobQueue:
    """Import the app, its `include` modules too, and resolve its handlers.

    *spec* is ``module:attribute``, the attribute ``jobs`` unless said; without it FASTJOBS_APP or ``[tool.fastjobs] app`` of
    the nearest pyproject.toml upwards from the working directory. *app_dir* (the working directory) goes first on sys.path.
    ConfigError if no app is named or its name is malformed; AppImportError if it cannot be imported.
    """
    found = find_spec(spec)
    extend_path(found, app_dir)
    module = _import(found)
    jobs = _attribute(module, found)
    try:
        jobs.load()
    except (Exception, SystemExit) as error:
        raise _import_failed(str(found), error) from error
    return jobs


def find_spec(spec: str | None) -> Spec:
    """The app that is meant. ConfigError if none is named anywhere, or not as ``module:attribute``."""
    if spec is not None:
        return parse_spec(spec, None)
    if named := os.environ.get("FASTJOBS_APP"):
        return parse_spec(named, None, "FASTJOBS_APP: ")
    for directory in (cwd := Path.cwd(), *cwd.parents):
        named = _named_in(directory / "pyproject.toml")
        if named is not None:
            return parse_spec(named, directory, f"[tool.fastjobs] app in {directory / 'pyproject.toml'}: ")
    raise ConfigError(NO_APP)


def _named_in(path: Path) -> str | None:
    """What ``[tool.fastjobs] app`` in the file *path* says, if it does. ConfigError if the file cannot be read."""
    if not path.is_file():
        return None
    try:
        with path.open("rb") as file:
            tool = tomllib.load(file).get("tool")
    except (OSError, ValueError) as error:  # no TOML, no UTF-8
        raise ConfigError(f"{path} cannot be read: {error}; name the app on the command line, or mend the file") from error
    settings = tool.get("fastjobs", {}) if isinstance(tool, dict) else {}
    if not isinstance(settings, dict):
        raise ConfigError(f'[tool.fastjobs] in {path}: must be a table with app = "shop:jobs" in it, got {settings!r:.100}')
    if unknown := sorted(settings.keys() - {"app"}):
        raise ConfigError(f"[tool.fastjobs] in {path}: no such setting: {', '.join(unknown)}; there is: app")
    app = settings.get("app")
    if app is not None and not isinstance(app, str):
        raise ConfigError(f'[tool.fastjobs] app in {path}: must be a text like "shop:jobs", got {app!r}')
    return app


def parse_spec(text: str, beside: Path | None, where: str = "") -> Spec:
    """*text* as a `Spec`. ConfigError, beginning with *where*, shows what was probably meant."""
    module, colon, attribute = text.strip().partition(":")
    names = [*module.split("."), *(attribute.split(".") if colon else [])]
    if module.endswith(".py") or not all(name.isidentifier() for name in names):
        stem = module.removesuffix(".py").replace("/", ".").strip(".")
        hint = f"; did you mean {stem}:{attribute or DEFAULT_ATTRIBUTE}?" if stem != module and stem else ""
        raise ConfigError(f"{where}an app is named as module:attribute, like shop:jobs, got {text!r}{hint}")
    return Spec(module, attribute or DEFAULT_ATTRIBUTE, beside)


def extend_path(spec: Spec, app_dir: str | Path | None) -> None:
    """Put the app's directory first on sys.path: *app_dir*, or the working directory and that of the naming pyproject.toml."""
    places = [Path(app_dir)] if app_dir is not None else [Path.cwd(), *([spec.beside] if spec.beside else [])]
    for place in reversed(places):
        entry = os.path.realpath(place)
        if entry in sys.path:
            sys.path.remove(entry)
        sys.path.insert(0, entry)


def _import(spec: Spec) -> ModuleType:
    try:
        return importlib.import_module(spec.module)
    except ModuleNotFoundError as error:
        if error.name is None or not (spec.module + ".").startswith(error.name + "."):
            raise _import_failed(str(spec), error) from error
        raise AppImportError(_not_found(spec, error.name)) from error
    except (Exception, SystemExit) as error:
        raise _import_failed(str(spec), error) from error


def _not_found(spec: Spec, missing: str) -> str:
    looked = "\n".join(f"    {place}" for place in sys.path if os.path.isdir(place) and not _is_library(place))
    parent, _, last = spec.module.rpartition(".")
    hint = f"\n  Did you mean {parent}:{last}?" if missing == spec.module and parent else ""
    return f"no module named {missing!r} (for the app {spec}). Looked in:\n{looked}\n  and the installed packages.{hint}"


def _is_library(place: str) -> bool:
    return place.startswith((sys.prefix, sys.base_prefix)) or place.endswith(".zip")


def _import_failed(app: str, error: BaseException) -> AppImportError:
    if isinstance(error, SystemExit):
        why = f"it ends the process while it is imported (SystemExit: {error.code})"
        return AppImportError(f"cannot import {app}: {why}; put what is to run under: if __name__ == '__main__':")
    if isinstance(error, FastjobsError):  # names file and line, or the value, by itself
        return AppImportError(f"cannot import {app}: {error}")
    return AppImportError(f"cannot import {app}: {type(error).__name__}: {error}\n{user_traceback(error)}")


def user_traceback(error: BaseException) -> str:
    """The traceback of *error* without the import system's frames and ours, indented."""
    ours = str(Path(__file__).parent) + os.sep
    summary = traceback.TracebackException.from_exception(error)
    part: traceback.TracebackException | None = summary
    while part is not None:
        kept = [frame for frame in part.stack if not frame.filename.startswith(("<frozen importlib", ours))]
        while kept and kept[0].filename == importlib.__file__:
            del kept[0]
        part.stack = traceback.StackSummary.from_list(kept)
        part = part.__cause__ or part.__context__
    return "".join(f"  {line}\n" for text in summary.format() for line in text.rstrip("\n").split("\n")).rstrip("\n")


def _attribute(module: ModuleType, spec: Spec) -> JobQueue:
    value: object = module
    for name in spec.attribute.split("."):
        try:
            value = getattr(value, name)
        except AttributeError:
            raise AppImportError(f"module {spec.module} has no attribute {spec.attribute!r}{_others(module)}") from None
    if not isinstance(value, JobQueue):
        raise AppImportError(f"{spec} is no JobQueue but {_article(type(value).__name__)}{_others(module)}")
    return value


def _others(module: ModuleType) -> str:
    """What else the user may have meant."""
    names = [name for name, value in vars(module).items() if isinstance(value, JobQueue)]
    if not names:
        return f"; it has no JobQueue at all: write {DEFAULT_ATTRIBUTE} = JobQueue() in it"
    return "; did you mean " + " or ".join(f"{module.__name__}:{name}" for name in names) + "?"


def _article(name: str) -> str:
    return f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"


def other_threads() -> list[str]:
    """Names of this process's threads but the main one, native ones included where the system tells (Linux)."""
    named = {thread.native_id: thread.name for thread in threading.enumerate() if thread is not threading.main_thread()}
    tasks = Path("/proc/self/task")
    if not tasks.is_dir():
        return sorted(named.values())
    found = []
    for task in tasks.iterdir():
        if int(task.name) != os.getpid():
            try:
                found.append(named.get(int(task.name)) or (task / "comm").read_text().strip())
            except OSError:  # it has ended meanwhile
                continue
    return sorted(found)
