"""What only the Postgres backend has: its schema and versions, its addresses and errors, its plans, hints and transactions."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest

from fastjobs.backends.postgres import PostgresBackend
from fastjobs.backends.postgres_hints import Hints, Pace
from fastjobs.backends.postgres_schema import FUNCTIONS, MIGRATIONS, VERSION
from fastjobs.backends.postgres_wire import parse_address
from fastjobs.errors import BackendError, ConfigError, FastjobsError, SchemaError, StoreUnavailable
from tests.contract.kit import HOUR, counts, entries, entry, numbered, push, worker
from tests.servers.postgres import PostgresServer
from tests.stores import EmptySchema


@pytest.fixture
async def store(empty: EmptySchema) -> AsyncIterator[PostgresBackend]:
    backend = empty.store()
    yield backend
    await backend.close()


# -- schema and versions ------------------------------------------------------------------------------------------------------


async def test_opening_makes_the_schema_and_migrating_again_does_nothing(empty: EmptySchema, store: PostgresBackend) -> None:
    assert await store.migrate() == [*MIGRATIONS.values(), "functions"]
    assert await store.migrate() == []
    await store.open()
    assert [tuple(row) for row in await empty.sql("select version from {}.meta")] == [(VERSION,)]


async def test_eight_processes_may_open_a_missing_schema_at_once(empty: EmptySchema) -> None:
    stores = [empty.store() for _ in range(8)]
    await asyncio.gather(*(store.open() for store in stores))
    assert [row[0] for row in await empty.sql("select version from {}.meta")] == [VERSION]
    for store in stores:
        await store.close()


async def test_without_leave_to_migrate_a_missing_schema_is_an_error_that_says_what_to_run(empty: EmptySchema) -> None:
    with pytest.raises(SchemaError, match="is missing: run `fastjobs migrate`"):
        await empty.store(migrate=False).open()


@pytest.mark.parametrize(("ahead", "refused"), [(0, False), (1, True)])
async def test_a_newer_schema_is_refused_only_if_it_says_so(
    empty: EmptySchema, store: PostgresBackend, ahead: int, refused: bool
) -> None:
    await store.migrate()
    await empty.sql(f"update {{}}.meta set version = {VERSION + 7}, min_compatible = {VERSION + ahead}")
    if refused:
        with pytest.raises(SchemaError, match=f"version {VERSION + 7} .* version {VERSION + 1} .* knows version {VERSION}"):
            await store.open()
        with pytest.raises(SchemaError):
            await store.migrate()
    else:
        await store.open()
        assert await store.migrate() == []
    assert (await empty.sql("select version from {}.meta"))[0][0] == VERSION + 7


async def test_a_schema_of_version_1_is_brought_up_to_date_and_keeps_its_jobs(empty: EmptySchema) -> None:
    store, later = empty.store(), empty.store()
    await push(store, entry("ready"), entry("due", delay_s=HOUR))
    await empty.sql(
        "drop procedure {}.push_rung",
        "drop function {}.promote",
        "create function {}.promote(p_queues text[], p_now float8, p_limit int, out next float8, out look_s float8)"
        " language plpgsql as $$ begin next := null; look_s := 0; end $$",
        "update {}.meta set version = 1",
    )
    with pytest.raises(SchemaError, match=f"is of version 1, this fastjobs needs {VERSION}: run `fastjobs migrate`"):
        await empty.store(migrate=False).open()
    await push(later, entry("new"))
    later.time_shift_s = 2 * HOUR
    hand = await worker(later)
    assert (await hand.claim()).jobs == ["ready", "new", "due"]
    assert [tuple(row) for row in await empty.sql("select version, min_compatible from {}.meta")] == [(VERSION, 1)]
    for each in (store, later):
        await each.close()


async def test_a_user_without_rights_is_told_and_one_who_owns_the_schema_needs_no_others(empty: EmptySchema) -> None:
    role, rows = f"r{empty.schema}", await empty.sql("select current_user")
    url = empty._server.replace(f"//{rows[0][0]}@", f"//{role}@")
    await empty.sql(f"create role {role} login")
    store = empty.store(url=url)
    try:
        with pytest.raises(SchemaError, match="permission denied"):
            await store.open()
        await empty.sql(f"create schema {{}} authorization {role}")
        await push(store, entry("a"))
        await store.housekeep()
        assert (await counts(store)).ready == 1
    finally:
        await store.close()
        await empty.sql("drop schema {} cascade", f"drop role {role}")


async def test_a_schema_that_vanishes_is_an_error_that_says_so(empty: EmptySchema, store: PostgresBackend) -> None:
    await store.open()
    await empty.drop()
    with pytest.raises(SchemaError, match="run `fastjobs migrate`"):
        await store.stats()


async def test_settings_that_can_lose_jobs_are_warned_of(empty: EmptySchema, store: PostgresBackend) -> None:
    (fsync,) = (await empty.sql("show fsync"))[0]
    warnings = await store.open()
    assert [warning for warning in warnings if warning.startswith("fsync is off")] == warnings[: fsync == "off"]
    assert await store.open() == warnings


# -- addresses and errors ------------------------------------------------------------------------------------------------------


def address(url: str, schema: str = "fastjobs") -> tuple[str, str, bool]:
    found = parse_address(url, schema=schema, pgbouncer=False, connect_timeout_s=1, call_timeout_s=1)
    return found.dsn, found.schema, found.pgbouncer


def test_our_parameters_are_taken_out_of_the_url_and_the_rest_is_left_to_asyncpg() -> None:
    assert address("postgresql://u@/d?host=/run/pg&schema=jobs&pgbouncer=1") == ("postgresql://u@/d?host=/run/pg", "jobs", True)
    assert address("postgres:///d?schema=jobs") == ("postgres:///d", "jobs", False)
    assert address("postgresql://h1:1,h2:2/d?sslmode=require&pgbouncer=0")[0] == "postgresql://h1:1,h2:2/d?sslmode=require"


@pytest.mark.parametrize("name", ["", "1st", "pg_jobs", 'a"b', "a;b", "a.b", "x" * 55, "ü"])
def test_a_schema_name_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="schema"):
        address("postgresql://h/d", name)


def test_a_wrong_switch_and_another_scheme_are_refused() -> None:
    with pytest.raises(ConfigError, match="pgbouncer=maybe"):
        address("postgresql://h/d?pgbouncer=maybe")
    with pytest.raises(ConfigError, match="postgresql://"):
        address("mysql://h/d")


async def test_any_accepted_schema_name_works(empty: EmptySchema) -> None:
    empty._schema = f"Jobs-of_{empty.schema}"
    store = empty.store()
    await push(store, entry("a"))
    assert await (await worker(store)).drain() == ["a"]
    await store.close()


async def test_no_password_is_shown() -> None:
    store = PostgresBackend("postgresql://me:hunter2@127.0.0.1:1/d")
    assert "hunter2" not in store.url
    with pytest.raises(StoreUnavailable) as caught:
        await store.open()
    assert "hunter2" not in str(caught.value)
    assert "127.0.0.1" in str(caught.value)


TRANSIENT = {
    *("08", "53", "57"),  # classes
    *("40001", "40P01", "55P03", "25006", "25P03", "25P04"),
}


@pytest.mark.parametrize(
    "kind",
    [kind for _, kind in inspect.getmembers(asyncpg.exceptions, inspect.isclass) if issubclass(kind, asyncpg.PostgresError)],
)
def test_every_error_of_the_server_becomes_one_of_ours(kind: type[asyncpg.PostgresError]) -> None:
    place = parse_address("postgresql://h/d", schema="s", pgbouncer=False, connect_timeout_s=1, call_timeout_s=1)
    error = place.error(kind("the server's own words"))
    assert isinstance(error, FastjobsError)
    assert "the server's own words" in str(error)
    state = kind.sqlstate or ""
    assert isinstance(error, StoreUnavailable) == (state in TRANSIENT or state[:2] in TRANSIENT)


async def test_a_connection_cut_by_the_server_is_an_outage_and_the_same_call_can_be_repeated(
    empty: EmptySchema, store: PostgresBackend
) -> None:
    await push(store, *entries(["a", "b"]))
    hand = await worker(store)
    connection = await empty.connect()
    async with connection.transaction():
        await connection.fetch(f'select from "{empty.schema}".worker for update')  # the call will have to wait
        call = asyncio.create_task(store.exchange(hand.id, 1, [], ["q"], 10))
        blocked = "select pg_terminate_backend(pid) from pg_stat_activity where pg_backend_pid() = any(pg_blocking_pids(pid))"
        while not await connection.fetch(blocked):
            await asyncio.sleep(0)
        with pytest.raises(StoreUnavailable, match=r"terminating connection|closed in the middle"):  # asyncpg < 0.32
            await call
    await connection.close()
    assert (await store.exchange(hand.id, 1, [], ["q"], 10)).jobs == [b"a", b"b"]


async def test_what_the_server_refuses_is_a_backend_error_with_its_words(store: PostgresBackend) -> None:
    with pytest.raises(BackendError, match="0x00") as caught:
        await push(store, entry("a", queue="nul\0"))
    assert not isinstance(caught.value, StoreUnavailable)
    await push(store, entry("a"))  # and the connection is as good as before


# -- plans and hints -----------------------------------------------------------------------------------------------------------


async def test_no_call_of_the_hot_path_reads_a_table_whole(empty: EmptySchema, store: PostgresBackend) -> None:
    await push(store, *entries(numbered(3000)), *entries(numbered(3000, "later"), delay_s=HOUR))
    await store.purge("q")
    # What misleads a planner most: statistics of tables that were empty just then.
    await empty.sql("vacuum analyze {}.ready", "vacuum analyze {}.later", "vacuum analyze {}.claim", "vacuum analyze {}.urgent")
    await push(store, *entries(numbered(3000)), *entries(numbered(3000, "later"), delay_s=HOUR))
    await worker(store, "here.1")
    connection = await empty.connect()
    nothing = "null, " * 11 + "null"
    scope = f'set search_path to "{empty.schema}"'
    try:
        async with connection.transaction():
            await connection.execute(scope)
            zeros = [0] * 10
            for n in range(1, 4):
                row = await connection.fetchrow(
                    f"select * from exchange('here.1', $1, 0, {nothing}, '{{q}}', 10, $2, $2, 1000, true, true, true)",
                    n,
                    zeros,
                )
                assert row is not None
                assert len(row["jobs"]) == 10
            await connection.fetch("select waiting('{none}', 0, null)")
            await connection.fetch("select waiting('{q}', 0, null)")
            await connection.fetch("select push('p', 9, 0, 0, 'q', 5::int2, '{a}')")
            await connection.fetch("select * from adopt('here.1', 9, 'here.1', '{2}', 100)")
            scans = await connection.fetch(
                "select relname, seq_scan, idx_tup_fetch from pg_stat_xact_user_tables where schemaname = $1", empty.schema
            )
    finally:
        await connection.close()
    assert {row[0]: row[1] for row in scans if row[1]} == {}
    assert {row[0]: row[2] for row in scans if row[2] and row[2] > 200} == {}


async def test_jobs_that_committed_behind_the_hints_are_found_by_a_sweep(empty: EmptySchema, store: PostgresBackend) -> None:
    hand = await worker(store)
    connection = await empty.connect()
    try:
        transaction = connection.transaction()
        await transaction.start()
        await store.push_in(connection, entries(["late"]))
        await push(store, *entries(["early"]))
        assert (await hand.claim()).jobs == ["early"]
        assert (await hand.claim()).jobs == []
        assert not await store.wait(["q"], 0.2)
        wait = asyncio.create_task(store.wait(["q"], 30))
        await transaction.commit()
        assert await wait
        assert (await hand.claim()).jobs == ["late"]
    finally:
        await connection.close()


def test_a_sweep_goes_on_where_it_ended_and_comes_again_after_a_while() -> None:
    hints = Hints()
    hints.moved([], [70, 50])
    assert hints.slice(10.0) == ([70, 50], 100_000, True)
    hints.swept([30, 0], 1_600_000, 0.001, 10.0)
    hints.moved([1], [90])
    assert hints.slice(10.0) == ([30, 0], 1_600_000, True)
    hints.swept([0, 0], 1_600_000, 0.001, 10.0)
    assert hints.slice(11.9) == ([90, 50], 100_000, False)  # only if the hints find nothing
    assert hints.slice(12.1) == ([90, 50], 100_000, True)
    hints.doubt()
    assert hints.slice(10.0).first


def test_slow_sweeps_rest() -> None:
    hints = Hints()
    hints.moved([], [70])
    hints.swept([30], 1000, 0.1, 10.0)
    assert hints.slice(10.9).window is None
    assert hints.slice(11.1).window == 1000
    hints.swept([0], 1000, 0.1, 11.1)
    assert not hints.slice(11.1 + 9.9).first
    assert hints.slice(11.1 + 10.1).first


def test_a_pace_leaves_quick_chores_alone_and_rests_after_slow_ones() -> None:
    pace = Pace(50)
    pace.took(0.004, 100.0)
    assert pace.allows(100.0)
    pace.took(1.0, 100.0)
    assert not pace.allows(149.0)
    assert pace.allows(150.0)


async def test_a_new_backend_goes_on_from_saved_hints_and_still_finds_what_lies_behind(
    empty: EmptySchema, store: PostgresBackend
) -> None:
    await push(store, *entries(["a", "b", "c"]))
    await empty.sql("update {}.queue set hints = array_fill(1000000::bigint, array[10])")
    assert await (await worker(store)).drain() == ["a", "b", "c"]


async def test_a_claim_of_large_jobs_stays_within_its_bytes(store: PostgresBackend) -> None:
    names = numbered(20)
    await push(store, *(entry(name, envelope=name.encode().ljust(1 << 20)) for name in names))
    hand = await worker(store)
    first = await hand.exchange(limit=1000)
    rest = await hand.exchange(limit=1000)
    assert [job.decode().strip() for job in first.jobs + rest.jobs] == names
    assert len(first.jobs) == 16
    assert first.more
    assert not rest.more


# -- transactions of the user's ------------------------------------------------------------------------------------------------


async def test_jobs_enqueued_in_a_transaction_of_the_users_stand_and_fall_with_it(
    empty: EmptySchema, store: PostgresBackend
) -> None:
    connection = await empty.connect()
    try:
        undone = connection.transaction()
        await undone.start()
        await store.push_in(connection, entries(["no"]))
        await undone.rollback()
        async with connection.transaction(isolation="serializable"):
            await store.push_in(connection, [entry("yes"), entry("later", delay_s=HOUR), entry("first", priority=9)])
            assert (await counts(store)).ready == 0
    finally:
        await connection.close()
    assert await (await worker(store)).drain() == ["first", "yes"]
    assert (await counts(store)).delayed == 1


async def test_a_new_queue_in_an_open_transaction_holds_up_no_other_push(empty: EmptySchema, store: PostgresBackend) -> None:
    connection = await empty.connect()
    try:
        async with connection.transaction():
            await store.push_in(connection, entries(["a"], queue="new"))
            await asyncio.wait_for(push(store, entry("b", queue="new")), 10)
    finally:
        await connection.close()
    assert (await counts(store, "new")).ready == 2


async def test_an_error_in_the_users_transaction_is_one_of_ours(store: PostgresBackend, empty: EmptySchema) -> None:
    connection = await empty.connect()
    with pytest.raises(BackendError):
        async with connection.transaction():
            await store.push_in(connection, entries(["a"], queue="nul\0"))
    await connection.close()
    with pytest.raises(StoreUnavailable):
        await store.push_in(connection, entries(["a"]))


# -- crashes -------------------------------------------------------------------------------------------------------------------


async def test_accepted_jobs_outlive_a_crash_of_the_server() -> None:
    server = PostgresServer()
    store = PostgresBackend(server.start().url)
    try:
        hand = await worker(store)
        for number in range(20):
            await push(store, *entries([f"{number}-a", f"{number}-b"]))
        claim = await hand.claim(10)
        server.kill()
        with pytest.raises(StoreUnavailable):
            await store.stats()
        server.restart()
        await store.close()  # connections that died unseen
        heir = await worker(store, "here.2")
        adopted, _ = await heir.adopt(hand.id)
        ran = {*adopted.jobs, *await heir.drain()}
        assert ran == {f"{number}-{side}" for number in range(20) for side in "ab"}
        assert set(adopted.jobs) in (set(claim.jobs), set())  # the claim's commit was asynchronous
    finally:
        await store.close()
        server.stop()


async def test_every_sql_file_is_used() -> None:
    directory = Path(inspect.getfile(PostgresBackend)).parent / "sql"
    sources = "".join(path.read_text() for path in directory.parent.glob("postgres*.py"))
    for path in directory.glob("*.sql"):
        assert path.stem in (*FUNCTIONS, *MIGRATIONS.values()) or f'"{path.stem}"' in sources, path.name
        assert path.read_text().startswith(f"-- {path.name}  "), path.name
