"""A model's figures against what transformers builds and makers publish."""

import pytest

from moeworks.config.count import count_cache_bytes
from moeworks.config.presets import preset
from moeworks.errors import ConfigError
from moeworks.families import BY_PRESET, published
from moeworks.plan.figures import MAX_CONTEXT, model_figures

# Built by transformers 5.23 on the meta device: total; active; active without the input embedding.
BUILT = {
    "mixtral-8x7b": (46_702_792_704, 12_879_925_248, 12_748_853_248),
    "mixtral-8x22b": (140_620_634_112, 39_152_031_744, 38_955_423_744),
    "deepseek-v2": (235_741_434_880, 21_375_800_320, 20_851_512_320),
    "deepseek-v2-lite": (15_706_484_224, 2_661_150_208, 2_451_435_008),
    "deepseek-v3": (671_026_404_352, 37_552_282_624, 36_625_603_584),
    "deepseek-v3.2": (671_877_929_216, 38_403_807_488, 37_477_128_448),
    "kimi-k2": (1_026_408_209_408, 32_861_477_888, 31_687_072_768),
    "qwen3-30b-a3b": (30_532_122_624, 3_353_032_704, 3_041_867_776),
    "qwen3-235b-a22b": (235_093_634_560, 22_190_763_520, 21_568_433_664),
    "qwen3-next-80b-a3b": (79_674_391_296, 3_874_929_408, 3_563_764_480),
    "qwen1.5-moe-a2.7b": (14_315_784_192, 2_689_173_504, 2_378_008_576),
    "llama-4-scout": (107_769_861_120, 17_172_894_720, 16_138_408_960),
    "llama-4-maverick": (400_711_848_960, 17_184_691_200, 16_150_205_440),
    "gpt-oss-20b": (20_914_757_184, 4_187_440_704, 3_608_307_264),
    "gpt-oss-120b": (116_829_156_672, 5_711_982_912, 5_132_849_472),
    "glm-4.5": (352_797_814_784, 33_632_251_904, 32_856_305_664),
    "glm-4.5-air": (106_852_245_504, 13_424_123_904, 12_803_366_912),
    "olmoe-1b-7b": (6_919_161_856, 1_282_017_280, 1_178_994_688),
    "minimax-m2": (228_689_748_992, 11_030_537_216, 10_415_940_608),
}


@pytest.mark.parametrize("name", BUILT)
def test_parameters_are_those_of_the_built_model(name):
    counts = model_figures(published(name), 1).parameters
    assert (counts.total, counts.active, counts.active_without_embedding) == BUILT[name]


@pytest.mark.parametrize("name", BY_PRESET)
def test_components_sum_to_the_total(name):
    counts = model_figures(published(name), 1).parameters
    assert sum(counts.components.values()) == counts.total
    assert counts.active_without_embedding_and_lm_head <= counts.active_without_embedding <= counts.active
    assert counts.active_experts <= counts.components["experts"]


def test_a_tied_table_is_the_output_projection_and_stays():
    counts = model_figures(published("ernie-4.5-21b-a3b"), 1).parameters
    assert counts.active_without_embedding == counts.active
    assert counts.active_without_embedding_and_lm_head == counts.active - 264_765_440


def test_cache_of_deepseek_v3():
    figures = model_figures(published("deepseek-v3"), 1000)
    assert figures.kv_bytes_per_token == 70_272
    assert figures.kv_bytes_per_token_expanded == 4_997_120
    assert figures.cache_bytes_per_sequence == 1000 * 70_272
    assert model_figures(published("deepseek-v3"), 1000, "fp8").kv_bytes_per_token == 70_272 // 2


def test_a_run_of_ones_own_and_a_dense_model():
    model = preset("laptop").model
    assert model_figures(model, 256).cache_bytes_per_sequence == count_cache_bytes(model, 256, 2)
    dense = model_figures(published("llama-3-8b"), 8192).parameters
    assert dense.active == dense.total


@pytest.mark.parametrize("context", [0, -1, MAX_CONTEXT + 1])
def test_absurd_contexts(context):
    with pytest.raises(ConfigError, match=f"context = {context}: must lie between 1 and 100,000,000 tokens"):
        model_figures(published("mixtral-8x7b"), context)
