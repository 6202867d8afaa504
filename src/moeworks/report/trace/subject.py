"""What a report of a trace is about."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import SupportsInt

import numpy as np

from moeworks.analyse.inspection import Inspection
from moeworks.analyse.verdicts.domains import domain_names
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
    """Name of the trace, the title of the page."""
    pieces: Pieces | None = None
    """None where no tokenizer is known: tokens are then shown by their ids."""
    other_name: str = ""
    """Name of the trace that it is compared with."""
    no_pieces: str = ""
    """Why the tokenizer that the trace seems to name was not taken."""

    @property
    def layers(self) -> list[str]:
        """Names of the MoE layers, by their index in the model."""
        return [f"layer {number}" for number in self.inspection.header.layers]

    @property
    def domains(self) -> tuple[str, ...]:
        """Names of the domains that were compared; empty where there is one only."""
        return domain_names(self.inspection)

    @property
    def choices(self) -> str:
        """Words for how many experts a token has: "2", or "up to 2" where slots may be empty."""
        header = self.inspection.header
        return f"up to {header.top_k}" if header.empty_slots else f"{header.top_k}"

    @property
    def ranked(self) -> bool:
        """Whether a token's experts have an order: that of the recorded weights."""
        return "weights" in self.inspection.header.fields

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
    return "".join(_SIGNS.get(c) or _sign(c) for c in text)


def visible_in_text(text: str) -> str:
    """A token as it stands in its text: blanks and line ends stay, other invisible characters are signs.

    A character that turns the direction of writing would reorder all tokens behind it.
    """
    return "".join(c if c in " \n" else _sign(c) for c in text)


_SIGNS = {" ": "␣", "\n": "⏎", "\t": "⇥", "\r": "␍", "\u00a0": "⍽"}


def _sign(character: str) -> str:
    return character if character.isprintable() else _SIGNS.get(character) or f"<U+{ord(character):04X}>"
