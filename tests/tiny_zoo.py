"""Tiny random models of the MoE families of transformers that moeworks itself does not know."""

from importlib import import_module
from typing import Any

import torch
from parity_models import randomise_
from tiny_families import MLA, PLAIN, SIZES
from torch import nn

_MOE = dict(
    intermediate_size=48, moe_intermediate_size=20, shared_expert_intermediate_size=20,
    shared_intermediate_size=20, num_experts=6, n_routed_experts=6, num_local_experts=6, moe_num_experts=6,
    num_experts_per_tok=3, moe_k=3, moe_topk=3, top_k_experts=3, n_shared_experts=1, num_shared_experts=1,
    n_group=1, topk_group=1, head_dim=8, linear_num_key_heads=2, linear_num_value_heads=4,
    linear_key_head_dim=8, linear_value_head_dim=8, index_n_heads=24, index_head_dim=8, index_topk=8,
)  # fmt: skip
_LATENT = MLA | dict(qk_rope_head_dim=8, v_head_dim=8)
_MIXED = ["linear_attention", "full_attention"] * 2
_MAMBA = dict(layer_types=["mamba", "attention"] * 2, mamba_n_heads=8, mamba_d_head=8, mamba_d_state=4)

ZOO: dict[str, tuple[str, str]] = {
    "aria": ("AriaTextForCausalLM", "AriaTextConfig"),
    "axk1": ("AXK1ForCausalLM", "AXK1Config"),
    "axk2": ("AXK2ForCausalLM", "AXK2Config"),
    "bailing_hybrid": ("BailingHybridForCausalLM", "BailingHybridConfig"),
    "beam": ("BeamForCausalLM", "BeamConfig"),
    "cohere2_moe": ("Cohere2MoeForCausalLM", "Cohere2MoeConfig"),
    "deepseek_ocr2": ("DeepseekOcr2TextModel", "DeepseekOcr2TextConfig"),
    "deepseek_v4": ("DeepseekV4ForCausalLM", "DeepseekV4Config"),
    "diffusion_gemma": ("DiffusionGemmaEncoderTextModel", "DiffusionGemmaTextConfig"),
    "doge": ("DogeForCausalLM", "DogeConfig"),
    "dots3_note": ("Dots3NoteTextModel", "Dots3NoteTextConfig"),
    "ernie4_5_vl_moe": ("Ernie4_5_VLMoeTextModel", "Ernie4_5_VLMoeTextConfig"),
    "exaone_moe": ("ExaoneMoeForCausalLM", "ExaoneMoeConfig"),
    "flint": ("FlintForCausalLM", "FlintConfig"),
    "gemma4": ("Gemma4ForCausalLM", "Gemma4TextConfig"),
    "glm4v_moe": ("Glm4vMoeTextModel", "Glm4vMoeTextConfig"),
    "glm5_next": ("Glm5NextTextModel", "Glm5NextTextConfig"),
    "granitemoe_swa": ("GraniteMoeSWAForCausalLM", "GraniteMoeSWAConfig"),
    "granitemoehybrid": ("GraniteMoeHybridForCausalLM", "GraniteMoeHybridConfig"),
    "hy_v3": ("HYV3ForCausalLM", "HYV3Config"),
    "hy_v4": ("HYV4ForCausalLM", "HYV4Config"),
    "hy_v4_vl": ("HYV4VLTextModel", "HYV4VLTextConfig"),
    "inkling": ("InklingForCausalLM", "InklingTextConfig"),
    "inkling2": ("Inkling2TextModel", "Inkling2TextConfig"),
    "inkling2_loop": ("Inkling2LoopTextModel", "Inkling2LoopTextConfig"),
    "jamba": ("JambaForCausalLM", "JambaConfig"),
    "kimi_linear": ("KimiLinearForCausalLM", "KimiLinearConfig"),
    "kolibri1": ("Kolibri1ForCausalLM", "Kolibri1Config"),
    "laguna": ("LagunaForCausalLM", "LagunaConfig"),
    "lara_mini": ("LaraMiniForCausalLM", "LaraMiniConfig"),
    "lfm2_moe": ("Lfm2MoeForCausalLM", "Lfm2MoeConfig"),
    "longcat_flash": ("LongcatFlashForCausalLM", "LongcatFlashConfig"),
    "mellum": ("MellumForCausalLM", "MellumConfig"),
    "mimo_v2_flash": ("MiMoV2FlashForCausalLM", "MiMoV2FlashConfig"),
    "minimax": ("MiniMaxForCausalLM", "MiniMaxConfig"),
    "minimax_m3_vl": ("MiniMaxM3VLForCausalLM", "MiniMaxM3VLTextConfig"),
    "mistral4": ("Mistral4ForCausalLM", "Mistral4Config"),
    "mistral_large4": ("MistralLarge4TextModel", "MistralLarge4TextConfig"),
    "muse_spark": ("MuseSparkTextModel", "MuseSparkTextConfig"),
    "nemotron_h": ("NemotronHForCausalLM", "NemotronHConfig"),
    "openai_privacy_filter": ("OpenAIPrivacyFilterModel", "OpenAIPrivacyFilterConfig"),
    "qwen3_omni_moe": ("Qwen3OmniMoeThinkerTextModel", "Qwen3OmniMoeTextConfig"),
    "qwen3_vl_moe": ("Qwen3VLMoeTextModel", "Qwen3VLMoeTextConfig"),
    "qwen4_exp": ("Qwen4ExpTextModel", "Qwen4ExpTextConfig"),
    "step3p7": ("Step3p7TextModel", "Step3p7TextConfig"),
    "switch_transformers": ("SwitchTransformersForConditionalGeneration", "SwitchTransformersConfig"),
    "unlimited_ocr": ("UnlimitedOcrTextModel", "UnlimitedOcrTextConfig"),
    "zaya": ("ZayaForCausalLM", "ZayaConfig"),
}
"""By the folder of transformers' models: class and config class."""

_OPTIONS: dict[str, dict[str, Any]] = {
    "aria": dict(moe_num_shared_experts=1),
    "axk1": _LATENT,
    "axk2": _LATENT,
    "bailing_hybrid": dict(_LATENT, layer_types=_MIXED),
    "beam": dict(mlp_layer_types=["dense", "sparse"] * 2),
    "deepseek_ocr2": dict(mlp_layer_types=["dense", "sparse", "sparse", "sparse"]),
    "doge": dict(is_moe=True, num_experts=16),
    "dots3_note": dict(_LATENT, layer_types=["full_attention"] * 4, num_key_value_heads=4),
    "ernie4_5_vl_moe": dict(
        moe_intermediate_size=[20, 12], rope_parameters=dict(PLAIN, mrope_section=[1, 1, 2])
    ),
    "gemma4": dict(enable_moe_block=True, vocab_size_per_layer_input=97),
    "glm4v_moe": dict(rope_parameters=dict(PLAIN, partial_rotary_factor=0.5, mrope_section=[1, 1, 0])),
    "glm5_next": dict(
        _LATENT,
        num_key_value_heads=4,
        qk_rope_head_dim=0,
        head_dim=0,
        index_kpool=4,
        linear_head_dim=8,
        linear_num_heads=4,
    ),
    "granitemoehybrid": _MAMBA,
    "hy_v4": _LATENT,
    "hy_v4_vl": dict(_LATENT, rope_parameters=dict(PLAIN, mrope_section=[2, 1, 1])),
    "inkling2_loop": dict(
        n_layers_per_attn_res_block=1, loop_layer_index_start=1, loop_layer_index_end=3, loop_num_passes=2
    ),
    "jamba": dict(attn_layer_period=2, attn_layer_offset=1),
    "kimi_linear": dict(_LATENT, layer_types=_MIXED, linear_head_dim=8, linear_num_heads=4),
    "laguna": dict(moe_routed_scaling_factor=1.7),
    "lfm2_moe": dict(layer_types=["full_attention"] * 4, num_dense_layers=1),
    "longcat_flash": dict(
        _LATENT, num_layers=3, zero_expert_num=2, ffn_hidden_size=48, expert_ffn_hidden_size=20
    ),
    "mistral4": _LATENT,
    "mistral_large4": _LATENT,
    "muse_spark": dict(moe_hidden_size=16),
    "qwen4_exp": dict(
        indexer_n_heads=4,
        indexer_kv_heads=1,
        indexer_head_dim=8,
        indexer_budget=8,
        indexer_compress_ratio=2,
        hc_lowrank=8,
        ngram_vocab_size_base=100,
    ),
    "step3p7": dict(pad_token_id=1, sliding_window=7, moe_router_scaling_factor=1.7),
    "switch_transformers": dict(
        d_model=32,
        d_ff=48,
        d_kv=8,
        num_heads=4,
        num_layers=4,
        num_decoder_layers=4,
        num_sparse_encoder_layers=2,
        num_sparse_decoder_layers=2,
        pad_token_id=0,
        decoder_start_token_id=0,
    ),
    "unlimited_ocr": dict(num_key_value_heads=4),
    "zaya": dict(num_experts_per_tok=1),
}


def zoo_config(name: str) -> Any:
    """Its config; options that the class does not have are left out."""
    _, config = ZOO[name]
    module = import_module(f"transformers.models.{name}.configuration_{name}")
    kind = getattr(module, config)
    known = {field: value for field, value in (SIZES | _MOE).items() if field in kind.__dataclass_fields__}
    return kind(**{**known, **_OPTIONS.get(name, {})})


def zoo_model(name: str) -> nn.Module:
    """The model in float32 and evaluation mode."""
    torch.manual_seed(0)
    module = import_module(f"transformers.models.{name}.modeling_{name}")
    config = zoo_config(name)
    config._attn_implementation = "eager"
    model = getattr(module, ZOO[name][0])(config).float().eval()
    randomise_(model)
    return model
