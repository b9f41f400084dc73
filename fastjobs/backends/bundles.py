"""The entries of one push, sorted by what a store does with them."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from fastjobs.model import Entry, Likes


class Bundle(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """Jobs of one push that are ready at once and stand in the same place, in order."""

    queue: str
    priority: int
    envelopes: list[bytes]


def bundle(entries: Sequence[Entry]) -> tuple[list[Bundle], list[Entry]]:
    """*entries* as bundles of what is ready at once, and the rest, which needs the store's clock.

    The work per job of a push, done by its producer: the core then moves whole lists.
    """
    if not entries:
        return [], []
    if isinstance(entries, Likes):
        if entries.run_at is None and entries.delay_s <= 0:
            return [Bundle(entries.queue, entries.priority, entries.envelopes)], []
        return [], list(entries)
    places: dict[tuple[str, int], list[bytes]] = {}
    later = []
    for entry in entries:
        if entry.run_at is None and entry.delay_s <= 0:
            places.setdefault((entry.queue, entry.priority), []).append(entry.envelope)
        else:
            later.append(entry)
    return [Bundle(queue, priority, envelopes) for (queue, priority), envelopes in places.items()], later
