"""Held-out documents, cut to their first tokens, and the nats that a model spends on each."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from moeworks.data.batches import Batch
from moeworks.data.shards import PreparedCorpus
from moeworks.data.store import TokenStore
from moeworks.data.validation import ValidationSet
from moeworks.labs.cells import HeldOutSize
from moeworks.models.decoder import Decoder, DecoderOutput
from moeworks.ops.cross_entropy import token_cross_entropies


@dataclass(frozen=True, eq=False)
class HeldOut:
    """N documents in memory."""

    validation: ValidationSet
    bytes_N: np.ndarray
    """int64, UTF-8 bytes of what is predicted."""
    domains: tuple[str, ...]
    """Of the whole corpus; batches have indices into it."""

    @classmethod
    def of(cls, corpus: PreparedCorpus, size: HeldOutSize, seq_len: int, batch_size: int) -> "HeldOut":
        """The documents of `corpus` that labs are judged on: evenly spread, each cut after size.tokens."""
        store = _cut(corpus, size)
        validation = ValidationSet(store, seq_len, batch_size)
        return cls(validation, np.asarray(store.document_bytes), corpus.domains)

    @torch.no_grad()
    def outputs(self, model: Decoder, limit: int | None = None) -> Iterator[tuple[Batch, DecoderOutput]]:
        """Each batch, and what the model gives for it in evaluation mode; `limit` is a number of batches."""
        was_training = model.training
        model.eval()
        try:
            for number, batch in enumerate(self.validation.batches()):
                if limit is not None and number >= limit:
                    return
                yield (
                    batch,
                    model(batch.tokens_BL, document_ids_BL=batch.document_ids_BL, valid_BL=batch.valid_BL),
                )
        finally:
            model.train(was_training)

    def document_nats(self, model: Decoder) -> np.ndarray:
        """float64 [N]: cross-entropy summed over each document's tokens."""
        nats_N = np.zeros(len(self.bytes_N))
        for batch, output in self.outputs(model):
            losses, documents = token_nats(batch, output)
            nats_N += np.bincount(documents, weights=losses, minlength=len(nats_N))
        return nats_N

    def loss(self, model: Decoder, batches: int) -> float:
        """Nats per token of the first `batches` batches, for a curve over training."""
        parts = [token_nats(batch, output)[0] for batch, output in self.outputs(model, batches)]
        return float(np.concatenate(parts).mean())


def token_nats(batch: Batch, output: DecoderOutput) -> tuple[np.ndarray, np.ndarray]:
    """Cross-entropy of each valid token, float64, and the number of its document."""
    hidden_TD, head_VD = output.head.factors(output.hidden_BLD.flatten(0, 1))
    losses_T = token_cross_entropies(hidden_TD, head_VD, batch.targets_BL.flatten())
    valid_T = batch.valid_BL.flatten()
    return losses_T[valid_T].double().numpy(), batch.document_ids_BL.flatten()[valid_T].numpy()


def _cut(corpus: PreparedCorpus, size: HeldOutSize) -> TokenStore:
    store = corpus.validation
    count = min(size.documents, store.num_documents)
    chosen = np.linspace(0, store.num_documents - 1, count).round().astype(int)
    starts = store.document_starts[chosen]
    stops = np.minimum(store.document_starts[chosen + 1], starts + 1 + size.tokens)
    pieces = [np.asarray(store.tokens[start:stop]) for start, stop in zip(starts, stops, strict=True)]
    whole = stops == store.document_starts[chosen + 1]
    sizes = [
        int(store.document_bytes[document]) if complete else _text_bytes(corpus, piece)
        for document, complete, piece in zip(chosen, whole, pieces, strict=True)
    ]
    return TokenStore(
        tokens=np.concatenate(pieces),
        document_starts=np.cumsum([0, *(len(piece) for piece in pieces)]),
        document_bytes=np.array(sizes, np.int64),
        document_domains=np.asarray(store.document_domains[chosen]),
        num_domains=store.num_domains,
    )


def _text_bytes(corpus: PreparedCorpus, piece: np.ndarray) -> int:
    """UTF-8 bytes of a piece that begins with the end of the text before; a character that the cut went
    through counts as U+FFFD, 3 bytes, in every arm alike."""
    return len(corpus.tokenizer.decode(piece[1:]).encode())
