"""Held-out documents, each on its own, so that the loss per byte does not depend on packing."""

from collections.abc import Iterator

import numpy as np
import torch

from moeworks.data.batches import Batch
from moeworks.data.store import TokenStore

_WIDTH_STEP = 64  # rows are padded to a multiple of it: little padding, and few shapes to compile for
_GOLDEN = (5**0.5 - 1) / 2


class ValidationSet:
    """A fixed selection of held-out documents, and the batches that predict each of their tokens once.

    A document's m tokens are predicted from <|endoftext|> and the tokens before them, in chunks of seq_len
    that see nothing of the chunks before. No end of text is predicted, so that over the valid positions

        bits per byte = sum(nll in nats) / (ln 2 * sum of bytes)

    is exact with bytes_per_domain, for each domain by domain_ids_BL and for all. With max_tokens, documents
    are taken at even distances until about that many tokens are reached; ones longer than a quarter of it
    are passed over, so that none fills the selection, unless there are no others.
    """

    def __init__(
        self, store: TokenStore, seq_len: int, batch_size: int, max_tokens: int | None = None
    ) -> None:
        self._store = store
        self._batch_size = batch_size
        lengths = np.diff(store.document_starts) - 1
        chosen = _select(lengths, max_tokens)
        self.num_tokens = int(lengths[chosen].sum())
        """Number of predicted tokens."""
        self.bytes_per_domain = np.bincount(
            store.document_domains[chosen], weights=store.document_bytes[chosen], minlength=store.num_domains
        ).astype(np.int64)
        """int64 [domains]: UTF-8 bytes of the selected documents."""
        self._documents, self._starts, self._lengths = _rows(store, chosen, lengths[chosen], seq_len)
        self._width = seq_len

    @property
    def num_batches(self) -> int:
        """Number of batches; with n ranks each rank may take every n-th."""
        return -(-len(self._starts) // self._batch_size)

    def batches(self) -> Iterator[Batch]:
        """Batches of at most batch_size rows, longest rows first, as wide as their first row needs."""
        for index in range(self.num_batches):
            yield self._batch(slice(index * self._batch_size, (index + 1) * self._batch_size))

    def _batch(self, rows: slice) -> Batch:
        documents, starts, lengths = self._documents[rows], self._starts[rows], self._lengths[rows]
        width = min(-(-int(lengths[0]) // _WIDTH_STEP) * _WIDTH_STEP, self._width)
        places = starts.reshape(-1, 1) + np.arange(width)
        valid = np.arange(width) < lengths.reshape(-1, 1)
        shape = valid.shape
        domains = self._store.document_domains[documents]
        return Batch(
            tokens_BL=self._take(places, valid),
            targets_BL=self._take(places + 1, valid),
            document_ids_BL=_spread(documents, shape),
            domain_ids_BL=_spread(domains, shape),
            valid_BL=torch.from_numpy(valid),
        )

    def _take(self, places: np.ndarray, valid: np.ndarray) -> torch.Tensor:
        """Stored tokens at these places, and 0 in the padding."""
        tokens = self._store.tokens[np.where(valid, places, 0)]
        return torch.from_numpy(np.where(valid, tokens, 0).astype(np.int64))


def _spread(values: np.ndarray, shape: tuple[int, ...]) -> torch.Tensor:
    column = values.astype(np.int64).reshape(-1, 1)
    return torch.from_numpy(np.broadcast_to(column, shape).copy())


def _select(lengths: np.ndarray, max_tokens: int | None) -> np.ndarray:
    """Indexes of the chosen documents, ascending."""
    if max_tokens is None or lengths.sum() <= max_tokens:
        return np.arange(len(lengths))
    short = np.flatnonzero(lengths <= max_tokens // 4)
    if len(short) == 0:
        return np.array([np.argmin(lengths)])
    # Every prefix of the golden-ratio order is spread evenly (Weyl's sequence).
    order = short[np.argsort(np.arange(len(short)) * _GOLDEN % 1, kind="stable")]
    count = np.searchsorted(np.cumsum(lengths[order]), max_tokens, side="right")
    return np.sort(order[:count])


def _rows(
    store: TokenStore, chosen: np.ndarray, lengths: np.ndarray, seq_len: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Chunks of the chosen documents, longest first: document, first place in the store, predictions."""
    chunks = -(-lengths // seq_len)
    documents = np.repeat(chosen, chunks)
    number = np.arange(len(documents)) - np.repeat(np.cumsum(chunks) - chunks, chunks)
    sizes = np.minimum(np.repeat(lengths, chunks) - number * seq_len, seq_len)
    order = np.argsort(-sizes, kind="stable")
    starts = store.document_starts[documents] + number * seq_len
    return documents[order], starts[order], sizes[order]
