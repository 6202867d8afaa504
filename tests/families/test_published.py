"""Presets against what their makers publish: parameters in all, and active per token."""

import pytest

from moeworks.config.count import count_cache_bytes, count_kv_bytes, count_parameters
from moeworks.errors import ConfigError
from moeworks.families import BY_PRESET, published

B = 1e9

# name: (total, one unit of its last printed digit), and the same for active, in billions.
# "all": every parameter of a token's path; "no input": without the input embedding table (gpt-oss model card,
# table 1); "no embeddings": without it and the output projection.
FIGURES = {
    "mixtral-8x7b": ((46.7, 0.1), (12.9, 0.1), "all"),
    "mixtral-8x22b": ((141, 1), (39, 1), "all"),
    "deepseek-moe-16b": ((16.4, 0.1), (2.8, 0.1), "all"),
    "deepseek-v2": ((236, 1), (21, 1), "all"),
    "deepseek-v2-lite": ((15.7, 0.1), (2.4, 0.1), "no input"),
    "deepseek-v3": ((671, 1), (36.7, 0.1), "no input"),  # README_WEIGHTS: "36.7B", one embedding of two
    "deepseek-r1": ((671, 1), (37, 1), "no input"),
    "deepseek-v3.2": ((671, 1), (37, 1), "no input"),
    "kimi-k2": ((1000, 100), (32, 1), "no input"),
    "moonlight-16b-a3b": ((16, 1), (3, 1), "all"),
    "qwen1.5-moe-a2.7b": ((14.3, 0.1), (2.7, 0.1), "all"),
    "qwen2-57b-a14b": ((57, 1), (14, 1), "all"),
    "qwen3-30b-a3b": ((30.5, 0.1), (3.3, 0.1), "all"),
    "qwen3-235b-a22b": ((235, 1), (22, 1), "all"),
    "qwen3-coder-480b-a35b": ((480, 1), (35, 1), "all"),
    "qwen3-next-80b-a3b": ((80, 1), (3, 1), "no embeddings"),
    # 109B with the vision tower and its projector, which the text model here lacks.
    "llama-4-scout": ((107.8, 0.1), (17, 1), "all"),
    "llama-4-maverick": ((400, 1), (17, 1), "all"),
    "gpt-oss-20b": ((20.91, 0.01), (3.61, 0.01), "no input"),
    "gpt-oss-120b": ((116.83, 0.01), (5.13, 0.01), "no input"),
    "glm-4.5": ((355, 1), (32, 1), "no embeddings"),
    "glm-4.5-air": ((106, 1), (12, 1), "no embeddings"),
    "olmoe-1b-7b": ((6.9, 0.1), (1.3, 0.1), "all"),
    "ernie-4.5-21b-a3b": ((21.8, 0.1), (3, 1), "all"),
    "ernie-4.5-300b-a47b": ((300, 1), (47, 1), "no input"),
    "dots.llm1": ((142, 1), (14, 1), "all"),
    "minimax-m2": ((230, 10), (10, 1), "no input"),
    "phi-3.5-moe": ((41.9, 0.1), (6.6, 0.1), "all"),
    "granite-3.0-3b-a800m": ((3.3, 0.1), (0.8, 0.1), "no embeddings"),
    "dbrx": ((132, 1), (36, 1), "all"),
    "minicpm-moe-8x2b": ((13.6, 0.1), (4, 1), "no embeddings"),  # its total leaves the embeddings out
    "qwen3.5-35b-a3b": ((35, 1), (3, 1), "all"),
    "glm-5": ((744, 1), (40, 1), "no input"),
    "flexolmo-7x7b": ((33, 1), (24, 1), "no input"),
    "solar-open-100b": ((102, 1), (12, 1), "all"),
    "glm-4.7-flash": ((30, 1), (3, 1), "no embeddings"),
    "hunyuan-a13b": ((80, 1), (13, 1), "all"),
    "trinity-mini": ((26, 1), (3, 1), "all"),
    "k-exaone-236b-a23b": ((236, 1), (23, 1), "all"),
    "hy3-preview": ((295, 1), (21, 1), "all"),
    "mimo-v2-flash": ((309, 1), (15, 1), "all"),
    # Its announcement has 6B without embeddings, its card 6.5B of unknown convention (all: 6.63).
    "mistral-small-4-119b": ((119, 1), (6, 1), "no embeddings"),
    "mellum2-12b-a2.5b": ((12, 1), (2.5, 0.5), "all"),  # 2.44, if its name rounds to halves
    "longcat-flash": ((560, 1), (31.3, 0.1), "no input"),  # the most: identity experts make it 27 on average
    "llama-2-7b": ((6.74, 0.01), (6.74, 0.01), "all"),
    "llama-3-8b": ((8.03, 0.01), (8.03, 0.01), "all"),
}


IDENTITY_EXPERTS = 28 * 256 * 2 * 2048 * 6144
"""What transformers allocates for LongCat-Flash's identity experts, which compute nothing."""


def within(value: float, figure: tuple[float, float]) -> bool:
    """Equal to the printed figure within 1 %, or as far as it was rounded or truncated to its digits."""
    want, unit = figure
    close = abs(value / B - want) <= 0.01 * want
    return close or want - unit / 2 <= value / B < want + unit


def test_there_are_figures_for_at_least_25_models():
    assert len(FIGURES) >= 25
    assert FIGURES.keys() <= BY_PRESET.keys()


@pytest.mark.parametrize("name", FIGURES)
def test_total_and_active_are_the_makers(name):
    total, active, convention = FIGURES[name]
    model = published(name)
    count = count_parameters(model)
    without_input = count.active - count.embedding * (not model.tie_embeddings)
    ours = {"all": count.active, "no input": without_input, "no embeddings": count.active_non_embedding}
    embeddings = count.embedding + count.lm_head
    assert within(count.total - embeddings * (name == "minicpm-moe-8x2b"), total)
    assert within(ours[convention], active)


def test_exact_totals():
    """Each also what transformers 5.23 builds on the meta device, or 5.24 the last eight.

    ERNIE: plus 27 * 64 selection biases. LongCat-Flash: plus projections of its identity experts.
    """
    exact = {
        "mixtral-8x7b": (46_702_792_704, 12_879_925_248),
        "deepseek-v2": (235_741_434_880, 21_375_800_320),
        "deepseek-v3": (671_026_404_352, 37_552_282_624),
        "deepseek-v3.2": (671_877_929_216, 38_403_807_488),
        "qwen3-next-80b-a3b": (79_674_391_296, 3_874_929_408),
        "llama-4-maverick": (400_711_848_960, 17_184_691_200),
        "gpt-oss-120b": (116_829_156_672, 5_711_982_912),
        "glm-4.5": (352_797_814_784, 33_632_251_904),
        "ernie-4.5-21b-a3b": (21_825_437_888 - 27 * 64, 3_352_150_208 - 27 * 64),
        "minimax-m2": (228_689_748_992, 11_030_537_216),
        "k-exaone-236b-a23b": (236_571_150_336, 23_668_279_296),
        "hy3-preview": (295_033_528_320, 20_675_715_072),
        "mimo-v2-flash": (308_778_768_832, 15_445_924_288),
        "mistral-small-4-119b": (118_972_826_624, 6_632_588_288),
        "mellum2-12b-a2.5b": (12_149_923_072, 2_439_060_736),
        "kimi-linear-48b-a3b": (49_122_675_072, 3_484_453_248),
        "glm-5.2": (743_377_000_704, 41_250_511_104),
        "longcat-flash": (741_053_585_408 - IDENTITY_EXPERTS, 32_182_654_976),
    }
    for name, (total, active) in exact.items():
        count = count_parameters(published(name))
        assert (count.total, count.active) == (total, active), name


def test_latent_cache_of_v3():
    v3 = published("deepseek-v3")
    assert count_kv_bytes(v3, 2) == 70_272
    assert count_kv_bytes(v3, 2, expanded=True) == 4_997_120


def test_windows_bound_the_cache():
    model, context = published("gpt-oss-20b"), 10_000
    per_layer = 2 * 8 * 64
    assert count_cache_bytes(model, context, 2) == 2 * per_layer * 12 * (128 + context)


def test_recurrent_layers_cache_no_tokens():
    model = published("qwen3-next-80b-a3b")
    assert count_kv_bytes(model, 2) == 2 * 12 * 2 * 2 * 256
    assert count_cache_bytes(model, 1, 2) > count_kv_bytes(model, 2)


def test_an_unknown_name_is_an_error_with_the_nearest_one():
    with pytest.raises(ConfigError, match="did you mean 'mixtral-8x7b'"):
        published("mixtral-8x7")
