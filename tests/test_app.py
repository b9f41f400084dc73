"""Finding and importing the app, and what a user is told when that fails."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from fastjobs.app import find_spec, load_app, other_threads
from fastjobs.errors import AppImportError, ConfigError

APP = "from fastjobs import JobQueue\njobs = JobQueue()\n@jobs.job\nasync def resize(path: str): ...\n"


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory that names no app; what is imported in the test is forgotten."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FASTJOBS_APP", raising=False)
    monkeypatch.setattr(sys, "path", [*sys.path])
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if not name.startswith("fastjobs"):
            del sys.modules[name]


def test_the_attribute_is_jobs_unless_said(place: Path) -> None:
    (place / "shop1.py").write_text(APP + "other = JobQueue()\n")
    assert load_app("shop1") is sys.modules["shop1"].jobs
    assert load_app("shop1:other") is sys.modules["shop1"].other


def test_the_command_line_wins_over_the_environment_and_that_over_pyproject(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (place / "pyproject.toml").write_text('[tool.fastjobs]\napp = "by_file:jobs"\n')
    assert str(find_spec(None)) == "by_file:jobs"
    monkeypatch.setenv("FASTJOBS_APP", "by_environment")
    assert str(find_spec(None)) == "by_environment:jobs"
    assert str(find_spec("by_hand:queue")) == "by_hand:queue"


def test_the_nearest_pyproject_upwards_that_names_an_app_counts_and_its_directory_is_importable(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    below = place / "src" / "deep"
    below.mkdir(parents=True)
    (place / "pyproject.toml").write_text('[tool.fastjobs]\napp = "shop2:jobs"\n')
    (place / "src" / "pyproject.toml").write_text('[project]\nname = "something"\n')
    (place / "shop2.py").write_text(APP)
    monkeypatch.chdir(below)
    assert load_app().registry.names() == ["resize"]


def test_without_a_name_anywhere_the_three_ways_are_shown() -> None:
    with pytest.raises(ConfigError) as caught:
        load_app()
    assert str(caught.value).startswith("no app to run\n")
    for way in ("fastjobs supervise shop:jobs", "FASTJOBS_APP=shop:jobs", '[tool.fastjobs] app = "shop:jobs"'):
        assert way in str(caught.value)


@pytest.mark.parametrize(
    ("given", "meant"),
    [("shop.py", "shop:jobs"), ("./src/shop.py:queue", "src.shop:queue"), ("shop:", ""), ("a b", ""), ("", "")],
)
def test_a_malformed_name_is_refused_with_what_was_meant(given: str, meant: str) -> None:
    with pytest.raises(ConfigError, match="module:attribute") as caught:
        load_app(given)
    assert (f"did you mean {meant}?" if meant else "got ") in str(caught.value)


def test_a_pyproject_that_cannot_be_read_is_named(place: Path) -> None:
    (place / "pyproject.toml").write_text("[tool.fastjobs\n")
    with pytest.raises(ConfigError, match=r"pyproject\.toml cannot be read"):
        load_app()
    (place / "pyproject.toml").write_text("[tool.fastjobs]\napp = 3\n")
    with pytest.raises(ConfigError, match="must be a text"):
        load_app()


def test_a_module_that_is_not_there_is_named_with_where_it_was_looked_for(place: Path) -> None:
    with pytest.raises(AppImportError, match="no module named 'shop3'") as caught:
        load_app("shop3:jobs")
    assert str(place) in str(caught.value)
    assert sys.prefix not in str(caught.value)


def test_a_dot_for_a_colon_is_noticed(place: Path) -> None:
    (place / "shop4.py").write_text(APP)
    with pytest.raises(AppImportError, match=r"Did you mean shop4:jobs\?"):
        load_app("shop4.jobs")


def test_the_users_own_import_error_comes_with_its_own_frames_only(place: Path) -> None:
    (place / "shop5.py").write_text("import shop5_helper\n")
    (place / "shop5_helper.py").write_text("def connect():\n    return 1 / 0\nconnect()\n")
    with pytest.raises(AppImportError, match="ZeroDivisionError: division by zero") as caught:
        load_app("shop5")
    text = str(caught.value)
    assert 'shop5.py", line 1' in text
    assert 'shop5_helper.py", line 2, in connect' in text
    assert "importlib" not in text
    assert "fastjobs/app.py" not in text


def test_a_missing_library_of_the_user_is_no_missing_app(place: Path) -> None:
    (place / "shop6.py").write_text("import nothing_of_that_name\n")
    with pytest.raises(AppImportError, match="cannot import shop6:jobs: ModuleNotFoundError"):
        load_app("shop6")


def test_a_handler_that_cannot_be_one_is_told_without_a_traceback(place: Path) -> None:
    (place / "shop7.py").write_text(APP + "@jobs.job\nasync def bad(*paths: str): ...\n")
    with pytest.raises(AppImportError, match=r"cannot import shop7:jobs: .*bad") as caught:
        load_app("shop7")
    assert "Traceback" not in str(caught.value)


def test_an_annotation_that_cannot_be_stored_is_told_before_anything_runs(place: Path) -> None:
    (place / "shop8.py").write_text(APP + "@jobs.job\nasync def bad(thread: 'Nothing'): ...\n")
    with pytest.raises(AppImportError, match="bad"):
        load_app("shop8")


def test_a_script_that_ends_the_process_is_told_where_to_put_it(place: Path) -> None:
    (place / "shop9.py").write_text("raise SystemExit(0)\n")
    with pytest.raises(AppImportError, match="if __name__"):
        load_app("shop9")


def test_an_attribute_that_is_missing_or_no_queue_shows_those_that_are(place: Path) -> None:
    (place / "shop10.py").write_text("from fastjobs import JobQueue\nqueue = JobQueue()\ndef make(): ...\n")
    with pytest.raises(AppImportError, match=r"has no attribute 'jobs'; did you mean shop10:queue\?"):
        load_app("shop10")
    with pytest.raises(AppImportError, match=r"is no JobQueue but a function; did you mean shop10:queue\?"):
        load_app("shop10:make")
    (place / "shop11.py").write_text("x = 1\n")
    with pytest.raises(AppImportError, match="no JobQueue at all"):
        load_app("shop11")


def test_another_directory_goes_first(place: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "shop12.py").write_text("x = 1\n")
    (tmp_path / "elsewhere" / "shop12.py").write_text(APP)
    assert load_app("shop12", tmp_path / "elsewhere").registry.names() == ["resize"]
    assert sys.path[0] == str((tmp_path / "elsewhere").resolve())


def test_included_modules_are_imported_and_their_errors_are_the_users(place: Path) -> None:
    (place / "shop13.py").write_text("from fastjobs import JobQueue\njobs = JobQueue(include=['shop13_mail'])\n")
    (place / "shop13_mail.py").write_text("from shop13 import jobs\n@jobs.job\nasync def mail(to: str): ...\n")
    assert load_app("shop13").registry.names() == ["mail"]
    (place / "shop14.py").write_text("from fastjobs import JobQueue\njobs = JobQueue(include=['shop14_nothing'])\n")
    with pytest.raises(AppImportError, match="shop14_nothing"):
        load_app("shop14")


def test_threads_beside_the_main_one_are_named() -> None:
    ended = threading.Event()
    before = set(other_threads())
    thread = threading.Thread(target=ended.wait, name="exporter")
    thread.start()
    try:
        assert set(other_threads()) - before == {"exporter"}
    finally:
        ended.set()
        thread.join()
