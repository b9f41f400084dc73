"""The faults that the driver injects: what each does, how often, and what it may excuse.

A fault is a generator that does harm and yields for how many seconds; what comes after the last yield makes it good again. It
takes what it needs alone by `Scene.hold`, and stands aside, having done nothing, where that is taken.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from random import Random
from typing import NamedTuple, Protocol

from tests.chaos.arena import Arena, stop_and_go
from tests.chaos.machines import GRACE_S, LEASE_S, Machine
from tests.chaos.proxy import DOWN, UP, Link, Proxy, Way


class Scene(Protocol):
    """What faults need of a run."""

    random: Random
    arena: Arena
    machines: list[Machine]

    def hold(self, *what: str) -> AbstractContextManager[bool]:
        """Take the machines of these names, "store" or "producer" for oneself. False if others have some of them."""
        ...

    def struck(self, pids: list[int], why: str, *, killed: bool = False) -> None:
        """These processes are being hit, and may lose the jobs they hold."""
        ...

    def span(self, what: str, machine: str = "") -> AbstractContextManager[None]:
        """While it lasts: "cut_off", "drained", "crashes" or "outages" of the story."""
        ...

    def kill_producer(self) -> None:
        """It is started again by itself."""
        ...


Steps = Iterator[float]
Harm = Callable[[Scene], Steps]


class Fault(NamedTuple):
    """One kind."""

    words: str
    weight: float
    harm: Harm
    fits: Callable[[Arena], bool]


FAULTS: list[Fault] = []


def fault(words: str, weight: float, fits: Callable[[Arena], bool] = lambda arena: True) -> Callable[[Harm], Harm]:
    """A fault of this name, *weight* times as likely as one of weight 1, in arenas that it *fits*."""

    def add(harm: Harm) -> Harm:
        FAULTS.append(Fault(words, weight, harm, fits))
        return harm

    return add


# -- the network ------------------------------------------------------------------------------------------------------


def a_proxy(scene: Scene) -> Proxy:
    return scene.random.choice(list(scene.arena.proxies.values()))


def a_link(scene: Scene) -> Link | None:
    links = a_proxy(scene).links()
    return scene.random.choice(links) if links else None


def a_way(scene: Scene) -> tuple[Way, ...]:
    return scene.random.choice(((UP,), (DOWN,), (UP, DOWN)))


@fault("connection cut", 6)
def cut_one(scene: Scene) -> Steps:
    if link := a_link(scene):
        yield 0.0
        link.cut(reset=scene.random.random() < 0.7)


@fault("all connections of a machine cut", 1.5)
def cut_all(scene: Scene) -> Steps:
    yield 0.0
    a_proxy(scene).cut()


@fault("reply lost", 8)
def lose_one(scene: Scene) -> Steps:
    if link := a_link(scene):
        yield 0.0
        link.lose_reply()


@fault("all replies to a machine lost", 2)
def lose_all(scene: Scene) -> Steps:
    yield 0.0
    a_proxy(scene).lose_replies()


@fault("connection stalled", 4)
def stall_one(scene: Scene) -> Steps:
    if link := a_link(scene):
        link.stall(*a_way(scene))
        yield scene.random.uniform(0.1, 2.0)
        link.resume()


@fault("connection half-open", 3)
def half_open(scene: Scene) -> Steps:
    if link := a_link(scene):
        link.swallow(*a_way(scene))
        yield scene.random.uniform(0.2, 2.0)
        link.cut()


@fault("connection byte by byte", 3)
def trickle(scene: Scene) -> Steps:
    if link := a_link(scene):
        link.slow(*a_way(scene), piece_bytes=scene.random.choice((1, 7, 100)))
        yield scene.random.uniform(0.2, 1.0)
        link.resume()


@fault("connection slow", 2)
def delay(scene: Scene) -> Steps:
    if link := a_link(scene):
        link.set(delay_s=scene.random.uniform(0.01, 0.1))
        yield scene.random.uniform(0.5, 2.0)
        link.resume()


def a_line(scene: Scene) -> tuple[str, Proxy]:
    """A proxy, and whom it holds up: a machine, or all where it is a node's."""
    name, proxy = scene.random.choice(list(scene.arena.proxies.items()))
    return name, proxy


def everybody(scene: Scene) -> list[str]:
    return [machine.name for machine in scene.machines]


@fault("machine or node refused for a moment", 0.6)
def refuse(scene: Scene) -> Steps:
    name, proxy = a_line(scene)
    with scene.hold(f"net {name}") as held:
        if held:
            with scene.span("outages"):
                proxy.refuse()
                yield scene.random.uniform(0.2, 1.5)
                proxy.resume()


@fault("machine or node cut off past the lease", 0.12)
def cut_off(scene: Scene) -> Steps:
    name, proxy = a_line(scene)
    with scene.hold(f"net {name}", "long") as held:
        if held:
            with scene.span("outages"), scene.span("cut_off", name if name in everybody(scene) else ""):
                scene.random.choice((proxy.stall, proxy.refuse, lambda: proxy.swallow(UP), lambda: proxy.swallow(DOWN)))()
                yield scene.random.uniform(1.2, 2.5) * LEASE_S
                proxy.resume()


# -- processes --------------------------------------------------------------------------------------------------------


def a_machine(scene: Scene) -> Machine | None:
    up = [machine for machine in scene.machines if machine.is_up]
    return scene.random.choice(up) if up else None


def a_child(scene: Scene, role: str) -> int | None:
    machine = a_machine(scene)
    children = machine.children(role) if machine else []
    return scene.random.choice(children) if children else None


def _worker_dies(words: str, number: int) -> Harm:
    def harm(scene: Scene) -> Steps:
        if pid := a_child(scene, "worker"):
            yield 0.0
            scene.struck([pid], words, killed=True)
            _kill(pid, number)

    return harm


for _words, _weight, _number in (
    ("worker killed by SIGKILL", 2.0, signal.SIGKILL),
    ("worker killed by SIGSEGV", 0.5, signal.SIGSEGV),
    ("worker killed by SIGABRT", 0.5, signal.SIGABRT),
):
    fault(_words, _weight)(_worker_dies(_words, _number))


@fault("worker told to stop", 0.7)
def term_worker(scene: Scene) -> Steps:
    machine = a_machine(scene)
    workers = machine.children("worker") if machine else []
    if machine and workers:
        with scene.span("drained", machine.name):
            _kill(scene.random.choice(workers), signal.SIGTERM)
            yield GRACE_S + 2.0


@fault("worker stopped for a moment", 2)
def pause_worker(scene: Scene) -> Steps:
    if pid := a_child(scene, "worker"):
        stop_and_go([pid], go=False)
        yield scene.random.uniform(0.05, 1.0)
        stop_and_go([pid], go=True)


@fault("worker stopped past the lease", 0.25)
def stop_worker(scene: Scene) -> Steps:
    if pid := a_child(scene, "worker"):
        stop_and_go([pid], go=False)
        yield scene.random.uniform(1.2, 2.0) * LEASE_S
        stop_and_go([pid], go=True)


@fault("maintenance killed", 0.7)
def kill_maintenance(scene: Scene) -> Steps:
    machine = a_machine(scene)
    if machine and (pids := machine.children("maintenance")):
        with scene.span("cut_off", machine.name):  # one killed again and again comes back later and later
            _kill(scene.random.choice(pids), signal.SIGKILL)
            yield 1.0


@fault("maintenance stopped until it is replaced", 0.2)
def stop_maintenance(scene: Scene) -> Steps:
    machine = a_machine(scene)
    if machine and (pids := machine.children("maintenance")):
        with scene.span("cut_off", machine.name):
            stop_and_go(pids, go=False)
            yield scene.random.uniform(0.5, 4.0)
            stop_and_go(pids, go=True)


@fault("supervisor stopped for a moment", 0.4)
def pause_supervisor(scene: Scene) -> Steps:
    machine = a_machine(scene)
    if machine and machine.process:
        pid = machine.process.pid
        stop_and_go([pid], go=False)
        yield scene.random.uniform(0.1, 2.0)
        stop_and_go([pid], go=True)


@fault("supervisor killed", 0.3)
def kill_supervisor(scene: Scene) -> Steps:
    machine = a_machine(scene)
    if machine and machine.process:
        with scene.hold(machine.name) as held:
            if held:
                scene.struck(machine.children("worker"), "supervisor killed")
                machine.kill()
                yield scene.random.choice((0.0, 1.0))
                machine.start()


@fault("machine lost to the other", 0.15)
def lose_machine(scene: Scene) -> Steps:
    machine = a_machine(scene)
    if machine:
        with scene.hold(machine.name, "long") as held:
            if held:
                scene.struck(machine.children("worker"), "machine lost")
                machine.dies()
                yield scene.random.uniform(1.2, 2.0) * LEASE_S
                machine.start()


@fault("machine frozen past the lease", 0.12)
def freeze_machine(scene: Scene) -> Steps:
    machine = a_machine(scene)
    if machine:
        with scene.hold(machine.name, "long") as held:
            if held:
                pids = machine.everything()
                with scene.span("cut_off", machine.name):
                    stop_and_go(pids, go=False)
                    yield scene.random.uniform(1.2, 2.0) * LEASE_S
                    stop_and_go(pids, go=True)


@fault("deploy", 0.3)
def reload(scene: Scene) -> Steps:
    machine = a_machine(scene)
    if machine:
        with scene.span("drained", machine.name):
            with scene.hold(machine.name) as held:
                if not held:
                    return
                machine.send(signal.SIGHUP)
                yield scene.random.uniform(1.0, 5.0)
            yield len(machine.children("worker")) * (GRACE_S + 1.0)  # its workers are replaced one after the other


@fault("supervisor told to stop", 0.15)
def term_supervisor(scene: Scene) -> Steps:
    machine = a_machine(scene)
    if machine and machine.process:
        with scene.hold(machine.name) as held:
            if held:
                with scene.span("drained", machine.name):
                    machine.send(signal.SIGTERM)
                    for _ in range(40):
                        yield 0.5
                        if not machine.is_up:
                            break
                    scene.struck(machine.children("worker"), "supervisor did not end")
                    machine.kill()
                machine.start()


@fault("supervisor told to stop twice", 0.1)
def term_supervisor_twice(scene: Scene) -> Steps:
    machine = a_machine(scene)
    if machine and machine.process:
        with scene.hold(machine.name) as held:
            if held:
                scene.struck(machine.children("worker"), "stopped at once")
                with scene.span("drained", machine.name):
                    machine.send(signal.SIGTERM)
                    yield 0.3
                    scene.struck(machine.children("worker"), "stopped at once")
                    machine.send(signal.SIGTERM)
                    yield 2.0
                    scene.struck(machine.children("worker"), "stopped at once")
                    machine.kill()
                machine.start()


@fault("producer killed", 0.3)
def kill_producer(scene: Scene) -> Steps:
    with scene.hold("producer") as held:
        if held:
            yield 0.0
            scene.kill_producer()


@fault("everything killed at once", 0.08, lambda arena: arena.can_crash)
def kill_everything(scene: Scene) -> Steps:
    with scene.hold("store", "producer", "long", *everybody(scene)) as held:
        if held:
            with scene.span("outages"), scene.span("crashes"):
                for machine in scene.machines:
                    scene.struck(machine.children("worker"), "everything killed")
                    machine.dies()
                scene.kill_producer()
                scene.arena.crash(scene.random)
                yield scene.random.uniform(0.2, 2.0)
                scene.arena.restart()
                for machine in scene.machines:
                    machine.start()


# -- the store --------------------------------------------------------------------------------------------------------


@fault("store ends a connection", 3, lambda arena: bool(arena.kicks))
def kick(scene: Scene) -> Steps:
    with scene.hold("store") as held:
        if held:
            yield 0.0
            scene.arena.kick(scene.random)


@fault("store stopped for a while", 0.3)
def pause_store(scene: Scene) -> Steps:
    with scene.hold("store") as held:
        if held:
            pids = scene.arena.pids(scene.random)
            with scene.span("outages"):
                stop_and_go(pids, go=False)
                yield scene.random.uniform(0.3, 3.0)
                stop_and_go(pids, go=True)


@fault("store stopped past the lease", 0.08)
def stop_store(scene: Scene) -> Steps:
    with scene.hold("store", "long") as held:
        if held:
            pids = scene.arena.pids(scene.random)
            with scene.span("outages"):
                stop_and_go(pids, go=False)
                yield scene.random.uniform(1.2, 2.0) * LEASE_S
                stop_and_go(pids, go=True)


@fault("store killed and restarted", 0.2, lambda arena: arena.can_crash)
def crash(scene: Scene) -> Steps:
    with scene.hold("store") as held:
        if held:
            with scene.span("outages"), scene.span("crashes"):
                scene.arena.crash(scene.random)
                yield scene.random.uniform(0.1, 2.0)
                scene.arena.restart()


@fault("a process of the store killed", 0.15, lambda arena: arena.has_parts)
def kill_part(scene: Scene) -> Steps:
    with scene.hold("store") as held:
        if held:
            with scene.span("outages"), scene.span("crashes"):
                scene.arena.kill_part(scene.random)
                yield 2.0  # it recovers by itself


def _kill(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return
