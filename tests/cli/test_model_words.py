import pytest

from moeworks.cli.model_words import shape_record, shape_rows
from moeworks.config.presets import PRESETS, preset
from moeworks.families import BY_PRESET, published


def words(name: str) -> str:
    return "\n".join(f"{key}: {value}" for key, value in shape_rows(published(name)))


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        (
            "deepseek-v3",
            [
                "layers: 61: 3 dense (feed-forward width 18,432), 58 with experts",
                "latent attention (MLA): 128 heads, latent 512 + 64 for positions, in 61 layers",
                "256 of width 2,048, 8 per token; 1 shared (width 2,048 together)",
                "sigmoid of all logits, renormalised, times 2.5, a bias in the selection, 4 of 8 groups",
                "MTP: 1 more layer",
            ],
        ),
        ("deepseek-v3.2", ["the 2,048 keys that an indexer chooses"]),
        (
            "gpt-oss-20b",
            ["window 128, in 12 layers", "8 key/value heads, in 12 layers", "of the chosen logits"],
        ),
        (
            "llama-4-scout",
            ["chunks of 8,192, in 36", "without positions, in 12", "weights on the experts' input"],
        ),
        ("qwen3-next-80b-a3b", ["gated delta rule: 16 key heads, 32 states of 128 x 128", "gated)"]),
        ("jetmoe-8b", ["mixture of attention: 8 experts, 2 per token, 16 heads each", "embeddings tied"]),
        ("llama-3-8b", ["32, all dense (feed-forward width 14,336)"]),
    ],
)
def test_words(name, parts):
    for part in parts:
        assert part in words(name)


@pytest.mark.parametrize("name", BY_PRESET)
def test_records(name):
    model, record = published(name), shape_record(published(name))
    layers = record["layers"]
    assert layers["moe"] + layers["dense"] == layers["total"] == sum(layers["mixers"].values())
    assert (record["routing"] is None) == (not model.moe_layers)
    if record["routing"]:
        assert record["routing"]["top_k"] == model.router.top_k


def test_own_presets_have_words():
    for name in PRESETS:
        assert len(shape_rows(preset(name).model)) >= 5


def test_dense_models_have_no_routing():
    assert "routing" not in words("llama-3-8b")
