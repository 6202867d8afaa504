import torch
from random_layers import randomise_

from moeworks import ModelConfig
from moeworks.config import MixtureOfAttentionConfig
from moeworks.layers.inputs import Slots, mixer_inputs
from moeworks.layers.mixture_of_attention import MixtureOfAttention
from moeworks.layers.rope import apply_rope


def make() -> tuple[MixtureOfAttention, ModelConfig]:
    torch.manual_seed(0)
    mixer = MixtureOfAttentionConfig(num_kv_heads=2, head_dim=6, num_experts=5, top_k=3)
    config = ModelConfig(d_model=8, attention=mixer)
    return randomise_(MixtureOfAttention(config, mixer).double()), config


def test_equals_a_loop_over_tokens_experts_and_heads():
    layer, config = make()
    inputs = mixer_inputs(config.attention, config, Slots(7))
    x = torch.randn(1, 7, 8, dtype=torch.float64)
    got, routing = layer(x, inputs)
    k, v = (t.view(7, 2, 6) for t in layer.kv_proj(x[0]).chunk(2, dim=-1))
    k = apply_rope(k.transpose(0, 1), inputs.rope).transpose(0, 1)
    for i in range(7):
        logits = layer.router.weight @ x[0, i]
        best = logits.topk(3)
        assert routing.expert_ids_TK[i].tolist() == best.indices.tolist()
        want = layer.output_bias.clone()
        for weight, e in zip(best.values.softmax(0), best.indices, strict=True):
            q = apply_rope((layer.experts.q_proj[e] @ x[0, i]).view(2, 1, 6), inputs.rope[:, i : i + 1])[:, 0]
            heads = []
            for h in range(2):
                scores = torch.stack([q[h] @ k[j, h] for j in range(i + 1)]) * 6**-0.5
                heads.append(scores.softmax(0) @ v[: i + 1, h])
            want = want + weight * (layer.experts.o_proj[e] @ torch.cat(heads))
        torch.testing.assert_close(got[0, i], want, rtol=1e-9, atol=1e-9)


def test_its_routing_is_one_of_the_models():
    layer, config = make()
    _, routing = layer(
        torch.randn(2, 5, 8, dtype=torch.float64), mixer_inputs(config.attention, config, Slots(5))
    )
    assert routing.expert_ids_TK.shape == (10, 3)
    torch.testing.assert_close(routing.routing_weights_TK.sum(1), torch.ones(10, dtype=torch.float64))
