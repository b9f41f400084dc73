"""Signals for a loop that waits on a descriptor: handlers only record, the loop acts."""

from __future__ import annotations

import os
import select
import signal
import socket
from collections.abc import Iterable
from types import FrameType
from typing import Final, Self

HANDLED: Final = frozenset(
    {
        signal.SIGTERM,
        signal.SIGINT,
        signal.SIGHUP,
        signal.SIGCHLD,
        signal.SIGTTIN,
        signal.SIGTTOU,
        signal.SIGUSR1,
    }
)
"""What a supervisor listens to."""


class Signals:
    """Records the signals of `HANDLED` from ``with`` on; `wait` ends when one has come. Main thread only."""

    def __init__(self) -> None:
        self._pending: list[int] = []
        self._wake_in, self._wake_out = socket.socketpair()
        self._wake_in.setblocking(False)
        self._wake_out.setblocking(False)
        self._before: dict[int, object] = {}
        self.hangup_ignored = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN  #: started with nohup

    def __enter__(self) -> Self:
        # The byte in the socket wakes the loop; the number is recorded by the handler, which runs right after.
        signal.set_wakeup_fd(self._wake_out.fileno(), warn_on_full_buffer=False)
        for number in HANDLED:
            self._before[number] = signal.signal(number, self._record)
        # A supervisor that re-executed itself blocked them until now.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDLED)
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self.close()

    def close(self) -> None:
        """Stop waking; in a forked child, where the handlers are reset apart."""
        signal.set_wakeup_fd(-1)
        self._wake_in.close()
        self._wake_out.close()

    def wait(self, timeout_s: float, others: Iterable[int] = ()) -> list[int]:
        """Until a signal has come, one of the descriptors *others* can be read, or *timeout_s* is over. The readable others."""
        poll = select.poll()
        own = self._wake_in.fileno()
        for fd in (own, *others):
            poll.register(fd, select.POLLIN)
        ready = [] if self._pending else [fd for fd, _ in poll.poll(max(timeout_s, 0.0) * 1000)]
        if own in ready:
            ready.remove(own)
            try:
                while self._wake_in.recv(4096):
                    continue
            except BlockingIOError:
                return ready
        return ready

    def take(self) -> list[int]:
        """The signals since the last call, in order."""
        pending, self._pending = self._pending, []
        return pending

    def _record(self, number: int, frame: FrameType | None) -> None:
        self._pending.append(number)


ENDING: Final = frozenset({signal.SIGTERM, signal.SIGINT})
"""Blocked in a child until it has its handlers: one that died of them would leave jobs leased that it was to give back."""

STACKS: Final = frozenset({signal.SIGUSR1, signal.SIGUSR2})
"""What children show their stacks on. Blocked in a child until it can: by default they would end it."""


def reset_in_child() -> None:
    """In a forked child: default actions, nothing blocked but `STACKS` and `ENDING`."""
    signal.set_wakeup_fd(-1)
    for number in HANDLED | STACKS:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, STACKS | ENDING)


def has_terminal() -> bool:
    """Whether this process has a controlling terminal that is still there."""
    try:
        fd = os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY | os.O_NONBLOCK)
    except OSError:
        return False
    os.close(fd)
    return True
