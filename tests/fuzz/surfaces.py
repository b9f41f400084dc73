"""All surfaces."""

from __future__ import annotations

from tests.fuzz import commands, envelopes, frames, lines, mapping, payloads, store_words, texts, urls
from tests.fuzz.surface import Surface

SURFACES: tuple[Surface, ...] = (
    envelopes.SURFACE,
    *payloads.SURFACES,
    lines.SURFACE,
    *commands.SURFACES,
    urls.SURFACE,
    *texts.SURFACES,
    *frames.SURFACES,
    *mapping.SURFACES,
    *store_words.SURFACES,
)
