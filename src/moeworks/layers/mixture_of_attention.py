"""Mixture of attention heads (Zhang et al. 2022; JetMoE section 2.2)."""

import torch
from torch import Tensor, nn

from moeworks.config.mixers import MixtureOfAttentionConfig
from moeworks.config.model import ModelConfig, RouterConfig
from moeworks.layers.attention import LayerCache
from moeworks.layers.init import init_matrix_, make_linear
from moeworks.layers.inputs import MixerInputs
from moeworks.layers.rope import apply_rope
from moeworks.layers.router import Router
from moeworks.ops.attention import causal_attention
from moeworks.ops.dispatch import dispatch
from moeworks.ops.routing import Routing


class AttentionExperts(nn.Module):
    """A query and an output projection per expert, stacked."""

    def __init__(self, num_experts: int, d_model: int, width: int) -> None:
        super().__init__()
        self.q_proj = nn.Parameter(torch.empty(num_experts, width, d_model))
        self.o_proj = nn.Parameter(torch.empty(num_experts, d_model, width))
        init_matrix_(self.q_proj)
        init_matrix_(self.o_proj)


class MixtureOfAttention(nn.Module):
    """Attention whose query and output projections are experts that each token chooses."""

    def __init__(self, config: ModelConfig, mixer: MixtureOfAttentionConfig) -> None:
        super().__init__()
        self.mixer = mixer
        width = mixer.num_kv_heads * mixer.head_dim
        router = RouterConfig(num_experts=mixer.num_experts, top_k=mixer.top_k, score_order="after_top_k")
        self.router = Router(router, config.d_model)
        self.kv_proj = make_linear(config.d_model, 2 * width)
        self.experts = AttentionExperts(mixer.num_experts, config.d_model, width)
        self.output_bias = nn.Parameter(torch.zeros(config.d_model)) if mixer.output_bias else None

    def residual_projections(self) -> tuple[Tensor, ...]:
        """The matrices that write into the residual stream."""
        return (self.experts.o_proj,)

    def forward(
        self, x_BLD: Tensor, inputs: MixerInputs, cache: LayerCache | None = None
    ) -> tuple[Tensor, Routing]:
        """y [B, L, D] and the Routing of the tokens."""
        mixer, (batch, length, _) = self.mixer, x_BLD.shape
        x_TD = x_BLD.flatten(0, 1)
        routing = self.router(x_TD)
        plan = dispatch(routing, mixer.num_experts)
        rows = plan.rows_per_expert_E.tolist()
        tokens_N = plan.order_N // mixer.top_k
        q_ND = _grouped(x_TD[tokens_N], self.experts.q_proj, rows)[plan.inverse_N]
        q_BHLP = q_ND.view(batch, length, mixer.top_k * mixer.num_kv_heads, mixer.head_dim).transpose(1, 2)
        k_BLH, v_BLH = self.kv_proj(x_BLD).chunk(2, dim=-1)
        k_BGLP, v_BGLP = (t.unflatten(-1, (mixer.num_kv_heads, -1)).transpose(1, 2) for t in (k_BLH, v_BLH))
        if inputs.rope is not None:
            q_BHLP = apply_rope(q_BHLP, inputs.rope, mixer.rope.style)
            k_BGLP = apply_rope(k_BGLP, inputs.rope, mixer.rope.style)
        if cache is not None:
            k_BGLP, v_BGLP = cache.append(k_BGLP, v_BGLP)
        q_BHLP, k_BGLP = q_BHLP.to(v_BGLP.dtype), k_BGLP.to(v_BGLP.dtype)
        # Head g of every expert uses key/value head g, so a group holds one head of each expert.
        by_group = q_BHLP.unflatten(1, (mixer.top_k, -1)).transpose(1, 2).flatten(1, 2)
        out = causal_attention(by_group, k_BGLP, v_BGLP, inputs.mask)
        out = out.unflatten(1, (-1, mixer.top_k)).transpose(1, 2).flatten(1, 2)
        out_NW = out.transpose(1, 2).reshape(batch * length * mixer.top_k, -1)
        back_ND = _grouped(out_NW[plan.order_N], self.experts.o_proj, rows)[plan.inverse_N]
        weights_TK1 = routing.routing_weights_TK.to(back_ND.dtype).unsqueeze(-1)
        y_TD = (back_ND.view(-1, mixer.top_k, back_ND.shape[-1]) * weights_TK1).sum(dim=1)
        if self.output_bias is not None:
            y_TD = y_TD + self.output_bias.to(y_TD.dtype)
        return y_TD.view(batch, length, -1), routing


def _grouped(x_ND: Tensor, weight: Tensor, rows: list[int]) -> Tensor:
    """Product of rows, sorted by expert, and each expert's matrix of [E, out, in]."""
    pieces = zip(x_ND.split(rows), weight.unbind(0), strict=True)
    # Autocast would convert the matrices of experts without tokens as well.
    return torch.cat([nn.functional.linear(piece, matrix) for piece, matrix in pieces if len(piece)])
