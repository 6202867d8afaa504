"""Bits per byte and perplexity of a model on documents, per domain."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from moeworks.config.pools import NAME_ONE, type_named
from moeworks.data.documents import Document
from moeworks.data.model_tokenizer import ModelTokenizer
from moeworks.data.pieces import Pieces
from moeworks.errors import DataError
from moeworks.evaluate.replay import TraceReplay
from moeworks.evaluate.scoring import Row, score_rows, windows
from moeworks.models.decoder import Decoder

_AT_ONCE = 64  # documents whose rows are batched together


@dataclass
class Totals:
    """Sums over documents."""

    nats: float = 0.0
    tokens: int = 0
    """Predicted tokens."""
    bytes: int = 0
    """UTF-8 bytes of the predicted tokens: of the documents, but for first tokens that nothing predicts."""
    documents: int = 0

    def add(self, other: "Totals") -> None:
        """Add the sums over another set of documents."""
        self.nats += other.nats
        self.tokens += other.tokens
        self.bytes += other.bytes
        self.documents += other.documents

    @property
    def bits_per_byte(self) -> float:
        """Total nats / ln 2 / total bytes: comparable between tokenizers."""
        return self.nats / math.log(2) / max(self.bytes, 1)

    @property
    def loss(self) -> float:
        """Nats per token."""
        return self.nats / max(self.tokens, 1)

    @property
    def perplexity(self) -> float:
        """exp(loss): per token, so not comparable between tokenizers."""
        return math.exp(min(self.loss, 700.0))

    def record(self) -> dict[str, Any]:
        """The figures by name."""
        return {
            "bits_per_byte": self.bits_per_byte,
            "perplexity": self.perplexity,
            "loss": self.loss,
            "documents": self.documents,
            "bytes": self.bytes,
            "tokens": self.tokens,
        }


def evaluate_texts(
    model: Decoder,
    tokenizer: ModelTokenizer,
    documents: Iterable[Document],
    *,
    context: int,
    stride: int,
    batch_tokens: int = 8192,
    max_bytes: int | None = None,
    replay: TraceReplay | None = None,
    progress: Callable[[int], None] = lambda size: None,
) -> dict[str, Totals]:
    """Totals by domain, sorted by name.

    Every token of a document is predicted once, the first one after the tokenizer's start tokens (or what
    ends texts, where it has none). A model whose tokenizer has neither does not predict the first token, and
    neither its nats nor its bytes count. Domains without a predicted token are left out.

    With pools of experts a document's tokens are of the type of its domain, unless the model has a
    `token_type`. Raises ConfigError for a domain that no pool is for, DataError for a replay of other
    documents and for documents without any text, and NotFiniteError for a loss that is NaN or infinite.

    Args:
        context: tokens that the model reads at once.
        stride: between two windows of a long document; `context` lets each start without knowing the one
            before, less lets tokens see at least context - stride tokens before them.
        batch_tokens: about so many tokens are read together.
        max_bytes: documents are taken up to about so many bytes, in each domain.
        replay: the routing of a trace of the same documents, which the model is made to follow.
        progress: called with the number of bytes that were evaluated since the last call.
    """
    domains: dict[str, Totals] = {}
    chosen = iter(_up_to(documents, max_bytes))
    while block := list(islice(chosen, _AT_ONCE)):
        rows: list[Row] = []
        owners: list[str] = []
        for number, document in block:
            ids = tokenizer.encode(document.text)
            start = tokenizer.prefix_ids
            before = len(start) if start else 1
            own = [
                replace(row, name=document.source) for row in windows([*start, *ids], before, context, stride)
            ]
            if replay is not None:
                experts = replay.of_document(number, [*start, *ids], document.source)
                own = [replace(row, experts=experts[:, row.start : row.start + len(row.ids)]) for row in own]
            if model.config.router.pools and model.token_type is None:
                what = f"{document.source}: domain"
                kind = type_named(model.config.router, document.domain, what, NAME_ONE)
                own = [replace(row, token_type=kind) for row in own]
            rows += own
            owners += [document.domain] * len(own)
            size = len(document.text.encode())
            if not start and ids:
                size -= _leading_bytes(tokenizer, ids[0])
            domain = domains.setdefault(document.domain, Totals())
            domain.add(Totals(0.0, sum(row.predicted for row in own), size, 1))
        for index, score in score_rows(model, rows, batch_tokens):
            domains[owners[index]].nats += score.nats
        progress(sum(len(document.text.encode()) for _, document in block))
    found = {name: totals for name, totals in sorted(domains.items()) if totals.tokens}
    if not found:
        count = sum(totals.documents for totals in domains.values())
        raise DataError(f"evaluation: {count} documents hold no text to predict; name files that do")
    return found


def _leading_bytes(tokenizer: ModelTokenizer, first: int) -> int:
    """How many bytes of a text its first token stands for: not the space that a tokenizer put before it."""
    piece = Pieces(tokenizer.backend).of([first])[0] or b""
    dropped = piece.startswith(b" ") and not tokenizer.decode([first]).startswith(" ")
    return len(piece) - dropped


def total(domains: dict[str, Totals]) -> Totals:
    """Totals of all domains together."""
    everything = Totals()
    for totals in domains.values():
        everything.add(totals)
    return everything


def _up_to(documents: Iterable[Document], max_bytes: int | None) -> Iterator[tuple[int, Document]]:
    """The documents that are taken, with their places among all."""
    taken: dict[str, int] = {}
    for number, document in enumerate(documents):
        size = len(document.text.encode())
        held = taken.get(document.domain, 0)
        if max_bytes is None or held == 0 or held + size <= max_bytes:
            taken[document.domain] = held + size
            yield number, document
