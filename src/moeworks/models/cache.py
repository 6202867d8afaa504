"""State that a decoder keeps of earlier positions, per layer, by the kind of mixer.

LayerKVCache    keys and values of all positions, in place
BoundedKVCache  those of the last few: sliding windows and chunks
LatentKVCache   latents and rotary keys (MLA), with an indexer's keys
StateCache      the last inputs of a convolution and the state of a recurrence
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from moeworks.config.count_mixers import count_mixer
from moeworks.config.mixers import (
    GatedDeltaConfig,
    GQAConfig,
    MixerConfig,
    MixtureOfAttentionConfig,
    MLAConfig,
)
from moeworks.config.model import ModelConfig
from moeworks.errors import ConfigError, check


class LayerKVCache:
    """Keys and values of one layer, in place, up to a fixed length."""

    first_key = 0
    """Slot of the first key that append returns."""

    def __init__(
        self,
        shape_BGSP: tuple[int, int, int, int],
        dtype: torch.dtype,
        device: torch.device,
        v_width: int | None = None,
    ) -> None:
        """Allocate keys of `shape_BGSP`; `v_width` is the width of a value, None for that of a key."""
        self._k = torch.empty(shape_BGSP, dtype=dtype, device=device)
        self._v = torch.empty((*shape_BGSP[:3], v_width or shape_BGSP[3]), dtype=dtype, device=device)
        self.length = 0

    def append(self, k_BGLP: Tensor, v_BGLP: Tensor) -> tuple[Tensor, Tensor]:
        """Keep new keys and values; return views of all so far."""
        end = self.length + k_BGLP.shape[2]
        check(end <= self._k.shape[2], "cache length", end, _size_rule(self._k.shape[2]))
        self._k[:, :, self.length : end] = k_BGLP
        self._v[:, :, self.length : end] = v_BGLP
        self.length = end
        return self._k[:, :, :end], self._v[:, :, :end]

    def held(self) -> tuple[Tensor, Tensor]:
        """Views of keys and values of the positions so far."""
        return self._k[:, :, : self.length], self._v[:, :, : self.length]

    def stack(self, rows: Sequence[tuple[Tensor, ...]]) -> None:
        """Take over what caches of single sequences hold; each ends where the longest does."""
        self.append(*_right_aligned(rows, dim=2))

    def values(self) -> int:
        """Numbers held for the positions so far."""
        return sum(t.numel() for t in self.held())


class BoundedKVCache:
    """Keys and values of one layer, of the positions that a next token can still see."""

    def __init__(
        self,
        shape_BGWP: tuple[int, int, int, int],
        dtype: torch.dtype,
        device: torch.device,
        v_width: int | None = None,
    ) -> None:
        """Allocate keys of `shape_BGWP`; a token sees at most W positions, its own included. `v_width` is the
        width of a value, None for that of a key."""
        batch, groups, self.reach, width = shape_BGWP
        self._k = torch.empty((batch, groups, 0, width), dtype=dtype, device=device)
        self._v = torch.empty((batch, groups, 0, v_width or width), dtype=dtype, device=device)
        self.length = 0

    @property
    def first_key(self) -> int:
        """Slot of the first key that append returns."""
        return self.length - self._k.shape[2]

    def append(self, k_BGLP: Tensor, v_BGLP: Tensor) -> tuple[Tensor, Tensor]:
        """Return held and new keys and values; keep the last W - 1 positions of both together."""
        k = torch.cat([self._k, k_BGLP.to(self._k.dtype)], dim=2)
        v = torch.cat([self._v, v_BGLP.to(self._v.dtype)], dim=2)
        self.length += k_BGLP.shape[2]
        start = max(k.shape[2] - self.reach + 1, 0)
        # Copies where something is dropped: a view would keep the dropped rows in memory.
        self._k, self._v = (t if start == 0 else t[:, :, start:].clone() for t in (k, v))
        return k, v

    def held(self) -> tuple[Tensor, Tensor]:
        """Keys and values from slot first_key on; appending replaces them, and never writes into them."""
        return self._k, self._v

    def stack(self, rows: Sequence[tuple[Tensor, ...]]) -> None:
        """Take over what caches of single sequences hold; each ends where the longest does."""
        self._k, self._v = _right_aligned(rows, dim=2)

    def values(self) -> int:
        """Numbers held."""
        return self._k.numel() + self._v.numel()


class LatentKVCache:
    """Rows of one layer, [B, S, width] for each of several widths, in place, up to a fixed length."""

    first_key = 0
    """Slot of the first row that append returns."""

    def __init__(
        self, batch: int, max_len: int, widths: tuple[int, ...], dtype: torch.dtype, device: torch.device
    ) -> None:
        self._rows = tuple(torch.empty(batch, max_len, w, dtype=dtype, device=device) for w in widths)
        self.length = 0

    def append(self, *new: Tensor) -> tuple[Tensor, ...]:
        """Keep new rows; return views of all so far."""
        end, size = self.length + new[0].shape[1], self._rows[0].shape[1]
        check(end <= size, "cache length", end, _size_rule(size))
        for held, rows in zip(self._rows, new, strict=True):
            held[:, self.length : end] = rows
        self.length = end
        return tuple(held[:, :end] for held in self._rows)

    def held(self) -> tuple[Tensor, ...]:
        """Views of the rows so far."""
        return tuple(held[:, : self.length] for held in self._rows)

    def stack(self, rows: Sequence[tuple[Tensor, ...]]) -> None:
        """Take over what caches of single sequences hold; each ends where the longest does."""
        self.append(*_right_aligned(rows, dim=1))

    def values(self) -> int:
        """Numbers held for the positions so far."""
        return sum(held[:, : self.length].numel() for held in self._rows)


class StateCache:
    """The state of a recurrence; its size does not depend on the positions so far."""

    first_key = 0
    """Recurrences have no keys."""

    def __init__(self) -> None:
        self.conv: Tensor | None = None
        self.state: Tensor | None = None
        self.length = 0

    def advance(self, conv: Tensor, state: Tensor, length: int) -> None:
        """Store the state after `length` more tokens."""
        self.conv, self.state = conv.clone(), state
        self.length += length

    def held(self) -> tuple[Tensor, ...]:
        """State after the last token; empty before the first token."""
        return () if self.conv is None or self.state is None else (self.conv, self.state)

    def stack(self, rows: Sequence[tuple[Tensor, ...]]) -> None:
        """Take over the states of single sequences."""
        self.conv, self.state = (torch.cat(parts) for parts in zip(*rows, strict=True))

    def values(self) -> int:
        """Numbers held."""
        return sum(t.numel() for t in self.held())


def _size_rule(size: int) -> str:
    return f"exceeds the cache's size, {size} positions; make it with a larger max_len"


def _right_aligned(rows: Sequence[tuple[Tensor, ...]], dim: int) -> list[Tensor]:
    """Batch of tensors of one sequence each; those shorter along `dim` are padded with zeros in front."""
    stacked = []
    for parts in zip(*rows, strict=True):
        longest = max(part.shape[dim] for part in parts)
        shape = list(parts[0].shape)
        shape[0], shape[dim] = len(parts), longest
        whole = parts[0].new_zeros(shape)
        for number, part in enumerate(parts):
            start = longest - part.shape[dim]
            whole[number : number + 1].narrow(dim, start, part.shape[dim]).copy_(part)
        stacked.append(whole)
    return stacked


LayerCaches = LayerKVCache | BoundedKVCache | LatentKVCache | StateCache


class KVCache:
    """One cache per layer of `config`, for `batch` sequences of up to `max_len` tokens."""

    def __init__(
        self,
        config: ModelConfig,
        batch: int,
        max_len: int,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        left_padding_B: Tensor | None = None,
    ) -> None:
        """Make an empty cache. `left_padding_B`, int64: padding tokens at the start of each row, for rows of
        unequal length; None is no padding."""
        self.left_padding_B = left_padding_B
        self._document_ids_BS: Tensor | None = None
        place = torch.device(device)
        self.layers: list[LayerCaches] = [
            _layer_cache(config, mixer, batch, max_len, dtype, place) for mixer in config.mixer_of_layers
        ]

    @property
    def length(self) -> int:
        """Positions seen."""
        return self.layers[0].length

    def extend_documents(self, document_ids_BL: Tensor | None) -> Tensor | None:
        """Store the document ids of the next tokens; returns those of all positions so far, int64 [B, S].

        Returns None if each row is one document. Raises ConfigError if only some positions have ids.
        """
        past, held_BS = self.length, self._document_ids_BS
        if past and (held_BS is None) != (document_ids_BL is None):
            given = "missing" if document_ids_BL is None else "given"
            held = "no" if held_BS is None else "their"
            raise ConfigError(
                f"document_ids_BL: {given}, while the {past} positions in the cache have {held} document ids;"
                " pass them in all calls that share a cache, or in none"
            )
        if past and held_BS is not None and document_ids_BL is not None:
            document_ids_BL = torch.cat([held_BS[:, :past], document_ids_BL], dim=1)
        self._document_ids_BS = document_ids_BL
        return document_ids_BL

    @property
    def forgets(self) -> bool:
        """Whether `forget` works: caches of windows and recurrences no longer hold what it would need."""
        return all(isinstance(layer, (LayerKVCache, LatentKVCache)) for layer in self.layers)

    def forget(self, positions: int) -> None:
        """Drop the last `positions`. Raises ConfigError where a layer's cache cannot."""
        check(self.forgets, "cache.forget", positions, "windows and recurrences cannot drop positions")
        check(0 <= positions <= self.length, "cache.forget", positions, f"only {self.length} are held")
        for layer in self.layers:
            layer.length -= positions  # pyrefly: ignore[read-only]

    def start_from(self, other: "KVCache", positions: int) -> None:
        """Copy the first `positions` of another cache of the same model and rows into this empty one.

        Raises ConfigError if `other` does not hold them: windows and recurrences can only be copied whole.
        """
        whole = positions == other.length
        rule = f"must be all {other.length}: caches of windows and recurrences can only be copied whole"
        check(whole or other.forgets, "cache.start_from", positions, rule)
        check(0 <= positions <= other.length, "cache.start_from", positions, f"only {other.length} are held")
        for mine, theirs in zip(self.layers, other.layers, strict=True):
            if isinstance(mine, StateCache) and isinstance(theirs, StateCache):
                mine.conv, mine.state = theirs.conv, theirs.state
            elif isinstance(mine, LatentKVCache) and isinstance(theirs, LatentKVCache):
                mine.append(*(rows[:, :positions] for rows in theirs.held()))
            elif not isinstance(mine, (StateCache, LatentKVCache)):
                assert isinstance(theirs, (LayerKVCache, BoundedKVCache))
                # Of a window, what is held is at the end.
                k_BGSP, v_BGSP = (t[:, :, : positions - theirs.first_key] for t in theirs.held())
                mine.append(k_BGSP, v_BGSP)
            mine.length = positions  # pyrefly: ignore[read-only]
        held_BS = other._document_ids_BS
        self._document_ids_BS = None if held_BS is None else held_BS[:, :positions]

    @classmethod
    def stacked(cls, config: ModelConfig, rows: Sequence["KVCache"], max_len: int) -> "KVCache":
        """One cache that joins caches of one sequence each, right-aligned to the longest."""
        longest = max(row.length for row in rows)
        padding = [longest - row.length for row in rows]
        first = next(t for layer in rows[0].layers for t in layer.held())
        whole = cls(
            config, len(rows), max_len, dtype=first.dtype, device=first.device,
            left_padding_B=torch.tensor(padding, device=first.device) if any(padding) else None,
        )  # fmt: skip
        for mine, *theirs in zip(whole.layers, *(row.layers for row in rows), strict=True):
            mine.stack([layer.held() for layer in theirs])
            mine.length = longest  # pyrefly: ignore[read-only]
        documents = [row._document_ids_BS for row in rows]
        present = [
            (ids[:, : row.length],) for ids, row in zip(documents, rows, strict=True) if ids is not None
        ]
        if present:
            rule = "caches with documents and caches without cannot become one"
            check(len(present) == len(rows), "cache.stacked", f"{len(present)} of {len(rows)}", rule)
            (whole._document_ids_BS,) = _right_aligned(present, dim=1)
        return whole

    def values(self) -> int:
        """Numbers held in all layers."""
        return sum(layer.values() for layer in self.layers)


def _layer_cache(
    config: ModelConfig,
    mixer: MixerConfig,
    batch: int,
    max_len: int,
    dtype: torch.dtype,
    device: torch.device,
) -> LayerCaches:
    if isinstance(mixer, GatedDeltaConfig):
        return StateCache()
    if isinstance(mixer, MLAConfig):
        index = () if mixer.own_indexer is None else (mixer.own_indexer.head_dim,)
        widths = (mixer.kv_lora_rank, mixer.rope_head_dim, *index)
        return LatentKVCache(batch, max_len, widths, dtype, device)
    if isinstance(mixer, MixtureOfAttentionConfig):
        shape = (batch, mixer.num_kv_heads, max_len, mixer.head_dim)
        return LayerKVCache(shape, dtype, device)
    assert isinstance(mixer, GQAConfig)
    width = config.gqa_head_dim(mixer)
    reach = count_mixer(mixer, config.d_model).cache_reach
    if reach is not None and reach < max_len:
        return BoundedKVCache((batch, mixer.num_kv_heads, reach, width), dtype, device, mixer.v_head_dim)
    return LayerKVCache((batch, mixer.num_kv_heads, max_len, width), dtype, device, mixer.v_head_dim)
