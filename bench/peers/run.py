"""fastjobs and its peers, side by side on private servers: the same jobs, each peer with the best settings that we found.

    python bench/peers/run.py                                   # everything: half an hour and more
    python bench/peers/run.py --work noop --rounds 2 --seconds 2 --latency 0      # a first look
    python bench/peers/run.py --peer fastjobs --peer ardiq --out today.json --svg today.svg
    python bench/peers/run.py --read today.json --svg today.svg                   # the table and the chart again
    options: --work noop --work sleep --work cpu   --python python3.13   --redis-server /path/to/redis-server

Prints one Markdown table; progress goes to stderr. Peers are installed at first use, each in an environment of its own under
`bench/peers/.envs/`. Some (ardiq) need Python 3.12: name one by --python. Rates of a machine drift: compare those of one run.
"""

from __future__ import annotations

import argparse
import datetime
import json
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(HERE), str(HERE.parent), str(ROOT)]

import machine  # noqa: E402 - beside the peers
from catalog import NAMES, PEERS, Peer, refuse  # noqa: E402 - this directory and the servers of the tests
from chart import svg  # noqa: E402
from environments import interpreter, spoken_by, version  # noqa: E402
from measure import Bench, Drained, Trouble  # noqa: E402
from report import table  # noqa: E402
from stores import Stores  # noqa: E402

WORKS = {"noop": (1, 2), "sleep": (2,), "cpu": (2,)}
"""And with how many processes each is drained."""

ENOUGH_S = 0.4
"""A calibration that took so long tells the rate."""

MOST = 1_500_000
"""Jobs of one drain."""

LEAST = 40


class Contender:
    """One row in the making."""

    def __init__(self, peer: Peer, stores: Stores, python: str, seconds: float, directory: Path) -> None:
        self.peer = peer
        self.stores = stores
        self.seconds = seconds
        self.troubles: list[str] = []
        self.rounds: list[dict[str, Any]] = []
        self.late: dict[str, float] = {}
        self.version = ""
        self._python = python
        self._directory = directory
        self._rates: dict[str, float] = {}

    def install(self, redis: str) -> None:
        """Its environment. Trouble if it cannot run here."""
        refuse(self.peer, redis)
        self.version = "" if self.peer.name == "fastjobs" else version(self.peer.package, self.interpreter)

    @property
    def interpreter(self) -> Path:
        """Its own Python."""
        return interpreter(self.peer.package, self._python)

    def round(self, work: str, processes: int) -> Drained:
        """One drain of about the wanted length."""
        if work not in self._rates:
            self._rates[work] = self._calibrate(work)
        share = 1.5 if work == "noop" and processes == 2 else 1.0  # the rate is of the first count of processes
        jobs = min(max(int(self._rates[work] * self.seconds * share), LEAST), MOST)
        found = self._drain(work, jobs, processes)
        self.rounds.append({"work": work, "processes": processes, **asdict(found)})
        return found

    def latency(self, count: int) -> None:
        """Of single jobs."""
        with self.stores.empty(self.peer.store) as url:
            self.late = self._bench(url).latency(count)

    def row(self) -> dict[str, Any]:
        """All that was found."""
        return {
            "peer": self.peer.name,
            "store": self.peer.store,
            "version": self.version,
            "guarantee": self.peer.guarantee,
            "rounds": self.rounds,
            "latency": self.late,
            "troubles": list(dict.fromkeys(self.troubles)),
        }

    def _calibrate(self, work: str) -> float:
        jobs = self.peer.first if work == "noop" else min(self.peer.first, 400)
        while True:
            found = self._drain(work, jobs, WORKS[work][0])
            if jobs / found.drain_per_s > ENOUGH_S or jobs >= MOST:
                return found.drain_per_s
            jobs = min(jobs * 8, MOST)

    def _drain(self, work: str, jobs: int, processes: int) -> Drained:
        with self.stores.empty(self.peer.store) as url:
            return self._bench(url).drain(work, jobs, processes, lambda: self.stores.settle(self.peer.store, url))

    def _bench(self, url: str) -> Bench:
        return Bench(self.interpreter, self.peer.name, url, ROOT, self._directory)


def installed(contenders: Sequence[Contender], redis: str) -> Iterator[Contender]:
    """Those that can run here."""
    for one in contenders:
        try:
            one.install(redis)
        except Trouble as trouble:
            one.troubles.append(str(trouble))
            print(f"{one.peer.row}: {trouble}", file=sys.stderr)
        else:
            yield one


def compete(contenders: Sequence[Contender], works: Sequence[str], rounds: int, latency: int) -> None:
    """Round by round, every other one in reverse; who is in trouble at something is not asked for that again."""
    failed: set[tuple[Contender, str]] = set()

    def attempt(one: Contender, work: str, what: str, call: Any) -> None:
        if (one, work) in failed:
            return
        try:
            found = call()
        except Trouble as trouble:
            failed.add((one, work))
            one.troubles.append(f"{what}: {trouble}")
            found = trouble
        told = f"{found.drain_per_s:,.0f} jobs/s of {found.jobs:,}" if isinstance(found, Drained) else found or one.late
        print(f"{one.peer.row}: {what}: {told}", file=sys.stderr, flush=True)

    for number in range(rounds):
        for work in works:
            for processes in WORKS[work]:
                for one in contenders if number % 2 == 0 else reversed(contenders):
                    what = f"{work}, {processes} process{'es' * (processes > 1)}, round {number + 1}"
                    attempt(one, work, what, lambda one=one, work=work, n=processes: one.round(work, n))
    for one in contenders if latency else ():
        attempt(one, "latency", "latency", lambda one=one: one.latency(latency))


def about(stores: dict[str, str], python: str, rounds: int) -> dict[str, Any]:
    """What the figures belong to."""
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "cpu": machine.cpu(),
        "cores": machine.cores(),
        "python": python,
        "rounds": rounds,
        **stores,
    }


def measured(options: argparse.Namespace) -> dict[str, Any]:
    """The whole run."""
    chosen = [peer for peer in PEERS if peer.name in (options.peer or NAMES)]
    python = shutil.which(options.python) or options.python
    with Stores(options.redis_server).run() as stores, tempfile.TemporaryDirectory(prefix="fastjobs-peers-") as directory:
        versions = stores.versions()
        everyone = [Contender(peer, stores, python, options.seconds, Path(directory)) for peer in chosen]
        able = list(installed(everyone, versions["redis"]))
        try:
            compete(able, options.work or tuple(WORKS), options.rounds, options.latency)
        except KeyboardInterrupt:
            for one in able:
                one.troubles.append("interrupted before its last round")
    return {"about": about(versions, spoken_by(python), options.rounds), "rows": [one.row() for one in everyone]}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", action="append", choices=NAMES, help="default: all")
    parser.add_argument("--work", action="append", choices=tuple(WORKS), help="default: all")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4.0, help="about how long a drain takes")
    parser.add_argument("--latency", type=int, default=100, metavar="COUNT", help="single jobs at idle workers; 0: none")
    parser.add_argument("--python", default=sys.executable, help="of the peers; default: this one")
    parser.add_argument("--redis-server", metavar="PROGRAM", help="another server; default: Valkey of the tests")
    parser.add_argument("--out", type=Path, help="where the results go as JSON")
    parser.add_argument("--read", type=Path, help="results of an earlier run, instead of measuring")
    parser.add_argument("--brief", action="store_true", help="medians without the least and the most")
    parser.add_argument("--svg", type=Path, help="where the chart goes")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # workers are ended on the way out
    found = json.loads(options.read.read_text()) if options.read else measured(options)
    if options.out is not None:
        options.out.write_text(json.dumps(found, indent=1))
    print("\n".join(table(found, brief=options.brief)))
    if options.svg is not None:
        options.svg.write_text(svg(found))


if __name__ == "__main__":
    main()
