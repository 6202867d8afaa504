import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_layers import randomise_

from moeworks import Decoder, ModelConfig
from moeworks.config import ExpertsConfig, IndexerConfig, MLAConfig, RopeConfig, RouterConfig
from moeworks.config.model import LayerPatternConfig
from moeworks.errors import ConfigError
from moeworks.layers.inputs import MixerInputs, Slots, mixer_inputs
from moeworks.layers.mla import MLAttention
from moeworks.models.cache import KVCache, LatentKVCache


def make(**options) -> tuple[MLAttention, ModelConfig]:
    torch.manual_seed(0)
    fields = dict(num_heads=3, q_lora_rank=12, kv_lora_rank=8, nope_head_dim=6, rope_head_dim=4, v_head_dim=5)
    mixer = MLAConfig(**{**fields, **options})
    config = ModelConfig(d_model=16, attention=mixer)
    return randomise_(MLAttention(config, mixer).double(), std=0.4), config


def inputs_of(config: ModelConfig, length: int, start: int = 0) -> MixerInputs:
    return mixer_inputs(config.attention, config, Slots(length, start))


def cache_of(mixer: MLAConfig, batch: int = 2) -> LatentKVCache:
    index = () if mixer.indexer is None else (mixer.indexer.head_dim,)
    widths = (mixer.kv_lora_rank, mixer.rope_head_dim, *index)
    return LatentKVCache(batch, 40, widths, torch.float64, torch.device("cpu"))


VARIANTS = {
    "plain": {},
    "no query latent": dict(q_lora_rank=None),
    "biases": dict(bias=True),
    "half": dict(rope=RopeConfig(style="half")),
    "no positions": dict(rope=RopeConfig(enabled=False)),
    "scaled latents": dict(scale_latents=True),
    "temperature": dict(temperature_floor=4, temperature_scale=0.7),
    "indexer": dict(indexer=IndexerConfig(num_heads=16, head_dim=6, top_k=5)),
}


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_absorbed_equals_expanded(options, monkeypatch):
    attention, config = make(**options)
    x = torch.randn(2, 20, 16, dtype=torch.float64)
    want, _ = attention(x, inputs_of(config, 20))
    for absorb in (True, False):
        monkeypatch.setattr(attention, "_absorbing_is_less_work", lambda length, absorb=absorb: absorb)
        cache, outs = cache_of(config.attention), []
        for start, stop in ((0, 9), (9, 10), (10, 17), (17, 20)):
            outs.append(attention(x[:, start:stop], inputs_of(config, stop - start, start), cache)[0])
        # Rotary tables are float32; everything else is float64.
        torch.testing.assert_close(torch.cat(outs, dim=1), want, rtol=1e-6, atol=1e-6)


def test_decoding_is_absorbed_and_long_prefills_are_not():
    attention, _ = make(kv_lora_rank=64, nope_head_dim=16, v_head_dim=16)
    assert attention._absorbing_is_less_work(1)
    assert not attention._absorbing_is_less_work(1000)


def test_the_cache_holds_the_latent_and_one_rotary_key():
    config = ModelConfig(
        d_model=16,
        num_layers=2,
        attention=MLAConfig(kv_lora_rank=8, rope_head_dim=4),
        pattern=LayerPatternConfig(explicit=()),
    )
    cache = KVCache(config, 1, 10)
    Decoder(config)(torch.zeros(1, 7, dtype=torch.int64), cache=cache)
    assert cache.values() == 2 * 7 * (8 + 4)
    with pytest.raises(ConfigError, match="cache length = 11: exceeds the cache's size, 10"):
        Decoder(config)(torch.zeros(1, 4, dtype=torch.int64), cache=cache)


@torch.no_grad()
def test_the_indexer_keeps_the_best_keys_of_each_query():
    attention, config = make(indexer=IndexerConfig(num_heads=5, head_dim=6, top_k=3))
    indexer, inputs = attention.indexer, inputs_of(config, 8)
    x = torch.randn(1, 8, 16, dtype=torch.float64)
    latent = attention.q_a_norm(attention.q_a_proj(x))
    keys = indexer.key(x, inputs)
    chosen = indexer.choose(x, latent, keys, inputs).mask_R1LL[0, 0]
    q = indexer._turn(indexer.q_proj(latent).unflatten(-1, (5, 6)).transpose(1, 2), inputs)[0]
    weights = indexer.weights_proj(x)[0] * 5**-0.5
    for i in range(8):
        scores = [
            sum(weights[i, h] * max(float(q[h, i] @ keys[0, j]) * 6**-0.5, 0.0) for h in range(5))
            for j in range(i + 1)
        ]
        best = sorted(range(i + 1), key=lambda j: -float(scores[j]))[:3]
        assert set(chosen[i].nonzero().flatten().tolist()) == set(best)


def test_few_keys_are_all_seen():
    sparse, config = make(indexer=IndexerConfig(num_heads=2, head_dim=4, top_k=50))
    plain, other = make()
    plain.load_state_dict({n: t for n, t in sparse.state_dict().items() if "indexer" not in n})
    x = torch.randn(2, 9, 16, dtype=torch.float64)
    torch.testing.assert_close(sparse(x, inputs_of(config, 9))[0], plain(x, inputs_of(other, 9))[0])


def test_the_indexer_gets_no_gradient():
    attention, config = make(indexer=IndexerConfig(num_heads=2, head_dim=4, top_k=2))
    attention(torch.randn(1, 9, 16, dtype=torch.float64), inputs_of(config, 9))[0].sum().backward()
    assert all((p.grad is None) == ("indexer" in n) for n, p in attention.named_parameters())


@settings(max_examples=15)
@given(st.integers(1, 6), st.booleans())
def test_a_trained_decoder_of_latents_fits_a_training_step(heads, shared):
    config = ModelConfig(
        vocab_size=20,
        d_model=8,
        num_layers=1,
        attention=MLAConfig(num_heads=heads, q_lora_rank=4 if shared else None),
        router=RouterConfig(num_experts=2),
        experts=ExpertsConfig(d_expert=4),
    )
    model = Decoder(config)
    model(torch.arange(10)[None]).logits_BLV.sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_decoding_calls_a_projection_of_latents_that_does_more_than_multiply():
    attention, config = make()
    cache, x = cache_of(config.attention), torch.randn(2, 9, 16, dtype=torch.float64)
    attention.kv_b_proj.register_forward_hook(lambda module, inputs, made: 2 * made)
    want, _ = attention(x, inputs_of(config, 9))
    attention(x[:, :8], inputs_of(config, 8), cache)
    last, _ = attention(x[:, 8:], inputs_of(config, 1, start=8), cache)
    torch.testing.assert_close(last, want[:, 8:], rtol=1e-10, atol=1e-10)
