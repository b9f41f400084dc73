"""The broker and its clients: who may connect, what a bad client costs, what a lost broker means."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import socket
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Self

import pytest
import uvloop

from fastjobs.backends import frames
from fastjobs.backends.broker import SOCKET_PATH_BYTES, private_directory, serve, socket_path
from fastjobs.backends.frames import FRAME_BYTES, HEADER, Op, Status, encode
from fastjobs.backends.remote import SocketBackend
from fastjobs.errors import BackendError, ConfigError, StoreUnavailable, WorkerGone
from tests.contract.kit import counts, entries, entry, numbered, push, worker
from tests.stores import MemoryPlace, SocketPlace

SOON_S = 10.0
MB = 1 << 20


@pytest.fixture
def place() -> Iterator[SocketPlace]:
    place = SocketPlace()
    yield place
    place.close()


@pytest.fixture
def path(place: SocketPlace) -> str:
    """Of a running broker's socket."""
    return place.url().removeprefix("memory+unix://")


@pytest.fixture
async def store(path: str) -> AsyncIterator[SocketBackend]:
    backend = SocketBackend(path)
    yield backend
    await backend.close()


@asynccontextmanager
async def serving(path: Path, **options: Any) -> AsyncIterator[None]:
    """A broker on this event loop."""
    started = asyncio.Event()
    task = asyncio.create_task(serve(path, started=started.set, **options))
    waiter = asyncio.create_task(started.wait())
    await asyncio.wait([task, waiter], return_when=asyncio.FIRST_COMPLETED)
    waiter.cancel()
    if task.done():
        task.result()
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


BROKER = """
import sys, uvloop
from fastjobs.backends.broker import serve
uvloop.run(serve(sys.argv[1], started=lambda: print("up", flush=True)))
"""


@pytest.fixture
def broker_process() -> Iterator[Callable[[Path], subprocess.Popen[str]]]:
    """Starts brokers in processes of their own."""
    started: list[subprocess.Popen[str]] = []

    def start(path: Path) -> subprocess.Popen[str]:
        process = subprocess.Popen([sys.executable, "-c", BROKER, str(path)], stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def framed(code: int, id: int, body: bytes) -> bytes:
    return HEADER.pack(len(body), id, code) + body


async def first_error(call: Callable[[], Awaitable[object]]) -> BackendError | None:
    """The refusal that *call* meets; None if it meets none."""
    try:
        async with asyncio.timeout(SOON_S):
            await call()
    except BackendError as error:
        return error
    return None


async def until(place: MemoryPlace, expected: list[str]) -> None:
    """Wait until the store holds just that; the broker has a thread and a loop of its own."""
    async with asyncio.timeout(SOON_S):
        while await place.leftovers() != expected:
            await asyncio.sleep(0)


class Raw:
    """A connection that says what it likes."""

    def __init__(self, path: str, *, greet: bool = True) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(SOON_S)
        self.socket.connect(path)
        if greet:
            self.send(Op.HELLO, 0, encode(frames.Hello(frames.VERSION)))
            assert self.receive()[0] == Status.OK

    def send(self, code: int, id: int, body: bytes) -> None:
        self.socket.sendall(framed(code, id, body))

    def receive(self) -> tuple[int, int, bytes]:
        size, id, code = HEADER.unpack(self._exactly(HEADER.size))
        return code, id, self._exactly(size)

    def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            part = self.socket.recv(size - len(data))
            if not part:
                raise EOFError
            data += part
        return data

    def is_closed(self) -> bool:
        """Read to the end, which must come."""
        try:
            while self.socket.recv(1 << 16):
                continue
        except ConnectionResetError:
            return True
        return True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()


# -- where it listens, and for whom


def test_the_socket_path_is_the_same_for_the_same_app_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/1000")
    assert socket_path("shop:jobs") == socket_path("shop:jobs")
    assert socket_path("shop:jobs").parent == Path("/run/user/1000/fastjobs")
    paths = {
        socket_path(app) for app in ("shop:jobs", "shop-jobs", "shop/jobs", "a" * 300, "a" * 301, "größe", "", "..", "/etc")
    }
    assert len(paths) == 9
    assert {path.parent for path in paths} == {Path("/run/user/1000/fastjobs")}


@pytest.mark.parametrize("runtime", ["", "relative", "/" + "long/" * 40, None])
def test_the_socket_path_fits_whatever_the_runtime_directory(monkeypatch: pytest.MonkeyPatch, runtime: str | None) -> None:
    if runtime is None:
        monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    else:
        monkeypatch.setenv("XDG_RUNTIME_DIR", runtime)
    path = socket_path("an.app.with.a.rather.long.name.that.goes.on:jobs")
    assert path.parent == Path(f"/tmp/fastjobs-{os.getuid()}")
    assert len(os.fsencode(path)) <= SOCKET_PATH_BYTES


async def test_socket_and_directory_are_for_their_user_alone(tmp_path: Path) -> None:
    path = tmp_path / "run" / "broker.sock"
    async with serving(path):
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


async def test_a_broker_that_ends_leaves_its_directory_empty(tmp_path: Path) -> None:
    path = tmp_path / "run" / "broker.sock"
    async with serving(path):
        backend = SocketBackend(path)
        await backend.open()
    assert list(path.parent.iterdir()) == []
    with pytest.raises(StoreUnavailable):
        await backend.stats()
    await backend.close()


def test_a_directory_that_others_may_write_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o770)
    with pytest.raises(BackendError, match="chmod 700"):
        private_directory(tmp_path)


def test_a_directory_of_another_user_is_refused(tmp_path: Path) -> None:
    theirs = Path("/")
    if os.geteuid() == 0:
        theirs = tmp_path / "theirs"
        theirs.mkdir(mode=0o700)
        os.chown(theirs, 65534, 65534)
    with pytest.raises(BackendError, match="belongs to user"):
        private_directory(theirs)


def test_a_link_in_place_of_the_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(BackendError, match="must be a directory"):
        private_directory(tmp_path / "link")


def test_a_directory_that_cannot_be_made_is_refused_with_words(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "none" / "fastjobs", tmp_path / "file", tmp_path / "file" / "fastjobs"):
        with pytest.raises(BackendError, match="cannot be made"):
            private_directory(path)


async def test_a_path_that_is_too_long_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="longer than"):
        await serve(tmp_path / ("x" * 200))


async def test_a_process_of_another_user_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "broker.sock"
    async with serving(path, client_uid=os.getuid() + 1):
        backend = SocketBackend(path)
        with pytest.raises(StoreUnavailable):
            await backend.stats()
        await backend.close()


async def test_a_server_of_another_user_is_told_nothing(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastjobs.backends.remote.peer_uid", lambda transport: os.getuid() + 1)
    backend = SocketBackend(path)
    with pytest.raises(BackendError, match=f"belongs to user {os.getuid() + 1}") as refused:
        await push(backend, entry("a"))
    assert not isinstance(refused.value, StoreUnavailable)
    await backend.close()


async def test_a_client_of_another_user_is_heard_to_no_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastjobs.backends.broker.peer_uid", lambda transport: os.getuid() + 1)
    place = MemoryPlace()
    async with serving(tmp_path / "broker.sock", store=place.core):
        reader, writer = await asyncio.open_unix_connection(tmp_path / "broker.sock")
        call = HEADER.pack(len(encode(frames.Hello(frames.VERSION))), 1, Op.HELLO) + encode(frames.Hello(frames.VERSION))
        bodies = encode(("p", 1, 0, [("q", 5, [b"job"])], [], 0.0))
        writer.write(call + HEADER.pack(len(bodies), 2, Op.PUSH) + bodies)
        with contextlib.suppress(ConnectionError):
            assert await asyncio.wait_for(reader.read(), SOON_S) == b""
        writer.close()
    assert (await counts(place.backend())).ready == 0


async def test_no_umask_opens_the_socket_to_others(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        async with serving(tmp_path / "run" / "broker.sock"):
            assert stat.S_IMODE((tmp_path / "run").stat().st_mode) == 0o700
            assert stat.S_IMODE((tmp_path / "run" / "broker.sock").stat().st_mode) == 0o600
            assert stat.S_IMODE((tmp_path / "run" / "broker.sock.lock").stat().st_mode) == 0o600
    finally:
        os.umask(before)


async def test_a_second_broker_at_the_same_path_is_refused_and_does_the_first_no_harm(path: str, store: SocketBackend) -> None:
    await push(store, entry("a"))
    with pytest.raises(BackendError, match=rf"already serves .* \(process {os.getpid()}\)"):
        await serve(path)
    other = store.clone()
    assert (await counts(other)).ready == 1
    await other.close()


async def test_the_socket_of_a_broker_that_died_is_replaced(
    tmp_path: Path, broker_process: Callable[[Path], subprocess.Popen[str]]
) -> None:
    path = tmp_path / "broker.sock"
    process = broker_process(path)
    process.kill()
    process.wait()
    assert path.exists()
    async with serving(path):
        backend = SocketBackend(path)
        assert (await backend.stats()).running == 0
        await backend.close()


# -- bad clients


@pytest.mark.parametrize(
    "data",
    [
        random.Random(1).randbytes(1000),
        HEADER.pack(FRAME_BYTES + 1, 1, Op.PUSH),
        HEADER.pack(0xFFFF_FFFF, 1, Op.PUSH),
        HEADER.pack(3, 1, Op.PUSH) + b"\xc1\xc1\xc1",
        HEADER.pack(5, 1, Op.PUSH) + b"\xdd\xff\xff\xff\xff",
        HEADER.pack(3, 1, Op.REGISTER) + b"\xa2\xff\xfe",
        HEADER.pack(1, 1, Op.EXCHANGE) + b"\x90",
        HEADER.pack(1, 1, Op.WAIT) + b"\x01",
        HEADER.pack(1, 1, Op.PUSH) + b"\xc0",
        HEADER.pack(0, 1, Op.STATS)[:-1] + bytes([Op.PURGE]),
    ],
    ids=[
        "noise",
        "too-large",
        "huge",
        "no-msgpack",
        "endless-array",
        "not-utf8",
        "too-few-fields",
        "wrong-wait",
        "nil",
        "no-body",
    ],
)
async def test_a_client_that_sends_garbage_loses_its_connection_and_nobody_else_does(
    path: str, store: SocketBackend, data: bytes
) -> None:
    await push(store, entry("a"))
    waiting = asyncio.create_task(store.wait(["other"], 60))
    with Raw(path) as raw:
        raw.socket.sendall(data)
        assert await asyncio.to_thread(raw.is_closed)
    assert (await counts(store)).ready == 1
    await push(store, entry("b", queue="other"))
    assert await waiting


async def test_noise_of_any_kind_harms_nobody(path: str, store: SocketBackend) -> None:
    rng = random.Random(7)
    await push(store, entry("a"))
    for _ in range(300):
        body = rng.randbytes(rng.randrange(60))
        with Raw(path) as raw:
            raw.socket.sendall(framed(rng.randrange(20), rng.randrange(1 << 63), body) + rng.randbytes(rng.randrange(20)))
    assert (await counts(store)).ready == 1


async def test_a_first_request_that_is_no_hello_ends_the_connection(path: str) -> None:
    with Raw(path, greet=False) as raw:
        raw.send(Op.STATS, 1, encode(None))
        assert await asyncio.to_thread(raw.is_closed)


def test_another_version_is_refused_with_words(path: str) -> None:
    with Raw(path, greet=False) as raw:
        raw.send(Op.HELLO, 1, encode(frames.Hello(frames.VERSION + 1)))
        code, _, body = raw.receive()
        assert code == Status.REFUSED
        assert b"restart the older" in body


def test_an_unknown_call_is_refused_with_words_and_the_connection_goes_on(path: str) -> None:
    with Raw(path) as raw:
        raw.send(99, 1, encode(None))
        code, id, body = raw.receive()
        assert (code, id) == (Status.REFUSED, 1)
        assert b"no call 99" in body
        raw.send(Op.LEASES, 2, encode(None))
        assert raw.receive() == (Status.OK, 2, encode({}))


async def test_half_a_frame_is_nothing(path: str, store: SocketBackend, place: MemoryPlace) -> None:
    body = encode(("p", 1, 1, [("q", 5, [b"a" * 1000])], [], 0.0))
    frame = framed(Op.PUSH, 1, body)
    for cut in (1, HEADER.size - 1, HEADER.size, HEADER.size + 1, len(frame) - 1):
        with Raw(path) as raw:
            raw.socket.sendall(frame[:cut])
    assert (await store.stats()).queues == []
    assert await place.leftovers() == []


def test_a_frame_may_arrive_byte_by_byte_and_several_at_once(path: str) -> None:
    frame = framed(Op.REGISTER, 1, encode("here.1"))
    with Raw(path) as raw:
        for byte in frame:
            raw.socket.sendall(bytes([byte]))
        assert raw.receive() == (Status.OK, 1, encode(None))
        raw.socket.sendall(frame * 50)
        assert [raw.receive()[0] for _ in range(50)] == [Status.OK] * 50


async def test_a_client_that_goes_away_while_it_waits_leaves_no_waiter(path: str, place: MemoryPlace) -> None:
    with Raw(path) as raw:
        for id in range(1, 20):
            raw.send(Op.WAIT, id, encode(frames.Wait(["q"], 60.0, 0.0)))
        await until(place, ["waiter on q"])
    await until(place, [])


async def test_a_client_that_does_not_read_is_not_served_until_it_does(path: str, store: SocketBackend) -> None:
    """Each request names a new worker and asks for 1 MiB, so the workers tell how many requests were taken."""
    await push(store, entry("large", envelope=bytes(MB)))
    count = 100

    asked = b"".join(
        framed(Op.REGISTER, 2 * id, encode(f"slow.{id}")) + framed(Op.PEEK, 2 * id + 1, encode(("q", 1)))
        for id in range(1, count + 1)
    )
    with Raw(path) as raw:
        raw.socket.sendall(asked)
        taken, before = 0, -1
        async with asyncio.timeout(SOON_S):
            while not taken or taken != before:
                before = taken
                for _ in range(50):  # others are served meanwhile, and the broker has time to go wrong
                    taken = len(await store.workers("slow"))
        assert 0 < taken < 20
        replies = await asyncio.to_thread(lambda: [raw.receive() for _ in range(2 * count)])
    assert [code for code, _, _ in replies] == [Status.OK] * (2 * count)
    assert all(len(body) > MB for _, _, body in replies[1::2])
    assert len(await store.workers("slow")) == count


# -- clients and the life of a broker


async def test_many_calls_in_flight_get_their_own_replies(store: SocketBackend) -> None:
    await asyncio.gather(*(push(store, entry(f"job-{n}", queue=f"q{n}")) for n in range(300)))
    peeked = await asyncio.gather(*(store.peek(f"q{n}", 5) for n in range(300)))
    assert peeked == [[b"job-%d" % n] for n in range(300)]


async def test_a_push_of_tens_of_megabytes_fits(store: SocketBackend) -> None:
    jobs = [entry(name, envelope=name.encode().ljust(MB)) for name in numbered(30)]
    await push(store, *jobs)
    assert (await counts(store)).ready == 30


async def test_a_message_over_the_limit_is_refused_and_the_connection_goes_on(store: SocketBackend) -> None:
    await push(store, entry("a"))
    with pytest.raises(BackendError, match="over the limit"):
        await push(store, *entries(numbered(3), envelope=bytes(FRAME_BYTES // 2)))
    assert (await counts(store)).ready == 1


async def test_a_reply_over_the_limit_is_refused_and_the_connection_goes_on(store: SocketBackend) -> None:
    for name in numbered(3):
        await push(store, entry(name, envelope=bytes(30 * MB)))
    with pytest.raises(BackendError, match="smaller batches"):
        await store.peek("q", 3)
    assert len(await store.peek("q", 2)) == 2


async def test_a_cancelled_call_does_not_disturb_the_next(store: SocketBackend) -> None:
    await push(store, *entries(numbered(3)))
    for _ in range(20):
        call = asyncio.create_task(store.peek("q", 1))
        await asyncio.sleep(0)
        call.cancel()
        assert await store.peek("q", 3) == [b"job-0", b"job-1", b"job-2"]


async def test_the_broker_forgets_a_wait_that_was_cancelled(store: SocketBackend, place: MemoryPlace) -> None:
    wait = asyncio.create_task(store.wait(["q"], 60))
    await until(place, ["waiter on q"])
    wait.cancel()
    await asyncio.wait([wait])
    await until(place, [])


async def test_without_a_broker_calls_say_that_no_supervisor_runs(tmp_path: Path) -> None:
    backend = SocketBackend(tmp_path / "none.sock")
    with pytest.raises(StoreUnavailable, match="no supervisor of this app serves"):
        await backend.push("p", 1, 1, [entry("a")])
    with pytest.raises(StoreUnavailable):
        await backend.wait(["q"], 1)


async def test_a_lost_connection_is_made_again_to_the_same_broker(store: SocketBackend) -> None:
    hand = await worker(store)
    await push(store, entry("a"))
    assert store._link is not None
    store._link.transport.abort()
    assert isinstance(await first_error(store.leases), StoreUnavailable | None)
    assert (await hand.claim()).jobs == ["a"]


async def test_every_call_in_flight_learns_that_the_broker_died(
    tmp_path: Path, broker_process: Callable[[Path], subprocess.Popen[str]]
) -> None:
    path = tmp_path / "broker.sock"
    process = broker_process(path)
    backend = SocketBackend(path)
    await backend.register("here.1")
    calls = [asyncio.create_task(backend.wait(["q"], 60)) for _ in range(5)]
    await asyncio.sleep(0)
    process.kill()
    async with asyncio.timeout(SOON_S):
        results = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(result) for result in results] == [StoreUnavailable] * 5
    with pytest.raises(StoreUnavailable):
        await backend.stats()


async def test_another_broker_in_the_place_of_a_dead_one_is_not_the_same_store(
    tmp_path: Path, broker_process: Callable[[Path], subprocess.Popen[str]]
) -> None:
    path = tmp_path / "broker.sock"
    first = broker_process(path)
    backend = SocketBackend(path)
    await backend.register("here.1")
    first.kill()
    first.wait()
    broker_process(path)
    await first_error(backend.stats)  # of the lost connection
    for store in (backend, backend.clone(), backend):
        error = await first_error(store.stats)
        assert type(error) is BackendError
        assert "its jobs with it" in str(error)
    fresh = SocketBackend(path)
    assert await fresh.leases() == {}
    await fresh.close()


async def test_a_broker_that_falls_silent_is_taken_as_lost(tmp_path: Path) -> None:
    """It greets, and answers nothing more."""

    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        size, id, _ = HEADER.unpack(await reader.readexactly(HEADER.size))
        await reader.readexactly(size)
        welcome = encode(frames.Welcome(b"x", 1))
        writer.write(HEADER.pack(len(welcome), id, Status.OK) + welcome)
        await reader.read()
        writer.close()

    server = await asyncio.start_unix_server(greet, tmp_path / "silent.sock")
    backend = SocketBackend(tmp_path / "silent.sock", call_timeout_s=0.1)
    for call in (backend.stats(), backend.push("p", 1, 1, [entry("a")]), backend.wait(["q"], 0.1)):
        async with asyncio.timeout(SOON_S):
            with pytest.raises(StoreUnavailable):
                await call
    await backend.close()
    server.close()


async def test_something_else_at_the_path_is_not_taken_for_a_broker(tmp_path: Path) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 mail.example.org ESMTP ready, and more of it so that the header is full\r\n")
        await reader.read()
        writer.close()

    server = await asyncio.start_unix_server(talk, tmp_path / "mail.sock")
    backend = SocketBackend(tmp_path / "mail.sock")
    with pytest.raises(BackendError, match="does not speak our protocol"):
        await backend.stats()
    server.close()


@pytest.mark.parametrize(
    ("hello", "reply"), [(b"\xc1", b""), (None, b"\xc1"), (None, encode("stats?")), (None, b"\xdd\xff\xff\xff\xff")]
)
async def test_a_call_whose_reply_cannot_be_read_fails_at_once(tmp_path: Path, hello: bytes | None, reply: bytes) -> None:
    gone = asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        welcome = encode(frames.Welcome(bytes(16), 1)) if hello is None else hello
        with contextlib.suppress(asyncio.IncompleteReadError):  # it hangs up when it cannot read
            for body in (welcome, reply):
                size, id, _ = HEADER.unpack(await reader.readexactly(HEADER.size))
                await reader.readexactly(size)
                writer.write(HEADER.pack(len(body), id, Status.OK) + body)
            await reader.read()
        writer.close()
        await writer.wait_closed()
        gone.set()

    server = await asyncio.start_unix_server(answer, tmp_path / "odd.sock")
    backend = SocketBackend(tmp_path / "odd.sock")
    async with server, asyncio.timeout(SOON_S):
        with pytest.raises(BackendError, match="does not speak our protocol"):
            await backend.stats()
        await backend.close()
        await gone.wait()


async def test_a_long_wait_is_no_silence(path: str) -> None:
    backend = SocketBackend(path, call_timeout_s=0.2)
    assert await backend.wait(["q"], 0.5) is False
    await backend.leases()
    await backend.close()


def test_a_backend_may_be_used_from_one_event_loop_after_another(path: str) -> None:
    backend = SocketBackend(path)

    async def use() -> int:
        await asyncio.gather(*(push(backend, entry("a")) for _ in range(5)))
        ready = (await counts(backend)).ready
        await backend.close()
        return ready

    assert [uvloop.run(use()), asyncio.run(use())] == [5, 10]


async def test_refusals_keep_their_class_and_their_words(store: SocketBackend) -> None:
    with pytest.raises(WorkerGone, match=r"worker here\.1 is unknown"):
        await store.exchange("here.1", 1, [], ["q"], 1)
    with pytest.raises(BackendError, match="priority") as raised:
        await push(store, entry("a", priority=10))
    assert type(raised.value) is BackendError


def test_a_broker_serves_the_store_it_is_given(place: SocketPlace, path: str) -> None:
    place.core.push("p", 1, 1, [], [entry("a")], 0.0)

    async def ready() -> int:
        backend = SocketBackend(path)
        try:
            return (await counts(backend)).ready
        finally:
            await backend.close()

    assert uvloop.run(ready()) == 1
