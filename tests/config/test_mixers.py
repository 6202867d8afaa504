"""Rules of the mixers' configs, and what one mixer counts to."""

from dataclasses import replace

import pytest

from moeworks.config import (
    GatedDeltaConfig,
    GQAConfig,
    IndexerConfig,
    MixtureOfAttentionConfig,
    MLAConfig,
    ModelConfig,
    NormConfig,
    RopeConfig,
)
from moeworks.config.codec import from_dict, to_dict
from moeworks.config.count import count_cache_bytes, count_decode_flops, count_flops
from moeworks.config.count_mixers import count_mixer
from moeworks.config.model import LayerPatternConfig
from moeworks.errors import ConfigError


def _shared_indexers(first: int, top_k: int = 4) -> ModelConfig:
    """Layers that share an indexer's choice from `first` on."""
    own = MLAConfig(q_lora_rank=8, indexer=IndexerConfig(head_dim=8, top_k=4))
    shared = replace(own, indexer=IndexerConfig(head_dim=8, top_k=top_k, shared=True))
    return ModelConfig(attention=own, mixers=(shared,), layer_mixers=tuple(int(i >= first) for i in range(4)))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GQAConfig(window=3, chunk=4), "attention.chunk = 4: cannot be combined with window = 3"),
        (lambda: GQAConfig(window=0), "attention.window = 0: must be at least 1"),
        (lambda: GQAConfig(qkv_clip=-1.0), "attention.qkv_clip"),
        (lambda: GQAConfig(sinks=True, score_softcap=3.0), "cannot be combined with sinks"),
        (lambda: MLAConfig(rope_head_dim=3), "attention.rope_head_dim = 3: must be even"),
        (lambda: MLAConfig(indexer=IndexerConfig()), "attention.indexer = .*needs q_lora_rank"),
        (lambda: MLAConfig(q_lora_rank=0), "attention.q_lora_rank"),
        (lambda: GQAConfig(v_head_dim=0), "attention.v_head_dim = 0: must be at least 1"),
        (lambda: GQAConfig(value_scale=0.0), "attention.value_scale = 0.0: must be positive"),
        (lambda: MLAConfig(scale_latents=True), "attention.scale_latents = True: needs q_lora_rank"),
        (lambda: MLAConfig(temperature_floor=0), "attention.temperature_floor = 0"),
        (lambda: _shared_indexers(0), "layer 0 needs an earlier layer with an indexer"),
        (lambda: _shared_indexers(1, top_k=5), "layer 1 needs an earlier layer .* top_k = 5"),
        (lambda: ModelConfig(pattern=LayerPatternConfig(shortcut=True)), "the MoE of layer 3, the last one"),
        (
            lambda: ModelConfig(
                norm=NormConfig(placement="post"), pattern=LayerPatternConfig(explicit=(0,), shortcut=True)
            ),
            "needs norm.placement = 'pre', which is 'post'",
        ),
        (lambda: IndexerConfig(top_k=0), "indexer.top_k = 0"),
        (lambda: GatedDeltaConfig(num_key_heads=3), "attention.num_value_heads = 4: must be a multiple"),
        (lambda: GatedDeltaConfig(latent_rank=0), "attention.latent_rank = 0: must be at least 1"),
        (lambda: MixtureOfAttentionConfig(top_k=1), "attention.top_k = 1"),
        (lambda: RopeConfig(dim=3), "rope.dim = 3: must be even"),
        (lambda: RopeConfig(scaling="yarn"), "rope.original_max_seq_len = None: is needed by scaling"),
        (lambda: RopeConfig(scaling="longrope", original_max_seq_len=4), "rope.long_factors"),
        (lambda: RopeConfig(high_freq_factor=0.5), "rope.high_freq_factor"),
        (lambda: NormConfig(bias=True), "norm.bias"),
        (lambda: NormConfig(kind="layer", zero_centred=True), "norm.zero_centred"),
        (lambda: NormConfig(final_eps=0.0), "norm.final_eps"),
        (lambda: ModelConfig(lm_head_bias=True), "model.lm_head_bias"),
        (lambda: ModelConfig(residual_scale=0.0), "model.residual_scale"),
        (lambda: ModelConfig(num_mtp_layers=-1), "model.num_mtp_layers"),
        (lambda: ModelConfig(layer_mixers=(0,)), "model.layer_mixers = .*each of the 4 layers"),
        (lambda: ModelConfig(layer_mixers=(0, 1, 0, 0)), "names a mixer outside 0 .. 0"),
        (lambda: ModelConfig(attention=GQAConfig(rope=RopeConfig(dim=64))), "the width of a head, 32"),
        (lambda: ModelConfig(attention=MLAConfig()).head_dim, "other kinds have no single head_dim"),
    ],
)  # fmt: skip
def test_rules(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


MIXED = ModelConfig(
    d_model=32,
    num_layers=4,
    attention=GatedDeltaConfig(),
    mixers=(GQAConfig(window=8), MLAConfig(q_lora_rank=8, indexer=IndexerConfig(head_dim=8, top_k=4))),
    layer_mixers=(0, 1, 2, 1),
)


def test_layers_may_have_four_kinds_of_mixers_and_survive_json():
    assert from_dict(ModelConfig, to_dict(MIXED)) == MIXED
    assert [m.kind for m in MIXED.mixer_of_layers] == ["gated_delta", "gqa", "mla", "gqa"]


def test_configs_from_before_there_were_kinds_are_grouped_attention():
    old = to_dict(ModelConfig())
    for name in ("mixers", "layer_mixers", "norm", "num_mtp_layers"):
        del old[name]
    old["attention"] = {"num_heads": 2, "num_kv_heads": 1, "qk_norm": False, "rope_theta": 500.0}
    read = from_dict(ModelConfig, old)
    assert read.attention == GQAConfig(num_heads=2, num_kv_heads=1, qk_norm=False, rope_theta=500.0)


def test_what_a_query_reaches_bounds_its_work():
    dense = replace(MIXED, pattern=LayerPatternConfig(explicit=()))
    short, long = (count_flops(dense, length, training=False) for length in (64, 128))
    # Beyond the window of 8 and the indexer's 4 keys only the indexer's own scores grow.
    assert long - short == 2 * 64 * 8 * 64
    assert count_flops(dense, 64, training=True) == 3 * short
    assert count_decode_flops(dense, 64) > 0


def test_absorbed_decoding_scores_latents():
    mixer = MLAConfig(num_heads=2, kv_lora_rank=32, nope_head_dim=16, rope_head_dim=8, v_head_dim=16)
    count = count_mixer(mixer, 64)
    assert count.per_key == 2 * (24 + 16)
    assert count.decode_per_key == 2 * (40 + 32)
    assert (count.cached, count.cached_expanded) == (40, 2 * (24 + 16))


def test_a_recurrences_state_does_not_grow():
    only = replace(MIXED, layer_mixers=(0,) * 4)
    assert count_cache_bytes(only, 10, 4) == count_cache_bytes(only, 10_000, 4) > 0
