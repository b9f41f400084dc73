"""A store under chaos, and the network between it and the machines: a proxy for each machine, or for each node of a cluster."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
from random import Random

import asyncpg

from fastjobs.backends import make_store
from fastjobs.backends.base import Store
from tests.chaos.machines import interpreter
from tests.chaos.proxy import Proxy
from tests.servers.postgres import PostgresServer
from tests.servers.redis import RedisCluster, RedisServer
from tests.stores import ClusterPlace, PostgresPlace, RedisPlace

KINDS = ("redis", "valkey", "postgres", "memory", "cluster")

FORGOTTEN_S = 3 * 3600.0
"""So much later the records of producers that were killed are pruned."""


class Arena:
    """One store. Subclasses say how its server is started, hit, and looked into."""

    can_crash = False  #: its server keeps what it has accepted over a crash
    may_repeat_after_crash = False  #: but may forget that jobs had been claimed or settled
    has_parts = False  #: it is of several processes, and recovers by itself when one of them is killed
    kicks = ""  #: how the server is told to end a connection

    def __init__(self, machines: list[str]) -> None:
        self.names = machines
        self.proxies: dict[str, Proxy] = {}

    def start(self) -> None:
        """Run the server and the proxies."""
        self._start()
        for proxy in self.proxies.values():
            proxy.start()

    def stop(self) -> None:
        """End all that was started."""
        for proxy in self.proxies.values():
            proxy.stop()
        self._stop()

    def url(self, machine: str) -> str:
        """Of the store, for *machine*."""
        raise NotImplementedError

    def direct_url(self) -> str:
        """Of the store, for the accounts: by no proxy."""
        raise NotImplementedError

    def net(self, machine: str) -> list[Proxy]:
        """The lines of *machine*."""
        return [self.proxies[machine]]

    def store(self) -> Store:
        """Unopened, by no proxy."""
        return make_store(self.direct_url())

    def pids(self, random: Random) -> list[int]:
        """Of the processes of a server that can be stopped for a while."""
        raise NotImplementedError

    def crash(self, random: Random) -> None:
        """End the server with no warning."""
        raise NotImplementedError

    def restart(self) -> None:
        """Run it again after a crash."""
        raise NotImplementedError

    def kill_part(self, random: Random) -> None:
        """Kill one of the server's processes, if there are several."""
        raise NotImplementedError

    def kick(self, random: Random) -> int:
        """Have the server end a connection picked at random. Returns how many."""
        raise NotImplementedError

    async def leftovers(self) -> list[str]:
        """What an empty system would not have."""
        store = self.store()
        try:
            store.time_shift_s = FORGOTTEN_S
            await store.housekeep()
        finally:
            await store.close()
        return await self._leftovers()

    def _start(self) -> None:
        raise NotImplementedError

    def _stop(self) -> None:
        raise NotImplementedError

    async def _leftovers(self) -> list[str]:
        raise NotImplementedError


class RedisArena(Arena):
    """A Redis or Valkey that has written to its file whatever it has answered."""

    can_crash = True
    kicks = "CLIENT KILL"

    def __init__(self, machines: list[str], kind: str) -> None:
        super().__init__(machines)
        self._server = RedisServer("redis" if kind == "redis" else "valkey", appendonly=True, appendfsync="always")

    def _start(self) -> None:
        self._server.start()
        self._place = RedisPlace(self._server)
        self.proxies = {name: Proxy(self._server.address) for name in self.names}

    def url(self, machine: str) -> str:
        return f"redis://{self.proxies[machine].address}/0?{self.direct_url().partition('?')[2]}"

    def direct_url(self) -> str:
        return self._place.url()

    def pids(self, random: Random) -> list[int]:
        return [self._server.pid]

    def crash(self, random: Random) -> None:
        self._server.kill()

    def restart(self) -> None:
        self._server.start()

    def kick(self, random: Random) -> int:
        return _kick(self._server, random)

    def _stop(self) -> None:
        self._server.stop()

    async def _leftovers(self) -> list[str]:
        return await self._place.leftovers()


def _kick(server: RedisServer, random: Random) -> int:
    ids = [
        line.split()[0].removeprefix("id=") for line in server.command("CLIENT", "LIST", "TYPE", "normal").splitlines() if line
    ]
    return int(server.command("CLIENT", "KILL", "ID", random.choice(ids))) if ids else 0


class ClusterArena(Arena):
    """Three primaries and three partitions; every node announces its proxy's port, so nobody goes past it."""

    can_crash = True
    kicks = "CLIENT KILL"

    def __init__(self, machines: list[str]) -> None:
        super().__init__(machines)
        self._cluster = RedisCluster(appendonly="yes", appendfsync="always")
        self._crashed: RedisServer | None = None

    def _start(self) -> None:
        self._cluster.start()
        self._place = ClusterPlace(self._cluster)
        self.proxies = {f"node {at}": Proxy(node.address) for at, node in enumerate(self._cluster.nodes, 1)}

    def start(self) -> None:
        super().start()
        self._announce()

    def _announce(self) -> None:
        for node, proxy in zip(self._cluster.nodes, self.proxies.values(), strict=True):
            with contextlib.suppress(OSError):
                node.command("CONFIG", "SET", "cluster-announce-port", proxy.address.rpartition(":")[2])

    def url(self, machine: str) -> str:
        hosts = ",".join(proxy.address for proxy in self.proxies.values())
        return f"redis://{hosts}/0?{self.direct_url().partition('?')[2]}"

    def direct_url(self) -> str:
        return self._place.url()

    def net(self, machine: str) -> list[Proxy]:
        return list(self.proxies.values())

    def pids(self, random: Random) -> list[int]:
        return [random.choice(self._cluster.nodes).pid]

    def crash(self, random: Random) -> None:
        self._crashed = random.choice(self._cluster.nodes)
        self._crashed.kill()

    def restart(self) -> None:
        assert self._crashed is not None
        self._crashed.start()
        self._announce()

    def kick(self, random: Random) -> int:
        return _kick(random.choice(self._cluster.nodes), random)

    def _stop(self) -> None:
        self._cluster.stop()

    async def _leftovers(self) -> list[str]:
        return await self._place.leftovers()


class PostgresArena(Arena):
    """As the tests' servers are: a crash of its processes loses what a crash of a real one would, no machine crashes here."""

    can_crash = True
    may_repeat_after_crash = True
    has_parts = True
    kicks = "pg_terminate_backend"

    def __init__(self, machines: list[str]) -> None:
        super().__init__(machines)
        self._server = PostgresServer(max_connections=200, shared_buffers="128MB", max_wal_size="2GB")

    def _start(self) -> None:
        self._server.start()
        self._place = PostgresPlace(self._server)
        directory = self._server.url.rpartition("host=")[2]
        self.proxies = {name: Proxy(f"{directory}/.s.PGSQL.5432") for name in self.names}

    def url(self, machine: str) -> str:
        schema = self.direct_url().rpartition("schema=")[2]
        return f"postgresql://postgres@{self.proxies[machine].address}/postgres?sslmode=disable&schema={schema}"

    def direct_url(self) -> str:
        return self._place.url()

    def pids(self, random: Random) -> list[int]:
        postmaster = self._server.pid
        with open(f"/proc/{postmaster}/task/{postmaster}/children") as file:
            return [postmaster, *map(int, file.read().split())]

    def crash(self, random: Random) -> None:
        if random.random() < 0.5:  # else `restart` shuts it down immediately
            self._server.kill()

    def restart(self) -> None:
        self._server.restart()

    def kill_part(self, random: Random) -> None:
        """The postmaster ends all sessions and recovers."""
        send([random.choice(self.pids(random)[1:])], signal.SIGKILL)

    def kick(self, random: Random) -> int:
        async def go() -> int:
            connection = await asyncpg.connect(self._server.url)
            try:
                pids = await connection.fetch("select pid from pg_stat_activity where application_name = 'fastjobs'")
                if not pids:
                    return 0
                await connection.execute("select pg_terminate_backend($1)", random.choice(pids)["pid"])
                return 1
            finally:
                await connection.close()

        return asyncio.run(go())

    def _stop(self) -> None:
        self._server.stop()

    async def _leftovers(self) -> list[str]:
        return await self._place.leftovers()


class MemoryArena(Arena):
    """The memory store in a process of its own. Its death would be the store's, so it is only stopped for a while."""

    def _start(self) -> None:
        self._process = subprocess.Popen(
            interpreter("-m", "tests.chaos.broker"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert self._process.stdout is not None
        self._url = self._process.stdout.readline().strip()
        path = self._url.partition("://")[2]
        self.proxies = {name: Proxy(path, listen="unix", name="broker.sock") for name in self.names}

    def url(self, machine: str) -> str:
        return f"memory+unix://{self.proxies[machine].address}"

    def direct_url(self) -> str:
        return self._url

    def pids(self, random: Random) -> list[int]:
        return [self._process.pid]

    def _stop(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.communicate()

    async def _leftovers(self) -> list[str]:
        said, _ = self._process.communicate(timeout=30)
        left: list[str] = json.loads(said)
        return left


def make_arena(kind: str, machines: list[str]) -> Arena:
    """The arena for a store of *kind*."""
    if kind == "postgres":
        return PostgresArena(machines)
    if kind == "memory":
        return MemoryArena(machines)
    if kind == "cluster":
        return ClusterArena(machines)
    return RedisArena(machines, kind)


def send(pids: list[int], number: int) -> None:
    """A signal to all of them that there are."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def stop_and_go(pids: list[int], *, go: bool) -> None:
    """Stop processes, or let them go on."""
    send(pids, signal.SIGCONT if go else signal.SIGSTOP)
