"""`fastjobs bench` with the store behind a network of 1 ms round trip: a proxy delays what passes, either way by half of it.

python bench/far.py --store redis --store postgres [--ms 1] [--workers 2] [--jobs 200000]
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import queue
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stores import ROOT, store_at  # bench/ is where this script is

CHUNK = 262_144


def pump(source: socket.socket, target: socket.socket, delay_s: float) -> None:
    """Pass on what comes from *source*, each piece *delay_s* after it came, in threads of their own."""
    pieces: queue.SimpleQueue[tuple[float, bytes]] = queue.SimpleQueue()

    def take() -> None:
        data = b"-"
        while data:
            try:
                data = source.recv(CHUNK)
            except OSError:
                data = b""
            pieces.put((time.monotonic() + delay_s, data))

    def give() -> None:
        while True:
            due, data = pieces.get()
            if (wait := due - time.monotonic()) > 0:
                time.sleep(wait)
            with contextlib.suppress(OSError):
                if not data:
                    target.shutdown(socket.SHUT_WR)
                    return
                target.sendall(data)

    threading.Thread(target=take, daemon=True).start()
    threading.Thread(target=give, daemon=True).start()


def serve(path: str, server: str, delay_s: float, ready: multiprocessing.synchronize.Event) -> None:
    """Listen at the Unix socket *path*; connect each client to that at *server*."""
    sys.setswitchinterval(1e-4)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(64)
    ready.set()
    while True:
        client, _ = listener.accept()
        behind = socket.socket(socket.AF_UNIX)
        behind.connect(server)
        pump(client, behind, delay_s)
        pump(behind, client, delay_s)


@contextmanager
def far(url: str, delay_s: float) -> Iterator[str]:
    """A URL for the store at *url*, which listens at a Unix socket, as seen from afar."""
    with tempfile.TemporaryDirectory(prefix="fj-far-") as directory:
        if url.startswith("postgres"):
            before, _, home = url.partition("host=")
            name = next(Path(home).glob(".s.PGSQL.*[0-9]")).name
            server, path, there = str(Path(home, name)), f"{directory}/{name}", f"{before}host={directory}"
        else:
            server, path = url.removeprefix("unix://"), f"{directory}/s"
            there = f"unix://{path}"
        context = multiprocessing.get_context("spawn")
        ready = context.Event()
        proxy = context.Process(target=serve, args=(path, server, delay_s, ready), daemon=True)
        proxy.start()
        try:
            if not ready.wait(30):
                raise SystemExit("the proxy does not come up")
            yield there
        finally:
            proxy.kill()
            proxy.join()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", action="append", choices=("redis", "postgres"))
    parser.add_argument("--ms", type=float, default=1.0, help="round trip added by the proxy")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--jobs", type=int, default=200_000)
    options = parser.parse_args()
    for kind in options.store or ("redis", "postgres"):
        with store_at(kind) as url, far(url, options.ms / 2000) as there:
            print(f"\n{kind}, {options.ms:g} ms away", flush=True)
            sizes = ("-n", str(options.workers), "--jobs", str(options.jobs))
            command = (sys.executable, "-m", "fastjobs", "bench", "--backend", there, *sizes)
            if subprocess.run(command, cwd=ROOT, check=False).returncode:
                raise SystemExit(1)


if __name__ == "__main__":
    main()
