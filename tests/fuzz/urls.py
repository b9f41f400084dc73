"""URLs of stores, with passwords in them that must be shown nowhere: not by an error, its causes, a repr, or a warning."""

from __future__ import annotations

import asyncio
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn
from urllib.parse import quote

from hypothesis import strategies as st

from fastjobs import JobQueue
from fastjobs.backends import make_store, mask_password
from fastjobs.errors import BackendError, ConfigError
from tests.fuzz.strategies import wild_texts
from tests.fuzz.surface import Check, Surface

SECRET = "hunter2"
"""Part of every password, wherever that stands."""

_SCHEMES = (
    *("memory", "memory+unix", "redis", "rediss", "valkey", "valkeys", "redis+unix", "unix", "postgres", "postgresql"),
    *("REDIS", "Postgresql", "http", "", "redis:", "postgresql+asyncpg"),
)
_HOSTS = (
    *(
        "localhost",
        "127.0.0.1",
        "[::1]",
        "[::1",
        "::1",
        "a,b",
        "a:7000,b:7001",
        "a:7000,b:x",
        "",
        "h%2Fx",
        "[v1.x]",
        "münchen.de",
    ),
    *("%2Fvar%2Frun", "a b", "0", "xn--a", "h..h", "*"),
)
_PORTS = ("", ":6379", ":0", ":65536", ":-1", ":x", ":", ":5432:5433", ":٣")
_PATHS = (
    *("", "/", "/0", "/app", "/0/1", "//", "/%00", "/run/x.sock", "/5x", "/ü", "/-1"),
    *("/99999999999999999999", "/a;b", "/a'b"),
)
_OPTIONS = (
    *("namespace=shop", "namespace=", "namespace=a b", "namespace={x}", "partitions=3", "partitions=0", "partitions=x"),
    *("partitions=1025", "schema=shop", "schema=pg_x", 'schema="x"', "schema=a%00b", f"schema={'s' * 64}", "pgbouncer=1"),
    *(
        "pgbouncer=x",
        "db=3",
        "db=x",
        "nmespace=a",
        "sslmode=require",
        "sslmode=x",
        "target_session_attrs=x",
        "a",
        "=",
        "%",
        "%zz",
    ),
    *(
        "host=/run",
        "port=x",
        "ssl_cert_reqs=none",
        "protocol=3",
        "max_connections=x",
        "timeout=1",
        "user=me@corp",
        "dbname=a%00",
    ),
    *("passfile=/nowhere", "options=-c x", "connect_timeout=x", "health_check_interval=x", "decode_responses=1"),
)
_around = st.sampled_from(
    ("", "/", "?", "#", "@", ":", "%", "[", "]", "&", "=", "p@ss/w:rd?#", "%2F", "%zz", " ", "ü", "\\", ",", ";")
)


@st.composite
def urls(draw: st.DrawFn) -> str:
    """A URL of a store, nearly."""
    password = f"{draw(_around)}{SECRET}{draw(_around)}"
    if draw(st.booleans()):
        password = quote(password, safe="")
    place = draw(st.sampled_from("uuuqn"))
    user = draw(st.sampled_from(("", "me", "me%40corp", "a b", "ü"))) + f":{password}@" if place == "u" else ""
    options = draw(st.lists(st.sampled_from(_OPTIONS), max_size=2))
    if place == "q":
        key = draw(st.sampled_from(("password", "PASSWORD", "pass%77ord", "ssl_password", "sslpassword", "passwd")))
        options.append(f"{key}={quote(password, safe='')}")
    tail = f"?{'&'.join(options)}" if options else ""
    host, port, path = draw(st.sampled_from(_HOSTS)), draw(st.sampled_from(_PORTS)), draw(st.sampled_from(_PATHS))
    return f"{draw(st.sampled_from(_SCHEMES))}://{user}{host}{port}{path}{tail}{draw(st.sampled_from(('', '', '', '#x', ' ')))}"


class Nowhere(asyncio.SelectorEventLoop):
    """An event loop that reaches no host."""

    async def create_connection(self, *args: Any, **options: Any) -> NoReturn:
        raise OSError("nowhere")

    async def create_unix_connection(self, *args: Any, **options: Any) -> NoReturn:
        raise OSError("nowhere")

    async def getaddrinfo(self, *args: Any, **options: Any) -> NoReturn:
        raise OSError("nowhere")


@contextmanager
def _opened() -> Iterator[Check]:
    with asyncio.Runner(loop_factory=Nowhere) as runner, warnings.catch_warnings(record=True):
        yield lambda url: judge(url, runner)


def judge(url: str, runner: asyncio.Runner) -> bool:
    """A store that shows no password, or a ConfigError that shows none, nor do its causes."""
    assert SECRET not in mask_password(url)
    try:
        jobs = JobQueue(url)
        assert SECRET not in repr(jobs)
        store = make_store(url)
        clone = store.clone()
        assert SECRET not in f"{store.url} {clone.url} {store!r} {vars(store).get('_address')!r} {vars(store).get('_links')!r}"
    except ConfigError as error:
        _shows_nothing(error)
        return False
    if url.lower().startswith("memory://"):
        return True
    try:
        runner.run(_tried(store))
    except (ConfigError, BackendError) as error:
        if not url.lower().startswith("memory+unix://"):  # all of that is a path, and no password
            _shows_nothing(error)
        return not isinstance(error, ConfigError)
    raise AssertionError("a store was reached where there is none")


async def _tried(store: Any) -> None:
    try:
        await store.open()
    finally:
        await store.close()


def _shows_nothing(error: BaseException) -> None:
    """Neither the error nor what it came from, as ``-v`` and logs show them."""
    assert str(error)
    shown = "".join(traceback.format_exception(error, limit=0))
    assert SECRET not in shown, shown


SURFACE = Surface(name="store URLs", inputs=urls() | urls() | wild_texts | st.text(), opened=_opened, weight=3)
