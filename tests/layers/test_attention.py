import pytest
import straight_loop
import torch
from random_layers import randomise_

from moeworks import ModelConfig
from moeworks.config.model import GQAConfig
from moeworks.config.rope import RopeConfig
from moeworks.layers.attention import GQAttention
from moeworks.layers.inputs import MixerInputs
from moeworks.layers.rope import rope_angles
from moeworks.ops.attention import document_mask


def make_attention(**options) -> tuple[GQAttention, ModelConfig]:
    torch.manual_seed(0)
    config = ModelConfig(d_model=8, attention=GQAConfig(**{**dict(num_heads=2, num_kv_heads=1), **options}))
    return randomise_(GQAttention(config).double()), config


def table(length: int, config: ModelConfig, mask=None) -> MixerInputs:
    theta, kind = config.attention.rope_theta, torch.float64
    rope = rope_angles(torch.arange(length), theta, RopeConfig(), config.head_dim, dtype=kind)
    return MixerInputs(rope=rope, mask=mask)


@pytest.mark.parametrize(
    "options",
    [
        dict(num_heads=2, num_kv_heads=2),
        dict(num_heads=4, num_kv_heads=2, qkv_bias=True),
        dict(num_heads=4, num_kv_heads=1, head_dim=6, qk_norm=False),
        dict(rope_theta=50.0),
    ],
)
def test_equals_a_hand_written_softmax(options):
    attention, config = make_attention(**options)
    x = torch.randn(2, 6, 8, dtype=torch.float64)
    documents = torch.tensor([[0, 0, 1, 1, 1, 2], [4, 4, 4, 4, 4, 4]])
    y = attention(x, table(6, config, document_mask(documents)))
    for row, ids, got in zip(x, documents.tolist(), y, strict=True):
        weights = straight_loop.named_weights(attention)
        want = straight_loop.attention(list(row), ids, weights, config)
        torch.testing.assert_close(got, torch.stack(want), rtol=1e-11, atol=1e-11)


def test_grouped_heads_equal_repeated_key_and_value_heads():
    attention, config = make_attention(num_heads=4, num_kv_heads=2)
    full, _ = make_attention(num_heads=4, num_kv_heads=4)
    full.load_state_dict(
        {
            name: w.view(2, -1, 8).repeat_interleave(2, dim=0).reshape(8, 8)
            if name[0] in "kv" and "proj" in name
            else w
            for name, w in attention.state_dict().items()
        }
    )
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    torch.testing.assert_close(
        attention(x, table(5, config)), full(x, table(5, config)), rtol=1e-12, atol=1e-12
    )


def test_no_position_sees_a_later_one():
    attention, config = make_attention()
    x = torch.randn(1, 6, 8, dtype=torch.float64)
    y = attention(x, table(6, config))
    x[:, 4:] += 10
    changed = attention(x, table(6, config))
    torch.testing.assert_close(changed[:, :4], y[:, :4], rtol=1e-12, atol=1e-12)
    assert (changed[:, 4:] - y[:, 4:]).abs().min() > 1e-6


def test_only_what_the_config_asks_for_is_built():
    attention, _ = make_attention(qk_norm=False)
    assert set(attention.state_dict()) == {f"{n}_proj.weight" for n in "qkvo"}
    attention, _ = make_attention(qkv_bias=True)
    assert set(attention.state_dict()) == (
        {f"{n}_proj.weight" for n in "qkvo"}
        | {f"{n}_proj.bias" for n in "qkv"}
        | {"q_norm.weight", "k_norm.weight"}
    )
