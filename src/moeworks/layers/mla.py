"""Multi-head latent attention (DeepSeek-V2, section 2.1) and its sparse indexer (DeepSeek-V3.2).

The cache holds a latent per token and one rotary key for all heads. Decoding stays in the latent space: the
projection that would make keys from latents is applied to the query, and the one that would make values to
the mixed latents ("absorbed"); over many queries it is less work to expand the latents.
"""

import math
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from moeworks.config.mixers import IndexerConfig, MLAConfig
from moeworks.config.model import ModelConfig
from moeworks.layers.init import make_linear
from moeworks.layers.inputs import MixerInputs
from moeworks.layers.norm import RMSNorm
from moeworks.layers.plain import is_plain
from moeworks.layers.rope import apply_rope, yarn_mscale
from moeworks.ops.attention import DocumentMask, causal_attention

_INDEXER_EPS = 1e-6


@runtime_checkable
class LatentCache(Protocol):
    """Latents, rotary keys and indexer keys of earlier positions of one layer."""

    length: int
    """Positions held."""

    def append(self, *new: Tensor) -> tuple[Tensor, ...]:
        """Keep new rows [B, L, width]; return all so far, [B, S, width] each."""
        ...


class MLAttention(nn.Module):
    """Latent attention with rotary positions in a part of each head."""

    def __init__(self, config: ModelConfig, mixer: MLAConfig) -> None:
        super().__init__()
        self.mixer = mixer
        width, heads, eps = config.d_model, mixer.num_heads, mixer.latent_eps
        queries = heads * mixer.qk_head_dim
        if mixer.q_lora_rank is None:
            self.q_proj = make_linear(width, queries)
        else:
            self.q_a_proj = make_linear(width, mixer.q_lora_rank, bias=mixer.bias)
            self.q_a_norm = RMSNorm(mixer.q_lora_rank, eps=eps)
            self.q_b_proj = make_linear(mixer.q_lora_rank, queries)
        self.kv_a_proj = make_linear(width, mixer.kv_lora_rank + mixer.rope_head_dim, bias=mixer.bias)
        self.kv_a_norm = RMSNorm(mixer.kv_lora_rank, eps=eps)
        expanded = heads * (mixer.nope_head_dim + mixer.v_head_dim)
        self.kv_b_proj = make_linear(mixer.kv_lora_rank, expanded)
        self.o_proj = make_linear(heads * mixer.v_head_dim, width, bias=mixer.bias)
        self.scale = _scale(mixer)
        self.q_scale = self.latent_scale = 1.0
        if mixer.scale_latents and mixer.q_lora_rank is not None:
            self.q_scale = math.sqrt(width / mixer.q_lora_rank)
            self.latent_scale = math.sqrt(width / mixer.kv_lora_rank)
        self.indexer = None
        if mixer.own_indexer is not None:
            self.indexer = Indexer(config, mixer, mixer.own_indexer)

    def residual_projections(self) -> tuple[Tensor, ...]:
        """The matrices that write into the residual stream."""
        return (self.o_proj.weight,)

    def forward(
        self,
        x_BLD: Tensor,
        inputs: MixerInputs,
        cache: LatentCache | None = None,
        chosen: DocumentMask | None = None,
    ) -> tuple[Tensor, DocumentMask | None]:
        """y [B, L, D], and the mask of the keys that queries see: the indexer's choice, or `chosen`."""
        mixer = self.mixer
        q_latent = None
        if mixer.q_lora_rank is None:
            q = self.q_proj(x_BLD)
        else:
            q_latent = self.q_a_norm(self.q_a_proj(x_BLD))
            q = self.q_b_proj(q_latent)
        q = q.unflatten(-1, (mixer.num_heads, -1)).transpose(1, 2)
        if self.q_scale != 1.0:
            q = q * self.q_scale
        if mixer.temperature_floor is not None:
            q = q * self._temperature(inputs, mixer.temperature_floor).to(q.dtype)
        q_nope, q_rope = q.split([mixer.nope_head_dim, mixer.rope_head_dim], dim=-1)
        latent, k_rope = self.kv_a_proj(x_BLD).split([mixer.kv_lora_rank, mixer.rope_head_dim], dim=-1)
        latent = self.kv_a_norm(latent)
        if self.latent_scale != 1.0:
            latent = latent * self.latent_scale
        if inputs.rope is not None:
            q_rope = apply_rope(q_rope, inputs.rope, mixer.rope.style)
            k_rope = apply_rope(k_rope.unsqueeze(1), inputs.rope, mixer.rope.style).squeeze(1)
        rows = [latent, k_rope]
        if self.indexer is not None:
            rows.append(self.indexer.key(x_BLD, inputs))
        past = 0 if cache is None else cache.length
        if cache is not None:
            rows = list(cache.append(*rows))
        latent, k_rope = rows[0].to(q.dtype), rows[1].to(q.dtype)
        mask = inputs.mask
        if self.indexer is not None:
            assert q_latent is not None
            mask = chosen = self.indexer.choose(x_BLD, q_latent, rows[2], inputs)
        elif mixer.indexer is not None:
            mask = chosen
        # Absorbing reads kv_b_proj.weight directly, so it is skipped when calling the module would do more.
        absorb = past and is_plain(self.kv_b_proj, nn.Linear) and self._absorbing_is_less_work(x_BLD.shape[1])
        attend = self._absorbed if absorb else self._expanded
        out_BHLV = attend(q_nope, q_rope, latent, k_rope, mask)
        return self.o_proj(out_BHLV.transpose(1, 2).flatten(2)), chosen

    def _temperature(self, inputs: MixerInputs, floor: int) -> Tensor:
        """[L, 1] or [B, 1, L, 1]: the factor of queries by their position (Mistral 4)."""
        assert inputs.positions is not None
        steps = torch.floor(inputs.positions.float() / floor)
        return (torch.log1p(steps) * self.mixer.temperature_scale + 1).unsqueeze(-1)

    def _expanded(
        self, q_nope: Tensor, q_rope: Tensor, latent: Tensor, k_rope: Tensor, mask: DocumentMask | None
    ) -> Tensor:
        """Attention output [B, H, L, V] over keys and values of every head, expanded from the latents."""
        mixer = self.mixer
        expanded = self.kv_b_proj(latent).unflatten(-1, (mixer.num_heads, -1)).transpose(1, 2)
        k_nope, v = expanded.split([mixer.nope_head_dim, mixer.v_head_dim], dim=-1)
        k_rope = k_rope.unsqueeze(1).expand(-1, mixer.num_heads, -1, -1)
        q, k = torch.cat([q_nope, q_rope], dim=-1), torch.cat([k_nope, k_rope], dim=-1)
        return causal_attention(q, k, v, mask, scale=self.scale)

    def _absorbed(
        self, q_nope: Tensor, q_rope: Tensor, latent: Tensor, k_rope: Tensor, mask: DocumentMask | None
    ) -> Tensor:
        """Attention output as in `_expanded`, with the latents as the one key/value head of all queries."""
        mixer = self.mixer
        weight = self.kv_b_proj.weight.to(latent.dtype).unflatten(0, (mixer.num_heads, -1))
        to_key, to_value = weight.split([mixer.nope_head_dim, mixer.v_head_dim], dim=1)
        q = torch.cat([q_nope @ to_key, q_rope], dim=-1)
        k = torch.cat([latent, k_rope], dim=-1).unsqueeze(1)
        mixed = causal_attention(q, k, latent.unsqueeze(1), mask, scale=self.scale)
        return mixed @ to_value.transpose(-1, -2)

    def _absorbing_is_less_work(self, length: int) -> bool:
        """Whether `length` queries against the wider latents cost less per key than expanding the latents."""
        mixer = self.mixer
        wider = 2 * mixer.kv_lora_rank + mixer.rope_head_dim - mixer.qk_head_dim - mixer.v_head_dim
        return length * wider <= mixer.kv_lora_rank * (mixer.nope_head_dim + mixer.v_head_dim)


class Indexer(nn.Module):
    """Cheap scorer of all earlier keys that keeps the top_k best per query; it gets no gradient."""

    def __init__(self, config: ModelConfig, mixer: MLAConfig, index: IndexerConfig) -> None:
        super().__init__()
        assert mixer.q_lora_rank is not None
        self.index, self.turned = index, mixer.rope_head_dim
        self.q_proj = make_linear(mixer.q_lora_rank, index.num_heads * index.head_dim)
        self.k_proj = make_linear(config.d_model, index.head_dim)
        self.k_norm = nn.LayerNorm(index.head_dim, eps=_INDEXER_EPS)
        self.weights_proj = make_linear(config.d_model, index.num_heads)

    @torch.no_grad()
    def key(self, x_BLD: Tensor, inputs: MixerInputs) -> Tensor:
        """[B, L, head_dim], one key per token for all heads."""
        return self._turn(self.k_norm(self.k_proj(x_BLD)).unsqueeze(1), inputs).squeeze(1)

    @torch.no_grad()
    def choose(self, x_BLD: Tensor, q_latent: Tensor, keys_BSI: Tensor, inputs: MixerInputs) -> DocumentMask:
        """The mask of the top_k keys of each query, among those that it may see."""
        index, length, keys = self.index, x_BLD.shape[1], keys_BSI.shape[1]
        allowed = _allowed(inputs.mask, x_BLD, keys)
        if keys <= index.top_k:
            return DocumentMask(None, allowed)
        q = self.q_proj(q_latent).unflatten(-1, (index.num_heads, -1)).transpose(1, 2)
        q = self._turn(q, inputs)
        scores = (_wide(q) @ _wide(keys_BSI).transpose(-1, -2).unsqueeze(1)).relu() * index.head_dim**-0.5
        weights = _wide(self.weights_proj(x_BLD)).transpose(1, 2) * index.num_heads**-0.5
        total = (scores * weights.unsqueeze(-1)).sum(dim=1, keepdim=True)
        total = total.masked_fill(~allowed, -torch.inf)
        best = total.topk(index.top_k, dim=-1).indices
        chosen = torch.zeros_like(total, dtype=torch.bool).scatter_(-1, best, True)
        assert chosen.shape[2] == length
        return DocumentMask(None, chosen & allowed)

    def _turn(self, x: Tensor, inputs: MixerInputs) -> Tensor:
        """`x` with the first values of each head rotated, whatever the width of the head."""
        return x if inputs.rope is None else apply_rope(x, inputs.rope, self.index.rope_style)


def _allowed(mask: DocumentMask | None, x_BLD: Tensor, keys: int) -> Tensor:
    """bool [B or 1, 1, L, S]: the keys that each query may see before the indexer chooses."""
    batch, length = x_BLD.shape[:2]
    lower = torch.ones(length, keys, dtype=torch.bool, device=x_BLD.device).tril(keys - length)[None, None]
    if mask is None:
        return lower
    if mask.rows_R is None:
        return mask.mask_R1LL
    return lower.expand(batch, -1, -1, -1).index_copy(0, mask.rows_R, mask.mask_R1LL)


def _scale(mixer: MLAConfig) -> float:
    """Factor of the scores, with YaRN's mscale_all_dim, which sharpens the softmax (DeepSeek-V2)."""
    scale = mixer.softmax_scale or mixer.qk_head_dim**-0.5
    rope = mixer.rope
    if rope.scaling == "yarn" and rope.mscale_all_dim:
        scale *= yarn_mscale(rope.factor, rope.mscale_all_dim) ** 2
    return scale


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
