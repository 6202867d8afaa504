"""Prompts that start alike are read once: their caches, and what the routers chose for their tokens."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

import torch
from torch import Tensor

from moeworks.errors import check
from moeworks.models.cache import KVCache
from moeworks.models.decoder import Decoder
from moeworks.ops.routing import Routing

_PASS_TOKENS = 32
"""Reading a prompt by itself costs about as much as so many tokens more in a batch: weights are read anew."""


@dataclass(frozen=True, eq=False)
class Prefill:
    """What reading a prompt leaves."""

    cache: KVCache
    logits_V: Tensor
    """Logits after the last token."""
    routings: tuple[Routing, ...]
    """One per MoE layer, over all tokens of the prompt, remembered ones included."""
    reused: int
    """Tokens that were not read again."""


@dataclass(frozen=True, eq=False)
class _Entry:
    ids: tuple[int, ...]
    cache: KVCache
    logits_V: Tensor
    routings: tuple[Routing, ...]


class PrefixCache:
    """Remembers the prompts of one model, the latest used ones, of up to `max_tokens` tokens in all.

    A prompt starts from the longest start that it shares with a remembered one. A model with windows or
    recurrences can only go on from the end of a remembered prompt. When the weights, or the model's
    `token_type`, change, `clear`.
    """

    def __init__(self, model: Decoder, max_tokens: int = 65_536) -> None:
        check(max_tokens >= 0, "max_tokens", max_tokens, "must not be negative")
        self.model, self.max_tokens = model, max_tokens
        self.saved_tokens = 0
        """Tokens of all prompts so far that were not read again."""
        self._entries: OrderedDict[tuple[int, ...], _Entry] = OrderedDict()

    @property
    def num_tokens(self) -> int:
        """Tokens remembered."""
        return sum(map(len, self._entries))

    def clear(self) -> None:
        """Forget everything."""
        self._entries.clear()

    @torch.no_grad()
    def read(self, prompt_ids: Sequence[int], max_len: int, chunk: int) -> Prefill:
        """Read a prompt (not empty) into a cache for up to `max_len` positions, `chunk` tokens at a time."""
        ids = tuple(prompt_ids)
        cache = self._empty_cache(max_len)
        entry, reused = self._longest_start(ids)
        logits_V, parts = None, []
        if entry is not None:
            self._entries.move_to_end(entry.ids)
            cache.start_from(entry.cache, reused)
            logits_V = entry.logits_V
            parts.append(tuple(_of_first_tokens(routing, reused) for routing in entry.routings))
        place = next(self.model.parameters()).device
        for piece_BL in torch.tensor([ids[reused:]], dtype=torch.int64, device=place).split(chunk, dim=1):
            if piece_BL.shape[1] > 0:
                output = self.model(piece_BL, cache=cache, last_only=True)
                logits_V = output.logits_BLV[0, -1]
                parts.append(output.routings)
        assert logits_V is not None
        routings = tuple(_joined(layer) for layer in zip(*parts, strict=True))
        self._remember(ids, cache, logits_V, routings)
        self.saved_tokens += reused
        return Prefill(cache, logits_V, routings, reused)

    def read_batch(
        self, prompts: Sequence[Sequence[int]], max_len: int, chunk: int
    ) -> tuple[KVCache, Tensor]:
        """Read prompts one after the other; one cache of all, shorter ones padded on the left, and [B, V].

        Caches of windows and recurrences can only be taken up at an end: there, what all begin with is read
        first, on its own.
        """
        shared = common_start(prompts)
        if len(prompts) > 1 and shared > 0 and not self._empty_cache(max_len).forgets:
            self.read(prompts[0][:shared], shared, chunk)
            self.saved_tokens -= shared  # it is read once more than the prompts need it
        reads = [self.read(prompt, max_len, chunk) for prompt in prompts]
        cache = reads[0].cache
        if len(reads) > 1:
            cache = KVCache.stacked(self.model.config, [read.cache for read in reads], max_len)
        return cache, torch.stack([read.logits_V for read in reads])

    def _empty_cache(self, max_len: int) -> KVCache:
        weight = next(self.model.parameters())
        return KVCache(self.model.config, 1, max_len, dtype=weight.dtype, device=weight.device)

    def _longest_start(self, ids: tuple[int, ...]) -> tuple[_Entry | None, int]:
        """The best remembered prompt, and how many tokens of it serve."""
        best, most = None, 0
        for entry in self._entries.values():
            shared = _shared(entry.ids, ids)
            if shared == len(ids) < len(entry.ids):
                shared -= 1  # the last token is read again: its logits are not those that are remembered
            usable = shared == len(entry.ids) or entry.cache.forgets
            if usable and shared > most:
                best, most = entry, shared
        return best, most

    def _remember(
        self, ids: tuple[int, ...], cache: KVCache, logits_V: Tensor, routings: tuple[Routing, ...]
    ) -> None:
        if len(ids) > self.max_tokens:
            return
        if ids not in self._entries:
            own = self._empty_cache(len(ids))
            own.start_from(cache, len(ids))
            self._entries[ids] = _Entry(ids, own, logits_V, routings)
        while self.num_tokens > self.max_tokens:
            self._entries.popitem(last=False)


def common_start(prompts: Sequence[Sequence[int]]) -> int:
    """How many tokens all prompts (at least one) begin with."""
    return min(_shared(tuple(prompts[0]), tuple(prompt)) for prompt in prompts)


def worth_sharing(prompts: Sequence[Sequence[int]]) -> bool:
    """Whether a batch is read sooner one prompt after the other, what all begin with once, than at a time."""
    return common_start(prompts) * (len(prompts) - 1) > _PASS_TOKENS * len(prompts)


def _shared(first: tuple[int, ...], second: tuple[int, ...]) -> int:
    """Length of the common start."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False)))


def _of_first_tokens(routing: Routing, tokens: int) -> Routing:
    return routing.with_tensors(tuple(t[:tokens] for t in routing.tensors()))


def _joined(parts: Sequence[Routing]) -> Routing:
    """The decisions for one text that was read in pieces."""
    columns = zip(*(part.tensors() for part in parts), strict=True)
    return parts[0].with_tensors(tuple(torch.cat(column) for column in columns))
