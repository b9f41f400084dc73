"""An app on Redis by URL: whole, or with ``?partitions=3`` cut into parts that a Redis Cluster spreads over its primaries.

Part p of P has a hash tag in the p-th of P equal ranges of slots, as a cluster of equal primaries deals them out: with P
primaries, or a multiple, each holds the same number of parts.
"""

from __future__ import annotations

import binascii
from collections.abc import Iterator
from typing import Final
from urllib.parse import parse_qsl, urlencode

from fastjobs.backends import check_password, mask_password
from fastjobs.backends.partitions import PartitionedBackend
from fastjobs.backends.redis import RedisBackend, partitions_key
from fastjobs.backends.redis_link import Links
from fastjobs.backends.redis_url import split_namespace
from fastjobs.errors import BackendError, ConfigError

MOST: Final = 1024
"""Partitions: an idle worker looks at every one."""

SLOTS: Final = 16_384
"""Of every Redis Cluster, says its specification."""


def redis_store(
    url: str, *, namespace: str | None = None, connect_timeout_s: float = 5.0, call_timeout_s: float = 30.0
) -> RedisBackend | PartitionedBackend:
    """The backend for *url*, options as `RedisBackend` takes them. ConfigError for a bad number of partitions."""
    check_password(url)
    whole, partitions = split_partitions(url)
    if partitions == 1:
        return RedisBackend(whole, namespace=namespace, connect_timeout_s=connect_timeout_s, call_timeout_s=call_timeout_s)
    agreement = Agreement(whole, namespace, partitions, connect_timeout_s, call_timeout_s)
    parts = [
        RedisBackend(
            whole,
            namespace=namespace,
            tag=tag,
            agree=agreement.reach,
            connect_timeout_s=connect_timeout_s,
            call_timeout_s=call_timeout_s,
        )
        for tag in tags(agreement.namespace, partitions)
    ]
    return PartitionedBackend(parts, mask_password(url))


def split_partitions(url: str) -> tuple[str, int]:
    """*url* without its ``partitions`` option, and that; 1 if it has none."""
    address, _, options = url.partition("?")
    query = parse_qsl(options, keep_blank_values=True)
    named = [value for key, value in query if key == "partitions"]
    if not named:
        return url, 1
    if not (named[-1].isascii() and named[-1].isdecimal() and 1 <= int(named[-1][:5]) <= MOST):
        raise ConfigError(f"partitions: must be 1 to {MOST}, got {named[-1]!r:.100}")
    rest = urlencode([(key, value) for key, value in query if key != "partitions"])
    return f"{address}?{rest}" if rest else address, int(named[-1])


def tags(namespace: str, partitions: int) -> Iterator[str]:
    """The hash tag of each partition. A colon stands in no namespace: no other app has them."""
    for part in range(partitions):
        ours = range(part * SLOTS // partitions, (part + 1) * SLOTS // partitions)
        salt = 0
        while slot_of(tag := f"{namespace}:{part}.{salt}") not in ours:
            salt += 1
        yield tag


def slot_of(tag: str) -> int:
    """The cluster slot of keys with that hash tag: CRC-16/XMODEM, as the Redis Cluster specification has it."""
    return binascii.crc_hqx(tag.encode(), 0) % SLOTS


async def _with_anything() -> None:
    """Agree: this one only looks."""


class Agreement:
    """That all who use a namespace cut it into the same number of *partitions*. The first one writes it down in the store."""

    def __init__(
        self, url: str, namespace: str | None, partitions: int, connect_timeout_s: float, call_timeout_s: float
    ) -> None:
        server, self.namespace = split_namespace(url, namespace)
        self._url = url
        self._server = server
        self._partitions = partitions
        self._timeouts = connect_timeout_s, call_timeout_s
        self._reached = False

    async def reach(self) -> None:
        """BackendError if others have another number, or jobs of a time without partitions are left."""
        if self._reached:
            return
        links = Links(self._server, *self._timeouts)
        try:
            key = partitions_key(self.namespace)
            stored = await links.call("GET", key)
            if stored is None:
                await self._refuse_old_jobs()
                await links.call("SET", key, self._partitions, "NX")
                stored = await links.call("GET", key)
        finally:
            await links.close()
        try:
            agreed = int(stored)
        except (ValueError, TypeError) as error:
            raise BackendError(f"{mask_password(self._url)}: the key {key!r} holds no number: {stored!r:.100}") from error
        if agreed != self._partitions:
            raise BackendError(
                f"the jobs of namespace {self.namespace} at {mask_password(self._url)} are kept in {agreed} partitions,"
                f" not {self._partitions}: name that number, or empty its queues and delete the key {key!r} first"
            )
        self._reached = True

    async def _refuse_old_jobs(self) -> None:
        whole = RedisBackend(self._url, namespace=self.namespace, agree=_with_anything)
        try:
            stats = await whole.stats()
        finally:
            await whole.close()
        left = stats.running + sum(queue.ready + queue.delayed + queue.dead for queue in stats.queues)
        if left:
            raise BackendError(
                f"namespace {self.namespace} at {mask_password(self._url)} holds {left:,} jobs of a time without partitions:"
                " have them run or deleted by way of the URL without partitions first, or use another namespace"
            )
