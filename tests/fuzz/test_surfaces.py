"""A few hundred inputs of every surface; ``tox -e fuzz`` runs a million."""

from __future__ import annotations

import os

import pytest

from tests.fuzz.surface import Surface, explore
from tests.fuzz.surfaces import SURFACES

EXAMPLES = 2 * int(os.environ.get("FASTJOBS_TEST_EXAMPLES", "100"))


@pytest.mark.parametrize("surface", SURFACES, ids=[surface.name.replace(" ", "-") for surface in SURFACES])
def test_what_comes_in_is_taken_or_refused_as_documented(surface: Surface) -> None:
    count = explore(surface, EXAMPLES, 1)
    assert count.inputs >= EXAMPLES * 0.9
    assert count.refused
    assert count.accepted
