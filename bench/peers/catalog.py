"""The peers: which adapter, package, stores, and what a job that a row counts is worth."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from measure import Trouble

EARLY = "is lost: acknowledged before it ran"
SWEPT = "is aborted by a sweep, unless retries > 1"


@dataclass(frozen=True, slots=True)
class Peer:
    """One peer on one store: a row."""

    name: str  #: also of its adapter
    store: str
    guarantee: str  #: what a job does whose worker is killed, by default
    package: str  #: of its version; its requirements are a file of the same name
    first: int = 2_000  #: jobs of the first look at its rate
    redis_from: tuple[int, int] | None = None  #: the oldest Redis it runs on

    @property
    def row(self) -> str:
        """Unique."""
        return f"{self.name} on {self.store}"


def _peers() -> Iterator[Peer]:
    yield Peer("fastjobs", "redis", "runs again at once", "fastjobs", 50_000)
    yield Peer("fastjobs", "postgres", "runs again at once", "fastjobs", 50_000)
    yield Peer("pgqueuer", "postgres", "runs again after 30 s", "pgqueuer", 5_000)
    yield Peer("ardiq", "redis", "runs again after a minute", "ardiq", 5_000)
    yield Peer("arq", "redis", "runs again after 310 s", "arq", 400)
    yield Peer("saq", "redis", SWEPT, "saq", 400)
    yield Peer("saq", "postgres", SWEPT, "saq", 200)
    yield Peer("dramatiq", "redis", "runs again after a minute or more", "dramatiq", 800)
    yield Peer("taskiq", "redis", "runs again after 10 min", "taskiq", 800)
    yield Peer("celery", "redis", EARLY, "celery", 200)
    yield Peer("celery_solo", "redis", EARLY, "celery", 200)
    yield Peer("rq", "redis", "is marked as failed, unless it has a Retry", "rq", 100)
    yield Peer("huey", "redis", EARLY, "huey", 800)
    yield Peer("procrastinate", "postgres", "stays stalled, unless a task of yours retries it", "procrastinate", 200)
    yield Peer("chasquimq", "redis", "runs again once reclaimed", "chasquimq", 10_000, redis_from=(8, 6))


PEERS = tuple(_peers())
NAMES = tuple(dict.fromkeys(peer.name for peer in PEERS))


def refuse(peer: Peer, redis: str) -> None:
    """Trouble if *peer* cannot run on the server whose name and version *redis* tells ("Redis 8.2.3")."""
    if peer.redis_from is None:
        return
    kind, _, version = redis.partition(" ")
    if kind != "Redis" or tuple(map(int, version.split(".")[:2])) < peer.redis_from:
        wanted = ".".join(map(str, peer.redis_from))
        raise Trouble(f"not run: needs Redis {wanted}, here is {redis} (see --redis-server)")
