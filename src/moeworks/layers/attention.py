"""Grouped-query attention."""

from typing import Protocol, runtime_checkable

from torch import Tensor, nn

from moeworks.config.model import GQAConfig, ModelConfig
from moeworks.layers.norm import RMSNorm
from moeworks.layers.rope import apply_rope
from moeworks.ops.attention import DocumentMask, causal_attention


@runtime_checkable
class LayerCache(Protocol):
    """Keys and values of earlier positions of one layer."""

    def append(self, k_BGLP: Tensor, v_BGLP: Tensor) -> tuple[Tensor, Tensor]:
        """Keep new keys and values; return all so far, [B, G, S, P] each."""
        ...


class GQAttention(nn.Module):
    """Grouped-query attention with rotary positions and optional per-head RMSNorm of queries and keys."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        attention, width = config.attention, config.head_dim
        assert isinstance(attention, GQAConfig)
        self.head_dim = width
        heads, kv_heads = attention.num_heads * width, attention.num_kv_heads * width
        self.q_proj = nn.Linear(config.d_model, heads, bias=attention.qkv_bias)
        self.k_proj = nn.Linear(config.d_model, kv_heads, bias=attention.qkv_bias)
        self.v_proj = nn.Linear(config.d_model, kv_heads, bias=attention.qkv_bias)
        self.o_proj = nn.Linear(heads, config.d_model, bias=False)
        self.q_norm = RMSNorm(width, eps=config.norm_eps) if attention.qk_norm else nn.Identity()
        self.k_norm = RMSNorm(width, eps=config.norm_eps) if attention.qk_norm else nn.Identity()

    def forward(
        self,
        x_BLD: Tensor,
        rope_2LP: Tensor,
        documents: DocumentMask | None = None,
        cache: LayerCache | None = None,
    ) -> Tensor:
        """y [B, L, D]. `rope_2LP` holds the angles of the L positions; `cache` those before them."""
        q, k = self.q_norm(self._heads(self.q_proj(x_BLD))), self.k_norm(self._heads(self.k_proj(x_BLD)))
        q_BHLP, k_BGLP = apply_rope(q, rope_2LP), apply_rope(k, rope_2LP)
        v_BGLP = self._heads(self.v_proj(x_BLD))
        if cache is not None:
            k_BGLP, v_BGLP = cache.append(k_BGLP, v_BGLP)
        out_BHLP = causal_attention(q_BHLP.to(v_BGLP.dtype), k_BGLP.to(v_BGLP.dtype), v_BGLP, documents)
        return self.o_proj(out_BHLP.transpose(1, 2).flatten(2))

    def _heads(self, x: Tensor) -> Tensor:
        """[B, L, heads * P] -> [B, heads, L, P]."""
        return x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
