"""What a report of a trace is about."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import SupportsInt

import numpy as np

from moeworks.analyse.inspection import Inspection
from moeworks.data.pieces import Pieces, readable

MAX_DOMAINS = 24
"""Domains in the page, largest first, as far as MAX_CELLS allows."""
MAX_CELLS = 400_000
"""Cells (layer, expert, domain) in the page."""


@dataclass(frozen=True, eq=False)
class Subject:
    """The tables of a trace, and what its names and tokens are."""

    inspection: Inspection
    name: str
    """Of the trace: what the page is titled with."""
    pieces: Pieces | None = None
    """None where no tokenizer is known: tokens are then shown by their ids."""
    other_name: str = ""
    """Of the trace that it is compared with."""
    no_pieces: str = ""
    """Why the tokenizer that the trace seems to name was not taken."""

    @property
    def layers(self) -> list[str]:
        """Names of the MoE layers, by their index in the model."""
        return [f"layer {number}" for number in self.inspection.header.layers]

    @property
    def domains(self) -> tuple[str, ...]:
        """Names of the domains that were compared; empty where there is one only."""
        table = self.inspection.analysis.domains
        return () if table is None else tuple(name or "(none)" for name in table.domains)

    def tokens(self, ids: Iterable[SupportsInt]) -> list[str]:
        """What each token looks like on its own, blanks made visible."""
        ids = [int(number) for number in ids]
        if self.pieces is None:
            return [f"#{number}" for number in ids]
        return [visible(readable(piece)) for piece in self.pieces.of(ids)]


def drawn_domains(subject: Subject) -> np.ndarray:
    """int: places of the domains that the page holds, in their order; the largest, as there is room for."""
    table = subject.inspection.analysis.domains
    if table is None:
        return np.zeros(0, np.int64)
    layers, experts, domains = table.specialisation.shape
    room = int(np.clip(MAX_CELLS // (layers * experts), 4, MAX_DOMAINS))
    return np.sort(np.argsort(-table.tokens, kind="stable")[: min(room, domains)])


def visible(text: str) -> str:
    """Blanks and control characters of a token as signs that can be seen."""
    shown = text.translate({32: "␣", 10: "⏎", 9: "⇥", 13: "␍", 0xA0: "⍽"})
    return "".join(c if c.isprintable() else f"<U+{ord(c):04X}>" for c in shown)
