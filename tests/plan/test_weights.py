"""Bytes of weights against hand counts and published checkpoints."""

from collections import Counter
from dataclasses import fields

import pytest

from moeworks.config.count import count_bytes, count_parameters
from moeworks.config.presets import PRESETS, preset
from moeworks.families import BY_PRESET, published
from moeworks.plan.formats import FORMATS
from moeworks.plan.weights import WeightBytes, matrices, weight_bytes

MODELS = {**{name: published(name) for name in BY_PRESET}, **{name: preset(name).model for name in PRESETS}}


@pytest.mark.parametrize("name", MODELS)
def test_matrices_are_the_parameters_but_for_vectors(name):
    """What is no matrix of a layer are biases, sinks, convolutions and token gates: few, or none."""
    model, entries = MODELS[name], Counter()
    for matrix in matrices(model):
        entries[matrix.component] += matrix.entries
    counts = count_parameters(model)
    for component in ("attention", "dense_mlp", "experts", "shared"):
        whole = getattr(counts, component)
        assert 0 <= whole - entries[component] <= 0.004 * whole, component
    if name in (
        "deepseek-v3",
        "deepseek-v3.2",
        "mixtral-8x7b",
        "qwen3-30b-a3b",
        "llama-4-scout",
        "olmoe-1b-7b",
    ):
        assert sum(entries.values()) == counts.attention + counts.dense_mlp + counts.experts + counts.shared


@pytest.mark.parametrize("name", MODELS)
def test_components_sum_and_wide_formats_are_plain_products(name):
    model = MODELS[name]
    for form, width in (("fp32", 4), ("bf16", 2)):
        sizes = weight_bytes(model, FORMATS[form])
        assert sizes.total == count_bytes(model, width)
        assert sizes.total == sum(getattr(sizes, field.name) for field in fields(WeightBytes))


@pytest.mark.parametrize("name", MODELS)
def test_order_of_formats(name):
    total = {form: weight_bytes(MODELS[name], FORMATS[form]).total for form in FORMATS}
    assert total["fp32"] > total["bf16"] > total["fp8"] > total["int4"]
    if MODELS[name].moe_layers:
        assert total["bf16"] > total["mxfp4"] > total["int4"]
    else:
        assert total["mxfp4"] == total["bf16"]


def test_deepseek_v3_in_fp8():
    """671 B parameters take about 671 GB, not half or a quarter of it; some stay wide."""
    sizes = weight_bytes(published("deepseek-v3"), FORMATS["fp8"])
    assert sizes.total == pytest.approx(671e9, rel=0.005)
    assert sizes.embedding == sizes.lm_head == 129_280 * 7168 * 2
    assert sizes.router == 58 * 256 * 7168 * 2
    expert = 3 * 7168 * 2048 + 3 * 56 * 16 * 4
    assert sizes.experts == 58 * 256 * expert
    dense = 3 * 7168 * 18_432 + 3 * 56 * 144 * 4
    assert sizes.dense_mlp == 3 * dense


@pytest.mark.parametrize(("name", "gib"), [("gpt-oss-20b", 12.8), ("gpt-oss-120b", 60.8)])
def test_gpt_oss_checkpoints_in_mxfp4(name, gib):
    """Sizes of table 1 of the gpt-oss model card."""
    assert weight_bytes(published(name), FORMATS["mxfp4"]).total / 2**30 == pytest.approx(gib, abs=0.05)
