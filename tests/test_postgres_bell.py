"""Wake-ups over LISTEN and NOTIFY, and poolers behind which nobody hears any."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from fastjobs.backends import postgres_bell
from fastjobs.backends.postgres import RIDE_JOBS, PostgresBackend
from fastjobs.backends.postgres_bell import RING_BURST, RING_EVERY_S, Bell
from fastjobs.backends.postgres_wire import parse_address
from fastjobs.errors import BackendError
from tests.contract.kit import entries, entry, numbered, push, worker
from tests.stores import EmptySchema


@pytest.fixture
async def store(empty: EmptySchema) -> AsyncIterator[PostgresBackend]:
    backend = empty.store()
    yield backend
    await backend.close()


@pytest.fixture
async def others(empty: EmptySchema) -> AsyncIterator[PostgresBackend]:
    """As another process would have it."""
    backend = empty.store()
    yield backend
    await backend.close()


async def test_wake_ups_go_out_at_once_but_a_stream_of_them_is_paced(monkeypatch: pytest.MonkeyPatch) -> None:
    address = parse_address("postgresql:///x", schema="s", pgbouncer=False, connect_timeout_s=1, call_timeout_s=1)
    bell = Bell(address, "", lambda queues: None, lambda: None, lambda pid: False)
    now, told = [1000.0], list[float]()

    async def sleep(seconds: float) -> None:
        now[0] += seconds

    async def ring(times: int) -> list[float]:
        """Ring again as soon as it was told, *times* in all; seconds from the first ring to each notification."""

        async def notify() -> None:
            told.append(now[0] - began)
            bell._to_ring.clear()
            if len(told) < times:
                bell._to_ring.add("mail")

        began = now[0]
        told.clear()
        monkeypatch.setattr(bell, "_notify", notify)
        bell._to_ring.add("mail")
        await bell._ring_on()
        return told.copy()

    monkeypatch.setattr(postgres_bell, "clock", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(postgres_bell.asyncio, "sleep", sleep)
    paced = [max(0, number - RING_BURST + 1) * RING_EVERY_S for number in range(2 * RING_BURST)]
    assert await ring(2 * RING_BURST) == pytest.approx(paced)
    now[0] += RING_EVERY_S
    assert await ring(2) == pytest.approx([0.0, RING_EVERY_S])  # nothing was saved up
    now[0] += 3600
    assert await ring(2 * RING_BURST) == pytest.approx(paced)  # however long the quiet was


# -- a push that rings by itself -----------------------------------------------------------------------------------------------


def rings(store: PostgresBackend, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The notifications that *store* sends apart from its pushes, as they go out."""
    sent = list[str]()
    notify = store._bell._notify

    async def spy() -> None:
        sent.append(" ".join(sorted(store._bell._to_ring)))
        await notify()

    monkeypatch.setattr(store._bell, "_notify", spy)
    return sent


async def listen(store: PostgresBackend) -> None:
    """Have it hear notifications from here on."""
    wait = asyncio.create_task(store.wait(["q"], 60))
    async with asyncio.timeout(10):
        while store._bell._listening is None or store._bell._lane.calls:  # it still looks for what came before
            await asyncio.sleep(0.005)
    wait.cancel()
    await asyncio.wait([wait])


async def test_a_lone_push_rings_in_the_same_call(
    others: PostgresBackend, store: PostgresBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    await listen(others)
    apart = rings(store, monkeypatch)
    waits = [asyncio.create_task(backend.wait(["q"], 60)) for backend in (store, others)]
    await asyncio.wait(waits, timeout=0.05)
    await push(store, entry("a"))
    async with asyncio.timeout(10):
        assert await asyncio.gather(*waits) == [True, True], "one in this process, one in another"
    assert apart == []


async def test_pushes_in_quick_succession_ring_apart_and_less_often(
    store: PostgresBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_bell, "RING_EVERY_S", 60.0)
    apart = rings(store, monkeypatch)
    for job in entries(numbered(RING_BURST + 5)):
        await push(store, job)
    assert not apart
    assert store._bell._to_ring == {"q"}, "one for all of the last, a little later"
    await store._bell.close()
    assert apart == ["q"]


async def test_a_push_of_many_rings_apart(store: PostgresBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    apart = rings(store, monkeypatch)
    await push(store, *entries(numbered(RIDE_JOBS)))
    assert apart == []
    await push(store, *entries(numbered(RIDE_JOBS + 1)))
    await store._bell.close()
    assert apart == ["q"]


async def test_our_own_rings_do_not_wake_us_twice(
    others: PostgresBackend, store: PostgresBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    await listen(store)
    woken, heard = list[object](), asyncio.Event()
    wake = store._bell._wake

    def spy(queues: set[str] | None) -> None:
        woken.append(queues)
        wake(queues)
        if queues == {"last"}:
            heard.set()

    monkeypatch.setattr(store._bell, "_wake", spy)
    await push(store, entry("a"))
    await push(others, entry("b", queue="last"))  # notifications come in order
    async with asyncio.timeout(10):
        await heard.wait()
    assert woken == [{"q"}, {"last"}]


async def test_jobs_are_stored_once_though_the_server_could_not_notify(empty: EmptySchema, store: PostgresBackend) -> None:
    await store.open()
    await empty.sql(
        """create or replace procedure {}.push_rung(p_producer text, p_seq bigint, p_acked bigint, p_shift_s float8,
          p_queue text, p_priority int2, p_jobs bytea[], p_channel text, p_ring text, inout stored boolean)
        language plpgsql as $$ begin
          stored := {}.push(p_producer, p_seq, p_acked, p_shift_s, p_queue, p_priority, p_jobs);
          commit;
          raise exception 'too many notifications in the NOTIFY queue' using errcode = '54000';
        end $$"""
    )
    await push(store, entry("a"))
    assert await store.peek("q", 10) == [b"a"]
    hand = await worker(store)
    assert (await hand.claim()).jobs == ["a"]


async def test_a_push_that_is_refused_is_refused_though_it_was_to_ring(store: PostgresBackend) -> None:
    with pytest.raises(BackendError, match="0x00"):
        await push(store, entry("a", queue="nul\x00"))
    assert (await store.stats()).queues == []


# -- poolers -------------------------------------------------------------------------------------------------------------------


async def test_behind_pgbouncer_no_statement_is_prepared(empty: EmptySchema) -> None:
    prepared = {}
    for switch in (False, True):
        place = parse_address(empty.url(), schema=empty.schema, pgbouncer=switch, connect_timeout_s=5, call_timeout_s=5)
        connection = await place.connect()
        for _ in range(3):
            await connection.fetchrow("select $1::int", 1)
        row = await connection.fetchrow("select count(*) from pg_prepared_statements where statement like 'select $1%'")
        assert row is not None
        prepared[switch] = row[0]
        await connection.close()
    assert prepared == {False: 1, True: 0}


async def test_behind_pgbouncer_a_wait_polls(empty: EmptySchema, store: PostgresBackend) -> None:
    waiter = empty.store(pgbouncer=True)
    assert not await waiter.wait(["q"], 0.05)
    wait = asyncio.create_task(waiter.wait(["q"], 30))
    await push(store, entry("a"))
    assert await wait
    await waiter.close()


class Pooler:
    """Passes bytes on, but gives its clients process ids of its own, as poolers do."""

    def __init__(self, server: str) -> None:
        self._server = server
        self.directory = tempfile.mkdtemp(prefix="fjpool-", dir="/tmp")
        self._pumps: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> str:
        self._listener = await asyncio.start_unix_server(self._serve, f"{self.directory}/.s.PGSQL.5432")
        return self.directory

    async def __aexit__(self, *error: object) -> None:
        self._listener.close()
        await asyncio.gather(*self._pumps)
        Path(f"{self.directory}/.s.PGSQL.5432").unlink(missing_ok=True)
        Path(self.directory).rmdir()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server_reader, server_writer = await asyncio.open_unix_connection(f"{self._server}/.s.PGSQL.5432")
        key = b"K\x00\x00\x00\x0c"  # BackendKeyData: process id, secret

        async def pump(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
            while data := await source.read(1 << 16):
                at = data.find(key) if source is server_reader else -1
                if at >= 0:
                    data = data[: at + 5] + b"\x00\x00\x00\x07" + data[at + 9 :]
                target.write(data)
            target.close()

        for ends in ((reader, server_writer), (server_reader, writer)):
            task = asyncio.create_task(pump(*ends))
            self._pumps.add(task)


async def test_a_pooler_that_was_not_named_is_found_and_treated_as_one(empty: EmptySchema) -> None:
    (directory,) = (await empty.sql("show unix_socket_directories"))[0]
    async with Pooler(directory) as place:
        store = empty.store(url=f"postgresql://postgres@/postgres?host={place}")
        (warning,) = [warning for warning in await store.open() if "pooler" in warning]
        assert "pgbouncer=1" in warning
        await push(store, entry("a"))
        assert await store.wait(["q"], 5)
        await store.close()
