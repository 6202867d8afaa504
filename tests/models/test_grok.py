"""Grok-1 by hand: transformers has no class for it, so this follows the published model.py in plain torch."""

import math

import torch
import torch.nn.functional as F
from random_layers import randomise_

from moeworks import Decoder
from moeworks.families import from_hf
from moeworks.layers.rope import apply_rope, rope_table

CONFIG = dict(
    model_type="grok-1", vocab_size=50, hidden_size=16, intermediate_size=12, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=32, num_experts=5,
    num_experts_per_tok=2, rms_norm_eps=1e-5, attn_output_multiplier=0.3, max_attn_value=1.5,
    embedding_multiplier_scale=7.0, output_multiplier_scale=0.6,
)  # fmt: skip


def under(prefix: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


def rms(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return x / torch.sqrt(x.square().mean(-1, keepdim=True) + 1e-5) * weight


def attention(x: torch.Tensor, w: dict[str, torch.Tensor], table: torch.Tensor) -> torch.Tensor:
    length = x.shape[0]
    q = apply_rope((x @ w["q_proj.weight"].T).view(length, 4, 4).transpose(0, 1), table)
    k = apply_rope((x @ w["k_proj.weight"].T).view(length, 2, 4).transpose(0, 1), table)
    v = (x @ w["v_proj.weight"].T).view(length, 2, 4).transpose(0, 1)
    heads = []
    for h in range(4):
        scores = 1.5 * torch.tanh(q[h] @ k[h // 2].T * 0.3 / 1.5)
        scores = scores.masked_fill(torch.ones(length, length).triu(1).bool(), -math.inf)
        heads.append(scores.softmax(-1) @ v[h // 2])
    return torch.cat(heads, dim=-1) @ w["o_proj.weight"].T


def experts(x: torch.Tensor, w: dict[str, torch.Tensor]) -> torch.Tensor:
    """Softmax over all experts, the best two with their probabilities as they are."""
    probabilities = (x @ w["router.weight"].T).softmax(-1)
    out = torch.zeros_like(x)
    for i, row in enumerate(x):
        for e in probabilities[i].topk(2).indices:
            gate, up = (w["experts.gate_up_proj"][e] @ row).chunk(2)
            out[i] += probabilities[i, e] * (
                w["experts.down_proj"][e] @ (F.gelu(gate, approximate="tanh") * up)
            )
    return out


@torch.no_grad()
def test_grok_1_by_hand():
    torch.manual_seed(0)
    model = randomise_(Decoder(from_hf(CONFIG)).double(), std=0.4).eval()
    tokens = torch.randint(50, (1, 12))
    state, table = model.state_dict(), rope_table(12, 4, 10_000.0)
    x = state["embed.weight"][tokens[0]] * 7.0
    for layer in range(2):
        w = {
            n.removeprefix(f"layers.{layer}."): t
            for n, t in state.items()
            if n.startswith(f"layers.{layer}.")
        }
        part = {n.removeprefix("attention."): t for n, t in w.items() if n.startswith("attention.")}
        y = attention(rms(x, w["attention_norm.weight"]), part, table)
        x = x + rms(y, w["attention_post_norm.weight"])
        y = experts(rms(x, w["mlp_norm.weight"]), under("mlp.", w))
        x = x + rms(y, w["mlp_post_norm.weight"])
    want = rms(x, state["final_norm.weight"]) @ state["embed.weight"].T * 0.6
    torch.testing.assert_close(model(tokens).logits_BLV[0], want, rtol=1e-6, atol=1e-6)
