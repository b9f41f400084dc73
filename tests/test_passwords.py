"""Passwords in URLs: masked wherever a URL is shown, and refused where they would fall apart into host, port and database."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path

import psutil
import pytest

import fastjobs
from fastjobs.backends import check_password, make_store, mask_password
from fastjobs.backends.postgres import PostgresBackend
from fastjobs.errors import ConfigError, StoreUnavailable
from tests.fuzz.urls import Nowhere
from tests.servers.redis import RedisServer
from tests.stores import Server
from tests.test_cli_surroundings import SHOP

SECRET = "hunter2"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://me:hunter2@h:6379/0", "redis://me:***@h:6379/0"),
        ("redis://:hunter2@h", "redis://:***@h"),
        ("redis://h:6379/0", "redis://h:6379/0"),
        ("redis://a:7000,b:7001/0", "redis://a:7000,b:7001/0"),
        ("redis://[::1]:6379/0", "redis://[::1]:6379/0"),
        ("redis://me:hun/ter2@h", "redis://me:***@h"),
        ("redis://me:hun?ter2#x@h", "redis://me:***@h"),
        ("redis://me:p@ss/hunter2@h", "redis://me:***@h"),
        ("redis://h?password=hunter2&db=3", "redis://h?password=***&db=3"),
        ("redis://h?ssl_password=hunter2", "redis://h?ssl_password=***"),
        ("redis://h?pass%77ord=hunter2", "redis://h?pass%77ord=***"),
        ("postgresql://h/d?user=me&PASSWORD=hunter2", "postgresql://h/d?user=me&PASSWORD=***"),
        ("postgresql://h/d?passfile=/home/me/.pgpass", "postgresql://h/d?passfile=/home/me/.pgpass"),
        ("unix:///run/redis.sock?password=hunter2", "unix:///run/redis.sock?password=***"),
        ("redis:me:hunter2@h", "redis:***@h"),
    ],
)
def test_a_url_is_shown_without_its_password(url: str, shown: str) -> None:
    assert mask_password(url) == shown


@pytest.mark.parametrize(
    "password", ["hun/ter2", "hun?ter2", "hun#ter2", "p@ss/hunter2", "[hunter2", "1/hunter2", "?a=hunter2"]
)
@pytest.mark.parametrize("scheme", ["redis", "postgresql"])
def test_a_password_that_should_have_been_encoded_is_refused_without_showing_it(scheme: str, password: str) -> None:
    with pytest.raises(ConfigError, match="write / as %2F") as caught:
        make_store(f"{scheme}://me:{password}@h:1/0")
    assert "hun" not in "".join(traceback.format_exception(caught.value, limit=0))


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://h:5432/d?user=me@corp",
        "redis://me:p%40ss%2Fw@h/0",
        "redis://me:p@ss@h/0",
        "unix:///run/a@b.sock",
        "redis://[::1]:6379/0",
        "postgresql://me:pw@[::1]/d",
        "postgresql://a:1,[::1]:2/d?user=me@corp",
    ],
)
def test_a_url_with_these_signs_where_they_belong_is_taken(url: str) -> None:
    check_password(url)


def test_the_address_of_a_postgres_shows_no_password_when_it_is_printed() -> None:
    store = PostgresBackend("postgresql://me:hunter2@h/d")
    assert SECRET not in repr(store._address)


@pytest.mark.parametrize("url", ["redis://a,b", "redis://:7000,:7001", "redis://a:7000,b:7001"])
def test_cluster_nodes_that_do_not_answer_are_an_unavailable_store_whatever_the_url_leaves_out(url: str) -> None:
    async def opened() -> None:
        store = make_store(url)
        try:
            await store.open()
        finally:
            await store.close()

    with asyncio.Runner(loop_factory=Nowhere) as runner, pytest.raises(StoreUnavailable):
        runner.run(opened())


def test_a_socket_of_the_broker_is_named_by_its_absolute_path() -> None:
    with pytest.raises(ConfigError, match="absolute path"):
        make_store("memory+unix://run/x.sock")


# -- whole processes


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "shop.py").write_text(SHOP)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(fastjobs.__file__).parents[1]))
    monkeypatch.setenv("FASTJOBS_APP", "shop")
    monkeypatch.delenv("FASTJOBS_URL", raising=False)
    return tmp_path


def fastjobs_says(*arguments: str, url: str) -> str:
    """What the command prints, with -v where it may show tracebacks."""
    done = subprocess.run(
        [sys.executable, "-m", "fastjobs", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "FASTJOBS_URL": url},
    )
    assert done.returncode == 4
    return done.stdout + done.stderr


@pytest.mark.parametrize("arguments", ["-v stats", "-v bench --jobs 100 --backend", "supervise -v --burst -n 1"])
def test_no_command_shows_the_password_that_a_server_refuses(shop: Path, redis_server: Server, arguments: str) -> None:
    if not isinstance(redis_server, RedisServer):
        pytest.skip("needs a server of its own")
    url = redis_server.tcp_url.replace("//", f"//nobody:{SECRET}@", 1)
    said = fastjobs_says(*arguments.split(), *([url] if "--backend" in arguments else []), url=url)
    assert SECRET not in said
    assert "refused" in said or "invalid" in said


@pytest.mark.parametrize("command", ["-v stats", "-v enqueue post", "-v bench --jobs 100 --backend"])
@pytest.mark.parametrize("kind", ["redis", "postgresql"])
def test_no_command_shows_the_password_of_a_server_that_is_not_there(shop: Path, kind: str, command: str) -> None:
    url = f"{kind}://nobody:{SECRET}@127.0.0.1:1/0"
    said = fastjobs_says(*command.split(), *([url] if "--backend" in command else []), url=url)
    assert "error: " in said
    assert SECRET not in said


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("preload", ["--preload", "--no-preload"])
def test_no_process_of_a_supervisor_shows_the_password_to_ps(shop: Path, redis_server: Server, preload: str) -> None:
    if not isinstance(redis_server, RedisServer):
        pytest.skip("needs a server of its own")
    url = redis_server.tcp_url.replace(
        "//", f"//default:{SECRET}@", 1
    )  # a server without a password takes any of its default user
    environment = {**os.environ, "FASTJOBS_URL": url}
    command = [sys.executable, "-m", "fastjobs", "supervise", "-n", "1", preload]
    with (
        (shop / "said").open("w") as said,
        subprocess.Popen(command, env=environment, stdout=said, stderr=said) as supervisor,
    ):
        for process in _family(supervisor.pid):
            assert SECRET not in " ".join(process.cmdline()) + process.name()
        supervisor.send_signal(signal.SIGTERM)
    assert SECRET not in (shop / "said").read_text()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_no_process_of_a_measurement_shows_the_password_to_ps(shop: Path, redis_server: Server) -> None:
    if not isinstance(redis_server, RedisServer):
        pytest.skip("needs a server of its own")
    url = redis_server.tcp_url.replace("//", f"//default:{SECRET}@", 1)
    command = [sys.executable, "-m", "fastjobs", "bench", "-n", "1", "--scenario", "cpu", "--jobs", "1000000"]
    with (
        (shop / "said").open("w") as said,
        subprocess.Popen(command, env={**os.environ, "FASTJOBS_BENCH_URL": url}, stdout=said, stderr=said) as bench,
    ):
        family = _family(bench.pid)
        assert any("fastjobs.benchmark.fleet" in process.cmdline() for process in family)
        for process in family:
            assert SECRET not in " ".join(process.cmdline()) + process.name()
        bench.send_signal(signal.SIGTERM)
    assert SECRET not in (shop / "said").read_text()


def _family(pid: int) -> list[psutil.Process]:
    """The supervisor, its worker and its maintenance, once they are there."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
        if len(family) >= 3:
            return family
        time.sleep(0.02)
    raise AssertionError("the children do not come up")
