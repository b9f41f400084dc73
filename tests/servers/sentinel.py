"""A primary, its replicas and the sentinels that watch them: private servers, as those of `tests.servers.redis`."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Literal

from tests.servers.redis import START_LIMIT_S, RedisServer

SERVICE = "mymaster"


class Sentinel(RedisServer):
    """One sentinel. *lines* of its configuration; it writes what it learns into a file of its own."""

    def __init__(self, kind: Literal["redis", "valkey"], *lines: str) -> None:
        super().__init__(kind)
        self._lines = lines

    def _command(self) -> list[str]:
        config = self._home / "sentinel.conf"
        if not config.exists():  # a restart goes on with what it knew
            own = (f"port {self._port}", "bind 127.0.0.1", f"unixsocket {self._socket}", f"dir {self._home}")
            config.write_text("\n".join((*own, *self._lines)) + "\n")
        return [str(self._bin), str(config), "--sentinel"]

    def primary(self) -> str:
        """Host and port that it names to clients."""
        found = dict(part.partition("=")[::2] for part in self._line().split(","))
        return found["address"]

    def replicas(self) -> int:
        """How many it knows of."""
        return int(dict(part.partition("=")[::2] for part in self._line().split(","))["slaves"])

    def _line(self) -> str:
        """What it says of the primary: ``name=mymaster,status=ok,address=127.0.0.1:6379,slaves=2,sentinels=3``."""
        lines = self.command("INFO", "sentinel").splitlines()
        return next(line.partition(":")[2] for line in lines if line.startswith("master0:"))


class RedisSentinel:
    """A primary with *replicas* copies, and *sentinels* that fail over when it has been away for 0.3 s.

    *settings* are those of the servers.
    """

    def __init__(
        self,
        kind: Literal["redis", "valkey"] = "valkey",
        *,
        replicas: int = 1,
        sentinels: int = 1,
        **settings: str,
    ) -> None:
        self._kind = kind
        self._count = sentinels
        quick = {"repl-diskless-sync-delay": "0", "repl-ping-replica-period": "1"}
        self.servers = [RedisServer(kind, **quick, **settings) for _ in range(1 + replicas)]
        self.sentinels: list[Sentinel] = []

    @property
    def hosts(self) -> str:
        """Of all sentinels."""
        return ",".join(sentinel.address for sentinel in self.sentinels)

    @property
    def url(self) -> str:
        """Without passwords."""
        return f"redis+sentinel://{self.hosts}/{SERVICE}/0"

    @property
    def primary(self) -> RedisServer:
        """The server that the first sentinel names."""
        named = self.sentinels[0].primary()
        return next(server for server in self.servers if server.address == named)

    @property
    def replicas(self) -> list[RedisServer]:
        """The others."""
        return [server for server in self.servers if server is not self.primary]

    def start(self) -> RedisSentinel:
        """Run all of them; about a second. Returns itself."""
        first, *copies = [server.start() for server in self.servers]
        host, _, port = first.address.partition(":")
        for server in copies:
            server.command("REPLICAOF", host, port)
        lines = [
            f"sentinel monitor {SERVICE} {host} {port} {self._count // 2 + 1}",
            f"sentinel down-after-milliseconds {SERVICE} 300",
            f"sentinel failover-timeout {SERVICE} 2000",
        ]
        self.until(lambda: all("master_link_status:up" in server.command("INFO", "replication") for server in copies))
        for _ in range(self._count):
            self.sentinels.append(Sentinel(self._kind, *lines))
            self.sentinels[-1].start()
        self.until(lambda: all(sentinel.replicas() == len(copies) for sentinel in self.sentinels))
        return self

    def stop(self) -> None:
        """Stop all of them. Idempotent."""
        for server in (*self.sentinels, *self.servers):
            server.stop()

    def fail_over(self) -> None:
        """By hand: the sentinels name another primary."""
        before = self.primary
        self.until(self._asked)
        self.until(lambda: self.primary is not before)

    def _asked(self) -> bool:
        try:
            self.sentinels[0].command("SENTINEL", "FAILOVER", SERVICE)
        except RuntimeError as error:
            if "NOGOODSLAVE" in str(error):  # it has not heard of the replica's state yet
                return False
            raise
        return True

    def until(self, holds: Callable[[], bool]) -> None:
        """Wait until *holds*: sentinels tell nobody."""
        deadline = time.monotonic() + START_LIMIT_S
        while not holds():
            if time.monotonic() > deadline:
                raise RuntimeError(f"the sentinels do not come to it: {[sentinel._line() for sentinel in self.sentinels]}")
            time.sleep(0.02)
