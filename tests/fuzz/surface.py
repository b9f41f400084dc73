"""One surface: where inputs come in, how they are invented, and how each is judged. And the loop that counts them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from random import Random
from typing import Any

import hypothesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from tests.fuzz.strategies import bred

Check = Callable[[Any], bool]
"""True: the input was taken, and stood its round trip. False: it was refused by an error that is documented. Else it raises."""

CHUNK = 5_000
"""Examples of one run of Hypothesis, which remembers them all."""


@dataclass(frozen=True, kw_only=True)
class Surface:
    """What can be fuzzed."""

    name: str
    inputs: SearchStrategy[Any]
    opened: Callable[[], AbstractContextManager[Check]]
    weight: int = 10  #: of its share in a run; less for what is slow
    offspring: int = 0  #: for inputs that are bytes: so many damaged copies of each are judged too, at a tenth of the cost


@dataclass
class Count:
    """What became of the inputs of one surface."""

    inputs: int = 0
    refused: int = 0
    accepted: int = 0
    failures: list[str] = field(default_factory=list)


def plain(check: Check) -> Callable[[], AbstractContextManager[Check]]:
    """`Surface.opened` for a *check* that needs nothing around it."""
    return lambda: nullcontext(check)


def explore(
    surface: Surface,
    examples: int,
    seed: int,
    *,
    watched: Callable[[], AbstractContextManager[object]] = nullcontext,
    count: Count | None = None,
) -> Count:
    """Judge so many inputs. Raises what the first failing one raised, shrunk.

    *watched* is put around each input: it ends what hangs. *count* is counted on meanwhile.
    """
    counted = Count() if count is None else count

    def judge(check: Check, value: Any) -> None:
        counted.inputs += 1
        try:
            with watched():
                accepted = check(value)
        except Exception as error:
            error.add_note(f"the input: {value!r:.2000}")
            raise
        if accepted:
            counted.accepted += 1
        else:
            counted.refused += 1

    with surface.opened() as check:
        for chunk, size in enumerate(_chunks(examples // (1 + surface.offspring) or 1)):

            @hypothesis.seed(seed * 1_000_003 + chunk)
            @settings(
                max_examples=size,
                database=None,
                deadline=None,
                suppress_health_check=list(HealthCheck),
                phases=[Phase.generate, Phase.shrink],
            )
            @given(surface.inputs, st.integers(0, 2**64 - 1) if surface.offspring else st.none())
            def judged(value: Any, breed: int | None) -> None:
                judge(check, value)
                rng = Random(breed)
                for _ in range(surface.offspring):
                    judge(check, bred(value, rng))

            judged()
    return counted


def _chunks(examples: int) -> Iterator[int]:
    for begun in range(0, examples, CHUNK):
        yield min(CHUNK, examples - begun)
