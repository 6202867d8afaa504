"""Token by token, for one text or for a batch of them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from moeworks.config.generate import SamplingConfig
from moeworks.errors import check
from moeworks.generate.prefix import PrefixCache
from moeworks.generate.sampling import sample
from moeworks.models.cache import KVCache
from moeworks.models.decoder import Decoder
from moeworks.models.diagnose import not_finite_after

PREFILL_CHUNK = 2048


def generate(
    model: Decoder,
    prompt_ids: Sequence[int],
    max_new_tokens: int,
    *,
    sampling: SamplingConfig | None = None,
    seed: int = 0,
    stop_id: int | None = None,
    stop_ids: Sequence[int] = (),
    prefill_chunk: int = PREFILL_CHUNK,
    prefix: PrefixCache | None = None,
) -> Iterator[int]:
    """Yield up to `max_new_tokens` token ids that follow `prompt_ids` (not empty), or until a stop.

    When prompt and answer outgrow max_seq_len, the oldest tokens are forgotten, half of it at a time.

    Args:
        sampling: how a token is drawn.
        seed: seed of the random draws.
        stop_id, stop_ids: tokens that end the text; they are not yielded.
        prefill_chunk: the prompt is read in pieces of so many tokens.
        prefix: remembers prompts, so that one that starts like an earlier one is not read twice.

    Raises ConfigError for an empty prompt and ids outside the vocabulary, NotFiniteError for NaN or infinite
    logits.
    """
    stops = (*stop_ids,) if stop_id is None else (*stop_ids, stop_id)
    batch = generate_batch(
        model, [prompt_ids], max_new_tokens,
        sampling=sampling, seeds=[seed], stop_ids=stops, prefill_chunk=prefill_chunk, prefix=prefix,
    )  # fmt: skip
    for (token,) in batch:
        if token is None:
            return
        yield token


def generate_batch(
    model: Decoder,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    *,
    sampling: SamplingConfig | None = None,
    seeds: Sequence[int] | None = None,
    stop_ids: Sequence[int] = (),
    prefill_chunk: int = PREFILL_CHUNK,
    prefix: PrefixCache | None = None,
    ended: Sequence[bool] | None = None,
) -> Iterator[list[int | None]]:
    """Yield, token by token, a list of the next token of every text; None once a text has ended.

    Shorter prompts are padded on the left. Each text is what `generate` makes of its prompt and seed alone
    (up to the rounding of sums of another shape). Closing the iterator ends all of them.

    Args:
        seeds: one per prompt; None counts from 0.
        prefix: remembers prompts; what they share with each other or with earlier ones is read once.
        ended: per prompt, read before each token: True ends that text, as a stop string does.

    Raises ConfigError and NotFiniteError as `generate` does, and ConfigError for several prompts with an
    eval_capacity_factor.
    """
    check(prefill_chunk >= 1, "prefill_chunk", prefill_chunk, "must be at least 1")
    if len(prompts) > 1:
        factor = model.config.capacity.eval_capacity_factor
        rule = "texts of a batch would take experts' places from each other: continue them one at a time"
        check(factor is None, "model.capacity.eval_capacity_factor", factor, rule)
    if prefix is not None:
        check(prefix.model is model, "prefix", prefix, "is that of another model")
    seeds = range(len(prompts)) if seeds is None else seeds
    rows = [_Row.of(model, ids, seed) for ids, seed in zip(prompts, seeds, strict=True)]
    batch = _Batch(model, rows, prefill_chunk, prefix)
    for left in range(max_new_tokens, 0, -1):
        for row, end in zip(rows, ended or (), strict=False):
            row.alive = row.alive and not end
        if not any(row.alive for row in rows):
            return
        logits_BV = batch.next_logits(left)
        batch.require_finite(logits_BV)
        yield [
            row.draw(logits_V, sampling or SamplingConfig(), stop_ids)
            for row, logits_V in zip(rows, logits_BV, strict=True)
        ]


@dataclass
class _Row:
    """One text of a batch."""

    ids: list[int]
    generator: torch.Generator
    first: int = 0
    """Index of the first token that is not forgotten."""
    alive: bool = True

    @classmethod
    def of(cls, model: Decoder, prompt_ids: Sequence[int], seed: int) -> "_Row":
        ids, vocab_size = list(prompt_ids), model.config.vocab_size
        check(len(ids) > 0, "prompt_ids", ids, "there must be a token to start from")
        low, high = min(ids), max(ids)
        check(low >= 0, "prompt_ids", low, "is no token id")
        check(high < vocab_size, "prompt_ids", high, f"exceeds the model's vocabulary of {vocab_size}")
        return cls(ids, torch.Generator().manual_seed(seed))

    @property
    def window(self) -> list[int]:
        """What the model still sees, the newest token included."""
        return self.ids[self.first :]

    def fit(self, limit: int) -> None:
        """Forget the oldest tokens when the window exceeds `limit`."""
        if len(self.ids) - self.first > limit:
            self.first = len(self.ids) - max(limit // 2, 1)

    def draw(self, logits_V: Tensor, sampling: SamplingConfig, stop_ids: Sequence[int]) -> int | None:
        if not self.alive:
            return None
        seen = torch.tensor(self.ids) if sampling.repetition_penalty != 1.0 else None
        token = sample(logits_V, sampling, self.generator, seen)
        if token in stop_ids:
            self.alive = False
            return None
        self.ids.append(token)
        return token


@dataclass
class _Batch:
    """The texts' place in the model: a cache, made anew when its positions run out."""

    model: Decoder
    rows: list[_Row]
    chunk: int
    prefix: PrefixCache | None
    cache: KVCache | None = None
    size: int = 0
    """Positions that the cache has room for."""

    @torch.no_grad()
    def next_logits(self, left: int) -> Tensor:
        """[B, V], after the newest token of every text; `left` tokens are still to come."""
        if self.cache is None or self.cache.length == self.size:
            return self._read_windows(left)
        fed = [[row.ids[-1]] for row in self.rows]
        return self._feed(torch.tensor(fed), self.cache)

    def require_finite(self, logits_BV: Tensor) -> None:
        """Raise NotFiniteError where a text's logits hold a NaN or an infinity."""
        for number in (~torch.isfinite(logits_BV).all(dim=-1)).nonzero()[:, 0].tolist():
            row = self.rows[number]
            if row.alive:
                text = "" if len(self.rows) == 1 else f" of text {number + 1}"
                window = row.window[-self.model.config.max_seq_len :]
                what = f"the logits after {len(row.ids)} tokens{text} are not finite"
                raise not_finite_after(self.model, window, what)

    def _read_windows(self, left: int) -> Tensor:
        limit = self.model.config.max_seq_len
        for row in self.rows:
            row.fit(limit)
        # Of a text that has ended, one token stands for the row.
        windows = [row.window if row.alive else row.ids[-1:] for row in self.rows]
        longest = max(map(len, windows))
        self.size = min(limit, longest + left)
        if self.prefix is not None:
            self.cache, logits_BV = self.prefix.read_batch(windows, self.size, self.chunk)
            return logits_BV
        padding_B = torch.tensor([longest - len(window) for window in windows])
        fed_BL = torch.tensor([[0] * (longest - len(window)) + window for window in windows])
        place = next(self.model.parameters())
        self.cache = KVCache(
            self.model.config, len(windows), self.size, dtype=place.dtype, device=place.device,
            left_padding_B=padding_B.to(place.device) if int(padding_B.max()) > 0 else None,
        )  # fmt: skip
        pieces = [self._feed(piece_BL, self.cache) for piece_BL in fed_BL.split(self.chunk, dim=1)]
        return pieces[-1]

    def _feed(self, tokens_BL: Tensor, cache: KVCache) -> Tensor:
        device = next(self.model.parameters()).device
        valid_BL = None
        if not all(row.alive for row in self.rows):
            alive = torch.tensor([row.alive for row in self.rows], device=device)
            valid_BL = alive[:, None].expand(tokens_BL.shape)
        output = self.model(tokens_BL.to(device), cache=cache, valid_BL=valid_BL, last_only=True)
        return output.logits_BLV[:, -1]
