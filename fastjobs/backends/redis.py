"""The Redis and Valkey backend: lists of envelopes, moved by one Lua script per call (`lua/`), all keys in one hash slot.

A job is in exactly one key: a ready list, the delayed set, a claim's list, or the dead letters. No key that holds a job
expires. Needs Redis 6.2 or newer, or any Valkey.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, Final, TypeVar

import msgspec

from fastjobs.backends import check_password, mask_password
from fastjobs.backends.bundles import bundle
from fastjobs.backends.redis_link import Argument, Links, Script, load_script
from fastjobs.backends.redis_url import split_namespace
from fastjobs.errors import BackendError, StoreUnavailable
from fastjobs.model import MAX_PRIORITY, Adopted, DeadLetter, Entry, Exchanged, QueueStats, Settlement, Stats

OLDEST: Final = (6, 2)
"""Oldest Redis that was tried: fractional BLPOP timeouts came with 6.0, and `_moves.lua` rests on memory rules seen in 6.2."""

T = TypeVar("T")

_MOVING: Final = ("adopt", "dead_delete", "dead_requeue", "exchange", "push", "register", "renew")
_OTHERS: Final = ("dead_get", "dead_list", "peek", "purge", "retire", "stats", "wait", "workers")

SCRIPTS: Final[dict[str, Script]] = {name: load_script(name, moves=True) for name in _MOVING} | {
    name: load_script(name) for name in _OTHERS
}
"""By name of the call that they serve."""

_encode = msgspec.msgpack.Encoder().encode


class RedisBackend:
    """One app's jobs on a Redis or Valkey server.

    The URL is redis-py's (``redis://``, ``rediss://``, ``unix://``, its query options) plus ``?namespace=shop``: apps on one
    database are kept apart by their namespace. Use an object from one event loop; `clone` it for others.

    Of a Redis Cluster the URL may name several nodes, ``redis://a:7000,b:7000``: the one that holds the app's slot is found,
    and found again after a failover. `redis_partitions` spreads an app over several slots; *tag* and *agree* are its parts'.

    ``redis+sentinel://user:password@a:26379,b:26379/service/0`` is the primary that sentinels know as *service*, followed
    through failovers; with ``rediss+sentinel://`` TLS to both; ``sentinel_username=`` and ``sentinel_password=`` for them.

    *connect_timeout_s* and *call_timeout_s* (seconds) end in StoreUnavailable. ConfigError for a bad URL or namespace.
    """

    def __init__(
        self,
        url: str,
        *,
        namespace: str | None = None,
        tag: str | None = None,
        agree: Callable[[], Awaitable[None]] | None = None,
        connect_timeout_s: float = 5.0,
        call_timeout_s: float = 30.0,
    ) -> None:
        check_password(url)
        server, self.namespace = split_namespace(url, namespace)
        self.url = mask_password(url)
        self.time_shift_s = 0.0
        self._options = url, tag, agree, connect_timeout_s, call_timeout_s
        self._links = Links(server, connect_timeout_s, call_timeout_s)
        self._agree = agree or self._is_whole
        # In braces: what keeps all keys of an app, or of one partition of it, in one slot of a cluster.
        self._prefix = f"{{{self.namespace if tag is None else tag}}}:"
        self._queue_keys: dict[tuple[str, ...], tuple[str, ...]] = {}
        self._introduced = False

    async def open(self) -> list[str]:
        await self._introduce()
        policy = await self._setting("maxmemory-policy")
        appendonly, save = await self._setting("appendonly"), await self._setting("save")
        warnings = []
        if policy is not None and policy != "noeviction":
            warnings.append(
                f"Redis may delete stored jobs when its memory is full (maxmemory-policy {policy}):"
                " set maxmemory-policy noeviction"
            )
        if appendonly == "no":
            lost = "all jobs are" if save == "" else "jobs stored since its last snapshot are"
            warnings.append(f"If Redis stops, {lost} lost (appendonly no): set appendonly yes")
        return warnings

    async def close(self) -> None:
        await self._links.close()

    async def _introduce(self) -> None:
        """Before the first call: is this the server that we need?"""
        info = self._read("INFO", _info, await self._links.call("INFO", "server"))
        version = info.get("redis_version", "0")
        if "valkey_version" not in info and _version(version) < OLDEST:
            oldest = ".".join(map(str, OLDEST))
            raise BackendError(f"{self.url} runs Redis {version}; fastjobs needs Redis {oldest} or newer, or Valkey")
        mode = info.get("redis_mode", info.get("server_mode"))
        if mode == "sentinel":
            raise BackendError(f"{self.url} is a sentinel: use redis+sentinel://host:26379/mymaster")
        if mode == "cluster":
            self._links.learn(self._read("CLUSTER NODES", _nodes, await self._links.call("CLUSTER", "NODES")))
        elif self._links.many:
            raise BackendError(f"{self.url} names several servers, but the first that answers is no node of a Redis Cluster")
        await self._agree()
        self._introduced = True

    async def _is_whole(self) -> None:
        """BackendError if others have cut this app into partitions: they would never find what is stored here."""
        reply = await self._links.call("GET", partitions_key(self.namespace))
        if reply is not None:
            count = self._read("GET", int, reply)
            raise BackendError(
                f"the jobs of namespace {self.namespace} at {self.url} are kept in {count} partitions:"
                f" add partitions={count} to the URL's options, or use another namespace"
            )

    async def _run(self, script: Script, keys: tuple[str, ...], *arguments: Argument) -> Any:
        if not self._introduced:
            await self._introduce()
        return await self._links.run(script, keys, *arguments)

    def _read(self, what: str, read: Callable[[Any], T], reply: Any) -> T:
        """What *read* makes of a *reply*. BackendError if it is not what *what* replies: others have written to our keys."""
        try:
            return read(reply)
        except (ValueError, TypeError, AttributeError, LookupError) as error:
            raise BackendError(f"{self.url}: {what} replied what cannot be read: {reply!r:.200}") from error

    def clone(self) -> RedisBackend:
        url, tag, agree, connect_timeout_s, call_timeout_s = self._options
        twin = RedisBackend(
            url,
            namespace=self.namespace,
            tag=tag,
            agree=agree,
            connect_timeout_s=connect_timeout_s,
            call_timeout_s=call_timeout_s,
        )
        twin.time_shift_s = self.time_shift_s
        return twin

    # -- producers ------------------------------------------------------------------------------------------------------

    async def push(self, producer: str, seq: int, acked: int, entries: Sequence[Entry]) -> None:
        bundles, later = bundle(entries)
        for place in bundles:
            _check_priority(place.priority)
        for entry in later:
            _check_priority(entry.priority)
        plan = _encode(([(place.queue, place.priority, len(place.envelopes)) for place in bundles], _places(later)))
        keys = (f"{self._prefix}producer:{producer}",)
        ready = [envelope for place in bundles for envelope in place.envelopes]
        await self._run(SCRIPTS["push"], keys, self._prefix, seq, acked, self.time_shift_s, plan, *ready, *_stored(later))

    # -- workers --------------------------------------------------------------------------------------------------------

    async def register(self, worker: str) -> None:
        lease, dot, _ = worker.rpartition(".")
        if not dot:
            raise BackendError(f"a worker's id is <lease>.<number>, got {worker!r}")
        keys = (self._worker(worker), *self._lease(lease))
        await self._run(SCRIPTS["register"], keys, self._prefix, worker, lease)

    async def exchange(
        self, worker: str, n: int, settlements: Sequence[Settlement], queues: Sequence[str], limit: int
    ) -> Exchanged:
        keys = self._exchange_keys(worker, queues)
        plan, outcomes = _settlements(settlements)
        reply = await self._run(SCRIPTS["exchange"], keys, self._prefix, worker, n, self.time_shift_s, limit, plan, *outcomes)
        return self._read("exchange", _exchanged, reply)

    async def claim_when_ready(self, worker: str, n: int, queues: Sequence[str], limit: int, timeout_s: float) -> Exchanged:
        # On the server's side: a job that comes to an idle worker waits for one reply then, not for two.
        due_s = await self._due_in_s(queues)
        if timeout_s <= 0 or (due_s is not None and due_s <= 0):
            return await self.exchange(worker, n, (), queues, limit)
        bound_s, command = self._blocking(queues, timeout_s, due_s)
        keys = self._exchange_keys(worker, queues)
        call = (self._prefix, worker, n, self.time_shift_s, limit, _encode(()))
        reply = await self._links.block_and_run(bound_s, command, SCRIPTS["exchange"], keys, *call)
        return self._read("exchange", _exchanged, reply)

    async def wait(self, queues: Sequence[str], timeout_s: float) -> bool:
        if not queues:
            await asyncio.sleep(max(timeout_s, 0.0))
            return False
        due_s = await self._due_in_s(queues)
        if due_s is not None and due_s <= 0:
            return True
        if timeout_s <= 0:
            return False
        bound_s, command = self._blocking(queues, timeout_s, due_s)
        marker = await self._links.block(bound_s, *command)
        return marker is not None or (due_s is not None and due_s <= timeout_s)

    async def _due_in_s(self, queues: Sequence[str]) -> float | None:
        """Seconds until the first delayed job of *queues* is due, 0 if one is ready or due now, None if there is none."""
        return self._read("wait", _due_in_s, await self._run(SCRIPTS["wait"], self._keys_of(tuple(queues)), self.time_shift_s))

    def _blocking(self, queues: Sequence[str], timeout_s: float, due_s: float | None) -> tuple[float, tuple[str, ...]]:
        """How long to block for a wake-up, and the command."""
        # 0 would block for ever, and Redis 6.2 takes 0.001 for 0: it cuts what it makes of it to whole milliseconds.
        bound_s = max(timeout_s if due_s is None else min(timeout_s, due_s), 0.002)
        return bound_s, ("BLPOP", *(self._key("wake", queue) for queue in queues), f"{bound_s:.6f}")

    async def renew(self, lease: str) -> bool:
        moved: int = await self._run(SCRIPTS["renew"], self._lease(lease), self._prefix, lease)
        return moved == 1

    async def leases(self) -> dict[str, int]:
        return self._read("HGETALL", _leases, await self._links.call("HGETALL", f"{self._prefix}leases"))

    async def workers(self, lease: str) -> dict[str, list[int]]:
        keys = (self._lease(lease)[0],)
        return self._read("workers", _workers, await self._run(SCRIPTS["workers"], keys, f"{self._prefix}worker:"))

    async def adopt(self, into: str, n: int, worker: str, claims: Sequence[int] | None, limit: int) -> Adopted:
        lease = worker.rpartition(".")[0]
        keys = (self._worker(into), self._worker(worker), *self._lease(lease))
        wanted = _encode(None if claims is None else list(claims))
        reply = await self._run(SCRIPTS["adopt"], keys, self._prefix, into, n, worker, lease, limit, wanted)
        return self._read("adopt", _adopted, reply)

    async def retire(self, worker: str) -> bool:
        lease = worker.rpartition(".")[0]
        keys = (self._worker(worker), *self._lease(lease))
        gone: int = await self._run(SCRIPTS["retire"], keys, worker, lease, f"{self._prefix}claim:{worker}:")
        return gone == 1

    async def housekeep(self) -> None:
        """Nothing to do: records of silent producers expire by themselves, and memory is freed when jobs go."""

    # -- admin ----------------------------------------------------------------------------------------------------------

    async def stats(self) -> Stats:
        keys = (f"{self._prefix}queues", f"{self._prefix}leases")
        return self._read("stats", _stats, await self._run(SCRIPTS["stats"], keys, self._prefix))

    async def peek(self, queue: str, limit: int) -> list[bytes]:
        return self._read("peek", _envelopes, await self._run(SCRIPTS["peek"], self._ready(queue), limit))

    async def dead_list(self, queue: str | None, before: tuple[float, bytes] | None, limit: int) -> list[DeadLetter]:
        index = f"{self._prefix}died" if queue is None else self._key("died", queue)
        start: tuple[str | bytes, str | bytes] = ("", "") if before is None else (repr(before[0]), before[1])
        reply = await self._run(SCRIPTS["dead_list"], (f"{self._prefix}dead", index), limit, *start)
        return self._read("dead_list", _letters, reply)

    async def dead_get(self, id: bytes) -> DeadLetter | None:
        reply = await self._run(SCRIPTS["dead_get"], (f"{self._prefix}dead", f"{self._prefix}died"), id)
        letters = self._read("dead_get", lambda found: _letters([id, *found] if found else []), reply)
        return letters[0] if letters else None

    async def dead_requeue(self, entries: Sequence[Entry]) -> list[bool]:
        for entry in entries:
            _check_priority(entry.priority)
        plan = _encode(_places(entries))
        keys = (f"{self._prefix}dead",)
        reply = await self._run(SCRIPTS["dead_requeue"], keys, self._prefix, self.time_shift_s, plan, *_stored(entries))
        return self._read("dead_requeue", _flags, reply)

    async def dead_delete(self, ids: Sequence[bytes]) -> list[bool]:
        reply = await self._run(SCRIPTS["dead_delete"], (f"{self._prefix}dead",), self._prefix, *ids)
        return self._read("dead_delete", _flags, reply)

    async def purge(self, queue: str) -> int:
        count: int = await self._run(SCRIPTS["purge"], self._keys_of((queue,)))
        return count

    async def migrate(self) -> list[str]:
        return []

    # -- inside ---------------------------------------------------------------------------------------------------------

    def _exchange_keys(self, worker: str, queues: Sequence[str]) -> tuple[str, ...]:
        return self._worker(worker), *self._keys_of(tuple(queues))

    def _key(self, kind: str, queue: str) -> str:
        return f"{self._prefix}{kind}:{queue}"

    def _ready(self, queue: str) -> tuple[str, ...]:
        return tuple(f"{self._prefix}ready:{queue}:{priority}" for priority in range(MAX_PRIORITY, -1, -1))

    def _worker(self, worker: str) -> str:
        return f"{self._prefix}worker:{worker}"

    def _lease(self, lease: str) -> tuple[str, str]:
        """The keys of the lease's workers and of all leases."""
        return f"{self._prefix}lease:{lease}", f"{self._prefix}leases"

    def _keys_of(self, queues: tuple[str, ...]) -> tuple[str, ...]:
        """The keys of *queues* in the order of exchange.lua. Kept: a worker asks for the same ones all its life."""
        found = self._queue_keys.get(queues)
        if found is None:
            if len(self._queue_keys) >= 64:
                self._queue_keys.clear()
            found = self._queue_keys[queues] = tuple(
                key
                for queue in dict.fromkeys(queues)
                for key in (self._key("later", queue), self._key("wake", queue), *self._ready(queue))
            )
        return found

    async def _setting(self, name: str) -> str | None:
        """A setting of the server, None where asking is not allowed (managed services, ACL)."""
        try:
            reply = await self._links.call("CONFIG", "GET", name)
        except StoreUnavailable:
            raise
        except BackendError:
            return None
        return self._read("CONFIG GET", lambda found: str(found[1].decode()), reply) if reply else None


def partitions_key(namespace: str) -> str:
    """Of the app's number of partitions, if it has several."""
    return f"{{{namespace}}}:partitions"


def _exchanged(reply: Any) -> Exchanged:
    """The reply of exchange.lua."""
    header, jobs = reply
    kept, more, next_due_s = header.split(b"|")
    return Exchanged([bit == 49 for bit in kept], _envelopes(jobs), more == b"1", float(next_due_s) if next_due_s else None)


def _adopted(reply: Any) -> Adopted:
    """The reply of adopt.lua."""
    header, jobs = reply
    return Adopted(_envelopes(jobs), header.split(b"|")[1] == b"1")


def _envelopes(reply: Any) -> list[bytes]:
    if not isinstance(reply, list):
        raise TypeError("no list")
    return reply


def _due_in_s(reply: Any) -> float | None:
    """The reply of wait.lua."""
    state = reply.decode()
    return 0.0 if not state else None if state == "-" else float(state)


def _leases(reply: Any) -> dict[str, int]:
    return {lease.decode(): int(counter) for lease, counter in zip(reply[::2], reply[1::2], strict=True)}


def _workers(reply: Any) -> dict[str, list[int]]:
    """The reply of workers.lua."""
    return {
        worker.decode(): sorted(int(field) for field in fields if field.isdigit())
        for worker, fields in zip(reply[::2], reply[1::2], strict=True)
    }


def _stats(reply: Any) -> Stats:
    """The reply of stats.lua."""
    running, *counts = reply
    queues = [QueueStats(name.decode(), int(ready), int(delayed), int(dead)) for name, ready, delayed, dead in sorted(counts)]
    return Stats(queues, int(running))


def _letters(reply: Any) -> list[DeadLetter]:
    """The reply of dead_list.lua."""
    return [
        DeadLetter(id, float(died_at), _envelope(letter))
        for id, died_at, letter in zip(reply[::3], reply[1::3], reply[2::3], strict=True)
    ]


def _flags(reply: Any) -> list[bool]:
    return [bit == 1 for bit in reply]


def _settlements(settlements: Sequence[Settlement]) -> tuple[bytes, list[bytes]]:
    """The settlements as exchange.lua takes them: a plan, and apart from it the bytes (its MessagePack knows no binary)."""
    if not any(settlement.outcomes for settlement in settlements):
        return _encode(settlements), []
    plan = []
    stored: list[bytes] = []
    for settlement in settlements:
        outcomes = []
        for outcome in settlement.outcomes:
            entry = outcome.entry
            outcomes.append((outcome.index, outcome.kind, entry.queue, entry.priority, entry.run_at, entry.delay_s))
            stored += _id(entry), entry.envelope
        plan.append((settlement.claim, outcomes, settlement.unfinished, settlement.into))
    return _encode(plan), stored


def _places(entries: Iterable[Entry]) -> list[tuple[str, int, float | None, float]]:
    return [(entry.queue, entry.priority, entry.run_at, entry.delay_s) for entry in entries]


def _stored(entries: Iterable[Entry]) -> list[bytes]:
    return [part for entry in entries for part in (_id(entry), entry.envelope)]


def _id(entry: Entry) -> bytes:
    """The entry's id. A delayed job stands in its set as priority, id and envelope: the scripts cut by length."""
    if len(entry.id) != 16:
        raise BackendError(f"a job's id is 16 bytes, got {entry.id!r:.100}")
    return entry.id


def _check_priority(priority: int) -> None:
    if not 0 <= priority <= MAX_PRIORITY:
        raise BackendError(f"a priority is 0 to {MAX_PRIORITY}, got {priority}")


def _envelope(letter: bytes) -> bytes:
    """What `_moves.lua` stores of a dead letter, without the queue before it; all of one that others have written."""
    length, colon, rest = letter.partition(b":")
    return rest[int(length) :] if colon and length.isdigit() and len(length) < 10 else letter


def _info(reply: Any) -> dict[str, str]:
    lines = reply.decode(errors="replace").splitlines()
    return dict(line.split(":", 1) for line in lines if ":" in line)


def _nodes(reply: bytes) -> list[tuple[str, int]]:
    """Host and port of every node that a CLUSTER NODES reply has an address of: ``<id> <host>:<port>@<bus port>… …``."""
    found = []
    for line in reply.decode(errors="replace").splitlines():
        host, _, port = line.split(" ")[1].partition("@")[0].rpartition(":")
        if host and port.isdecimal() and int(port):
            found.append((host, int(port)))
    return found


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) if part.isdigit() else 0 for part in text.split(".")[:2])
