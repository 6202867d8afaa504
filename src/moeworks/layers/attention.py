"""Grouped-query attention."""

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from moeworks.config.mixers import GQAConfig
from moeworks.config.model import ModelConfig
from moeworks.layers.init import make_linear
from moeworks.layers.inputs import MixerInputs
from moeworks.layers.norm import l2_norm, make_norm
from moeworks.layers.rope import apply_rope
from moeworks.ops.attention import causal_attention, explicit_attention


@runtime_checkable
class LayerCache(Protocol):
    """Keys and values of earlier positions of one layer."""

    def append(self, k_BGLP: Tensor, v_BGLP: Tensor) -> tuple[Tensor, Tensor]:
        """Keep new keys and values; return all that a query may see, [B, G, S, P] each."""
        ...


class GQAttention(nn.Module):
    """Grouped-query attention with rotary positions and the options of GQAConfig."""

    def __init__(self, config: ModelConfig, mixer: GQAConfig | None = None) -> None:
        super().__init__()
        if mixer is None:
            assert isinstance(config.attention, GQAConfig)
            mixer = config.attention
        self.mixer, self.eps = mixer, config.norm_eps
        self.head_dim = width = config.gqa_head_dim(mixer)
        self.scale = mixer.softmax_scale or width**-0.5
        v_width = mixer.v_head_dim or width
        heads, kv_heads = mixer.num_heads * width, mixer.num_kv_heads * width
        outputs = mixer.num_heads * v_width
        self.q_proj = make_linear(config.d_model, heads, bias=mixer.qkv_bias)
        self.k_proj = make_linear(config.d_model, kv_heads, bias=mixer.qkv_bias)
        self.v_proj = make_linear(config.d_model, mixer.num_kv_heads * v_width, bias=mixer.qkv_bias)
        self.o_proj = make_linear(outputs, config.d_model, bias=mixer.output_bias)
        self.gate_proj = None
        if mixer.output_gate:
            self.gate_proj = make_linear(config.d_model, outputs, bias=mixer.qkv_bias)
        self.q_norm: nn.Module = nn.Identity()
        self.k_norm: nn.Module = nn.Identity()
        if mixer.qk_norm and mixer.qk_norm_kind != "l2":
            flat = mixer.qk_norm_kind == "flat"
            self.q_norm = make_norm(config, heads if flat else width)
            self.k_norm = make_norm(config, kv_heads if flat else width)
        self.sinks = nn.Parameter(torch.zeros(mixer.num_heads)) if mixer.sinks else None

    def residual_projections(self) -> tuple[Tensor, ...]:
        """The matrices that write into the residual stream."""
        return (self.o_proj.weight,)

    def forward(self, x_BLD: Tensor, inputs: MixerInputs, cache: LayerCache | None = None) -> Tensor:
        """y [B, L, D]."""
        q_BHLP = self._query_or_key(self.q_proj(x_BLD), self.q_norm, inputs)
        k_BGLP = self._query_or_key(self.k_proj(x_BLD), self.k_norm, inputs)
        v_BGLP = self._clip(self.v_proj(x_BLD)).unflatten(-1, (self.mixer.num_kv_heads, -1)).transpose(1, 2)
        if self.mixer.value_scale != 1.0:
            v_BGLP = v_BGLP * self.mixer.value_scale
        if self.mixer.temperature_floor is not None:
            q_BHLP = q_BHLP * self._temperature(inputs).to(q_BHLP.dtype)
        if cache is not None:
            k_BGLP, v_BGLP = cache.append(k_BGLP, v_BGLP)
        q_BHLP, k_BGLP = q_BHLP.to(v_BGLP.dtype), k_BGLP.to(v_BGLP.dtype)
        if self.sinks is None and self.mixer.score_softcap is None:
            out_BHLP = causal_attention(q_BHLP, k_BGLP, v_BGLP, inputs.mask, scale=self.scale)
        else:
            out_BHLP = explicit_attention(
                q_BHLP, k_BGLP, v_BGLP, inputs.mask,
                scale=self.scale, sinks_H=self.sinks, softcap=self.mixer.score_softcap,
            )  # fmt: skip
        out_BLH = out_BHLP.transpose(1, 2).flatten(2)
        if self.gate_proj is not None:
            out_BLH = out_BLH * torch.sigmoid(self.gate_proj(x_BLD))
        return self.o_proj(out_BLH)

    def _query_or_key(self, x_BLH: Tensor, norm: nn.Module, inputs: MixerInputs) -> Tensor:
        """Clipped, normalised and turned, [B, heads, L, P]."""
        mixer = self.mixer
        flat = mixer.qk_norm_kind == "flat"
        # OLMoE normalises before it clips; the order matters only where both are on.
        x = self._heads(self._clip(norm(x_BLH) if flat else x_BLH))
        if not flat and not mixer.qk_norm_after_rope:
            x = self._norm_heads(x, norm)
        if inputs.rope is not None:
            x = apply_rope(x, inputs.rope, mixer.rope.style)
        return self._norm_heads(x, norm) if not flat and mixer.qk_norm_after_rope else x

    def _norm_heads(self, x: Tensor, norm: nn.Module) -> Tensor:
        return l2_norm(x, self.eps) if self.mixer.qk_norm and self.mixer.qk_norm_kind == "l2" else norm(x)

    def _temperature(self, inputs: MixerInputs) -> Tensor:
        """[L, 1] or [B, 1, L, 1]: the factor of queries by position (Llama 4's layers without rope)."""
        assert inputs.positions is not None and self.mixer.temperature_floor is not None
        steps = torch.floor((inputs.positions.float() + 1) / self.mixer.temperature_floor)
        return (torch.log1p(steps) * self.mixer.temperature_scale + 1).unsqueeze(-1)

    def _clip(self, x: Tensor) -> Tensor:
        limit = self.mixer.qkv_clip
        return x if limit is None else x.clamp(-limit, limit)

    def _heads(self, x: Tensor) -> Tensor:
        """[B, L, heads * P] -> [B, heads, L, P]."""
        return x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
