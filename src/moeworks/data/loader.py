"""The order of training: a pure function of (store, seed, sample number)."""

from functools import lru_cache

import numpy as np
import torch

from moeworks.data.batches import Batch
from moeworks.data.store import TokenStore
from moeworks.errors import DataError


class TrainLoader:
    """Windows of the token store in a random order that any process can continue at any sample.

    An epoch cuts the store, taken as a ring, into samples_per_epoch = num_tokens // seq_len windows of
    seq_len tokens and their targets, from a random offset on, and shuffles them; the next epoch has another
    offset and order. Documents are packed: a window may hold several, told apart by document_ids_BL.
    Nothing is remembered between calls but the current epoch's order (8 bytes per window).
    """

    def __init__(self, store: TokenStore, seq_len: int, batch_size: int, seed: int) -> None:
        """Raises DataError when the store is shorter than one sequence and its last target."""
        if store.num_tokens < seq_len + 1:
            raise DataError(
                f"the training side of the corpus has {store.num_tokens} tokens, and train.seq_len = "
                f"{seq_len} needs at least {seq_len + 1}: add text or shorten the sequence"
            )
        self.batch_size = batch_size
        self.samples_per_epoch = store.num_tokens // seq_len
        self._store = store
        self._seq_len = seq_len
        self._seed = seed
        # A batch can span the end of one epoch and the start of the next.
        self._epoch = lru_cache(maxsize=2)(self._draw_epoch)

    def batch(self, step: int) -> Batch:
        """The global batch of optimizer step `step`, counted from 0: batch_size rows."""
        return self.rows(step * self.batch_size, self.batch_size)

    def rows(self, first_sample: int, count: int) -> Batch:
        """Samples first_sample, ..., first_sample + count - 1 of the endless order, as `count` rows.

        Ranks and accumulation steps take disjoint ranges of their step's batch_size samples.
        """
        starts_B = np.array(
            [self._start(sample) for sample in range(first_sample, first_sample + count)], np.int64
        )
        positions = starts_B.reshape(-1, 1) + np.arange(self._seq_len + 1)
        return self._gather(positions)

    def _start(self, sample: int) -> int:
        epoch, index = divmod(sample, self.samples_per_epoch)
        offset, order = self._epoch(epoch)
        return offset + int(order[index]) * self._seq_len

    def _draw_epoch(self, epoch: int) -> tuple[int, np.ndarray]:
        random = np.random.default_rng([self._seed % 2**64, epoch])
        offset = int(random.integers(self._store.num_tokens))
        return offset, random.permutation(self.samples_per_epoch)

    def _gather(self, positions: np.ndarray) -> Batch:
        """`positions` [B, L + 1] on the ring, counted on past its end."""
        laps, places = np.divmod(positions, self._store.num_tokens)
        tokens = torch.from_numpy(self._store.tokens[places].astype(np.int64))
        documents = np.searchsorted(self._store.document_starts, places[:, :-1], side="right") - 1
        # The ring's last and first document are neighbours, and may be one and the same.
        document_ids = documents + laps[:, :-1] * self._store.num_documents
        domain_ids = self._store.document_domains[documents].astype(np.int64)
        return Batch(
            tokens_BL=tokens[:, :-1].contiguous(),
            targets_BL=tokens[:, 1:].contiguous(),
            document_ids_BL=torch.from_numpy(document_ids),
            domain_ids_BL=torch.from_numpy(domain_ids),
            valid_BL=torch.ones(documents.shape, dtype=torch.bool),
            padded=False,
        )
