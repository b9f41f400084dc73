"""redis-py's own client for the server or cluster that a backend URL names, to look and to clean up."""

from __future__ import annotations

from typing import Any

import redis.asyncio

from fastjobs.backends import mask_password
from fastjobs.backends.redis_partitions import split_partitions
from fastjobs.backends.redis_sentinel import Sentinels
from fastjobs.backends.redis_url import split_hosts, split_namespace, split_sentinels
from fastjobs.errors import StoreUnavailable


async def client_of(url: str) -> Any:
    """Connected. StoreUnavailable if the server does not answer; ConfigError for a bad URL."""
    server, watched = split_sentinels(split_namespace(split_partitions(url)[0], None)[0])
    server = split_hosts(server)[0]
    client: Any = redis.asyncio.from_url(server)
    try:
        if watched is not None:
            pool = client.connection_pool
            options = pool.connection_kwargs
            primary = await Sentinels(watched, pool.connection_class, options, mask_password(url)).primary()
            options["host"], options["port"] = primary
        if (await client.info("cluster")).get("cluster_enabled"):
            await client.aclose()
            cluster: Any = redis.asyncio.RedisCluster.from_url(server)
            return await cluster.initialize()
    except (redis.exceptions.RedisError, OSError) as error:
        await client.aclose()
        raise StoreUnavailable(f"the store cannot be reached: {error}") from error
    return client


async def cpu_s(client: Any) -> float:
    """CPU seconds used so far by all servers, by their own count."""
    if isinstance(client, redis.asyncio.RedisCluster):
        found = list((await client.info("cpu", target_nodes=redis.asyncio.RedisCluster.PRIMARIES)).values())
    else:
        found = [await client.info("cpu")]
    return sum(float(info["used_cpu_sys"]) + float(info["used_cpu_user"]) for info in found)
