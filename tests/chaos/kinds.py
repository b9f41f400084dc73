"""The kinds of jobs, what each does, and how it is to end."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


class Kind(IntEnum):
    """Of a job; its handler has the same name in lower case."""

    PLAIN = 0
    NAP = 1
    THREAD = 2
    FORK = 3
    BLOCK = 4
    RETRY = 5
    BASE = 6
    CANCEL = 7
    LIMIT = 8
    DISCARD = 9
    EXIT_ONCE = 10
    SEGV_ONCE = 11
    ABORT_ONCE = 12
    KILL_ONCE = 13
    POISON = 14
    STUCK = 15
    LEAK = 16
    CLOSE_ONCE = 17


@dataclass(frozen=True, slots=True)
class Fate:
    """How a job of some kind is to end."""

    words: str  #: of the table of faults; "" for what is none: a job that is retried is everyday life
    failures: int = 0  #: runs that fail by design before the last
    dead: bool = False  #: it ends among the dead letters, else by finishing
    share: float = 0.0  #: of all jobs
    rate_s: float = 0.0  #: jobs a second, of rarer kinds


FATES = {
    Kind.PLAIN: Fate(""),
    Kind.NAP: Fate("", share=0.03),
    Kind.THREAD: Fate("", share=0.005),
    Kind.FORK: Fate("handler forks", rate_s=0.3),
    Kind.BLOCK: Fate("handler blocks the loop", rate_s=0.1),
    Kind.RETRY: Fate("", failures=2, share=0.005),
    Kind.BASE: Fate("handler raises a BaseException", failures=1, rate_s=0.3),
    Kind.CANCEL: Fate("handler cancels itself", failures=1, rate_s=0.3),
    Kind.LIMIT: Fate("handler outlives its time limit", failures=1, rate_s=0.5),
    Kind.DISCARD: Fate("handler discards", dead=True, rate_s=0.2),
    Kind.EXIT_ONCE: Fate("handler calls os._exit", rate_s=0.08),
    Kind.SEGV_ONCE: Fate("handler segfaults", rate_s=0.08),
    Kind.ABORT_ONCE: Fate("handler aborts", rate_s=0.08),
    Kind.KILL_ONCE: Fate("handler is killed as if out of memory", rate_s=0.08),
    Kind.POISON: Fate("handler always kills its worker", dead=True, rate_s=0.08),
    Kind.STUCK: Fate("handler that nothing stops", failures=1, rate_s=0.02),
    Kind.LEAK: Fate("handler leaks memory", rate_s=0.5),
    Kind.CLOSE_ONCE: Fate("handler closes all descriptors", rate_s=0.04),
}
