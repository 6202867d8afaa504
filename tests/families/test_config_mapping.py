"""The way from config.json to ModelConfig and back, for every preset and for the mistakes of files."""

import json
import subprocess
import sys

import pytest

from moeworks.config import GQAConfig, MLAConfig, RunConfig
from moeworks.config.codec import from_dict, to_dict
from moeworks.config.model import ModelConfig
from moeworks.errors import ConfigError
from moeworks.families import BY_MODEL_TYPE, BY_PRESET, FAMILIES, family_named, family_of, from_hf, published
from moeworks.families.base import HARMLESS


def config_of(name: str) -> dict:
    """A preset's config.json."""
    return {
        "model_type": BY_PRESET[name].model_types[0],
        **json.loads(json.dumps(BY_PRESET[name].presets[name])),
    }


@pytest.mark.parametrize("name", BY_PRESET)
def test_there_and_back(name):
    family, model = BY_PRESET[name], published(name)
    written = json.loads(json.dumps(family.to_hf(model)))
    assert family_of(written) is family
    assert from_hf(written) == model
    assert from_dict(ModelConfig, json.loads(json.dumps(to_dict(model)))) == model


def in_the_new_spelling(config: dict) -> dict:
    """As transformers 5 writes it: rope_parameters and dtype."""
    new = dict(config)
    rope = dict(new.pop("rope_scaling", None) or {"rope_type": "default"})
    rope["rope_type"] = rope.pop("type", None) or rope["rope_type"]
    for key in ("rope_theta", "partial_rotary_factor"):
        if key in new:
            rope[key] = new.pop(key)
    return {**new, "rope_parameters": rope, "dtype": "bfloat16"}


OTHER_SPELLINGS = ("dbrx", "minimax-m2", "mellum2-12b-a2.5b", "mimo-v2-flash", "kimi-linear-48b-a3b")
"""Those whose rotation stands elsewhere in either spelling, differs between layers, or is none."""


@pytest.mark.parametrize("name", [n for n in BY_PRESET if n not in OTHER_SPELLINGS])
def test_both_spellings_are_one_model(name):
    old = {**BY_PRESET[name].to_hf(published(name)), "torch_dtype": "bfloat16"}
    new = in_the_new_spelling(old)
    assert new != old
    assert from_hf(new) == from_hf(old) == published(name)


def test_what_was_read_is_written_back_as_it_was():
    family = family_named("mixtral")
    origin = in_the_new_spelling(config_of("mixtral-8x7b")) | {"bos_token_id": 1, "use_cache": True}
    assert family.to_hf(family.from_hf(origin), origin) == origin


def test_harmless_fields_survive_a_change_of_the_model():
    family = family_named("mixtral")
    origin = config_of("mixtral-8x7b") | {"bos_token_id": 7, "torch_dtype": "float16"}
    model = from_dict(ModelConfig, to_dict(family.from_hf(origin)) | {"num_layers": 3})
    written = family.to_hf(model, origin)
    assert (written["bos_token_id"], written["torch_dtype"], written["num_hidden_layers"]) == (
        7,
        "float16",
        3,
    )


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_an_unknown_field_is_an_error_that_names_it(family):
    name = next(iter(family.presets))
    with pytest.raises(ConfigError, match=r"attention_sparsity = 0.5: not a field of the family"):
        from_hf(config_of(name) | {"attention_sparsity": 0.5})
    assert from_hf(config_of(name) | {"attention_sparsity": None}) == published(name)
    harmless = HARMLESS - {"model_type"} - family.defaults.keys()
    assert from_hf(config_of(name) | dict.fromkeys(harmless)) == published(name)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_a_field_that_is_left_out_takes_the_familys_default_or_is_an_error_that_names_it(family):
    name = next(iter(family.presets))
    for entry in family.fields:
        config = {key: value for key, value in config_of(name).items() if key not in (entry.key, *entry.also)}
        if entry.key in family.defaults:
            assert outcome(config) == outcome(config | {entry.key: family.defaults[entry.key]})
        else:
            assert outcome(config).startswith(f"{entry.key}: missing")


def outcome(config: dict) -> ModelConfig | str:
    """The model, or the error's message."""
    try:
        return from_hf(config)
    except ConfigError as error:
        return str(error)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("mixtral-8x7b", {"hidden_act": "gelu"}, "hidden_act = 'gelu': the family mixtral has only 'silu'"),
        ("mixtral-8x7b", {"hidden_size": -1}, "d_model"),
        ("mixtral-8x7b", {"hidden_size": 10**30}, "hidden_size = .*: exceeds"),
        ("gpt-oss-20b", {"num_hidden_layers": 10**9}, "num_layers = 1000000000: exceeds"),
        ("ernie-4.5-21b-a3b", {"moe_layer_interval": 0}, "cannot read"),
        ("mixtral-8x7b", {"num_attention_heads": 0}, "cannot read"),
        ("mixtral-8x7b", {"rope_theta": "big"}, "cannot read"),
        ("mixtral-8x7b", {"rope_scaling": [1]}, "cannot read"),
        ("mixtral-8x7b", {"hidden_size": "4096"}, "hidden_size = '4096': must be int"),
        ("mixtral-8x7b", {"num_key_value_heads": 5}, "num_kv_heads = 5: must divide"),
        ("mixtral-8x7b", {"num_experts_per_tok": 9}, "top_k = 9: must lie between"),
        ("mixtral-8x7b", {"rope_scaling": {"rope_type": "ntk", "factor": 2}}, "rope_type = 'ntk': unknown"),
        ("mixtral-8x7b", {"rope_scaling": {"type": "dynamic"}}, "rope_scaling.factor: missing; .*'dynamic'"),
        ("mixtral-8x7b", {"rope_scaling": {"type": "yarn"}}, "rope_scaling.factor: missing; .*'yarn'"),
        ("mixtral-8x7b", {"rope_scaling": {"type": "linear", "factor": None}}, "factor: missing"),
        ("mixtral-8x7b", {"rms_norm_eps": None}, "rms_norm_eps = None: must not be null; leave the key out"),
        ("mixtral-8x7b", {"num_experts": 4, "num_local_experts": 8}, "num_experts = 4: is another name of"),
        ("llama-3.1-8b", {"rope_scaling": {"rope_type": "llama3", "factor": 8}}, "low_freq_factor: missing"),
        ("llama-3-8b", {"rope_scaling": {"rope_type": "linear", "factor": 2, "x": 3}}, "not parameters"),
        ("deepseek-v2", {"norm_topk_prob": True}, "norm_topk_prob = True: cannot be combined with .* = 16.0"),
        ("glm-5", {"indexer_types": ["shared"] * 78}, "layer 0 needs an earlier layer with an indexer"),
        ("glm-5", {"indexer_types": ["full"]}, "must name each of the 78 layers"),
        ("glm-5", {"index_topk_pattern": "FX" * 39}, "must be 'full' or 'shared'"),
        ("deepseek-v3", {"scoring_func": "softmax"}, "scoring_func"),
        ("deepseek-v3", {"n_group": 7}, "num_groups = 7: must divide"),
        ("gpt-oss-20b", {"swiglu_limit": 5.0}, "swiglu_limit = 5.0"),
        ("gpt-oss-20b", {"layer_types": ["full_attention"] * 3}, "must name each of the 24 layers"),
        ("gpt-oss-20b", {"layer_types": ["linear"] * 24}, "layer_types = 'linear'"),
        ("llama-4-scout", {"layer_types": ["full_attention"] * 48}, "must be chunked"),
        ("dbrx", {"ffn_config": {"ffn_hidden_size": 8, "moe_num_experts": 4, "moe_top_k": 2, "x": 1}}, "x"),
        ("ernie-4.5-21b-a3b", {"use_bias": True}, "use_bias = True"),
        ("minimax-m2", {"attn_type_list": [0, 1]}, "attn_type_list"),
        ("phi-3.5-moe", {"num_experts_per_tok": 4}, "sparsemixer"),
        ("k-exaone-236b-a23b", {"sliding_window_pattern": "LLX"}, "letters L and G"),
        ("k-exaone-236b-a23b", {"sliding_window_pattern": "GL"}, "leaves the last layer open"),
        ("k-exaone-236b-a23b", {"mlp_layer_types": ["sparse"]}, "must name each of the 48 layers"),
        ("k-exaone-236b-a23b", {"first_last_k_dense_replace": 2}, "first_last_k_dense_replace"),
        ("hy3-preview", {"qk_norm": False}, "qk_norm = False"),
        ("mimo-v2-flash", {"swa_head_dim": 128}, "swa_head_dim = 128: must be head_dim = 192"),
        ("mimo-v2-flash", {"rope_parameters": {"other": {"rope_theta": 3.0}}}, "rope_parameters"),
        ("mellum2-12b-a2.5b", {"rope_parameters": {"rope_theta": 5.0}}, "rope_parameters"),
        ("mistral-small-4-119b", {"rope_parameters": {"llama_4_scaling_beta": 0.1}}, "original: missing"),
        ("longcat-flash", {"zero_expert_type": "drop"}, "zero_expert_type"),
        ("longcat-flash", {"router_bias": True}, "router_bias = True"),
        (
            "kimi-linear-48b-a3b",
            {"linear_attn_config": {"kda_layers": [1], "full_attn_layers": [2]}},
            "must name each of the 27 layers once",
        ),
        ("kimi-linear-48b-a3b", {"linear_attn_config": {"gate": 1}}, "linear_attn_config = {'gate': 1}"),
        ("kimi-linear-48b-a3b", {"mla_use_nope": False}, "mla_use_nope = False"),
        ("longcat-flash", {"q_lora_rank": None}, "q_lora_rank = None: must not be null"),
    ],
)  # fmt: skip
def test_what_the_family_does_not_have_is_refused(name, change, message):
    with pytest.raises(ConfigError, match=message):
        from_hf(config_of(name) | change)


def test_an_unknown_family_is_refused_with_the_nearest_name():
    with pytest.raises(ConfigError, match="did you mean 'mixtral'"):
        from_hf({"model_type": "mixtrall"})
    with pytest.raises(ConfigError, match="unknown"):
        from_hf({})


def test_a_family_refuses_a_model_that_its_config_cannot_say():
    model = published("mixtral-8x7b")
    odd = from_dict(ModelConfig, {**to_dict(model), "residual_scale": 0.5})
    with pytest.raises(ConfigError, match=r"residual_scale = 0.5: the family mixtral cannot express it"):
        family_named("mixtral").to_hf(odd)


def test_the_text_part_of_a_multimodal_config_is_read():
    config = {
        "model_type": "llama4",
        "text_config": config_of("llama-4-scout"),
        "vision_config": {"depth": 3},
    }
    assert from_hf(config) == published("llama-4-scout")


def test_layers_differ_where_the_families_do():
    oss = published("gpt-oss-20b")
    assert [mixer.window for mixer in oss.mixer_of_layers[:4]] == [128, None, 128, None]
    scout = published("llama-4-scout").mixer_of_layers
    assert [m.rope.enabled for m in scout[:4]] == [True, True, True, False]
    assert [m.chunk for m in scout[:4]] == [8192, 8192, 8192, None]
    assert scout[3].temperature_floor == 8192
    assert [m.kind for m in published("qwen3-next-80b-a3b").mixer_of_layers[:4]] == ["gated_delta"] * 3 + [
        "gqa"
    ]
    assert isinstance(published("kimi-k2").attention, MLAConfig)
    assert published("glm-4.5").attention.rope.dim == 64
    assert published("minimax-m2").attention.rope.dim == 64


def test_every_model_type_and_preset_has_one_home():
    assert len(BY_MODEL_TYPE) == sum(len(family.model_types) for family in FAMILIES)
    assert len(BY_PRESET) == sum(len(family.presets) for family in FAMILIES)


def test_families_need_no_torch():
    code = "import sys; from moeworks.families import *; published('grok-1'); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_a_mixer_of_an_unknown_kind_is_an_error():
    assert from_dict(ModelConfig, {"attention": {"num_heads": 2, "num_kv_heads": 1}}).attention == GQAConfig(
        num_heads=2, num_kv_heads=1
    )
    with pytest.raises(ConfigError, match="kind = 'mlaa': unknown; did you mean 'mla'"):
        from_dict(ModelConfig, {"attention": {"kind": "mlaa"}})
    with pytest.raises(ConfigError, match=r"model.attention.q_rank: unknown field"):
        from_dict(ModelConfig, {"attention": {"kind": "mla", "q_rank": 3}}, "model")


def test_published_lists_of_equal_numbers_are_one_number():
    """Hunyuan gives its experts layer by layer."""
    config = config_of("hunyuan-a13b")
    lists = dict(num_experts=[64] * 32, moe_topk=[8] * 32, num_shared_expert=[1] * 32)
    assert from_hf(config | lists | {"moe_intermediate_size": [3072] * 32}) == published("hunyuan-a13b")
    with pytest.raises(ConfigError, match="must be the same in every layer"):
        from_hf(config | {"moe_topk": [8] * 31 + [4]})


def test_mimo_in_the_spelling_of_transformers():
    """Its window counts the query's own position, its rotations stand by kind of layer."""
    kinds = ["sliding_attention" if i and (i + 1) % 6 else "full_attention" for i in range(48)]
    turned = {"rope_type": "default", "partial_rotary_factor": 0.334}
    hub = config_of("mimo-v2-flash")
    hubs = (
        "hybrid_", "moe_layer_freq", "rope_", "partial_rotary", "layernorm_", "add_swa", "swa_", "sliding_"
    )  # fmt: skip
    same = {key: value for key, value in hub.items() if not key.startswith(hubs)}
    theirs = same | dict(
        layer_types=kinds, mlp_layer_types=["dense"] + ["sparse"] * 47, sliding_window=129, rms_norm_eps=1e-5,
        rope_parameters=dict(
            full_attention={**turned, "rope_theta": 5e6}, sliding_attention={**turned, "rope_theta": 10_000.0}
        ),
    )  # fmt: skip
    assert from_hf(theirs) == published("mimo-v2-flash")
    # What neither spells out is what the published reader takes.
    for key in ("layer_types", "mlp_layer_types", "rope_parameters"):
        del theirs[key]
    assert from_hf(theirs) == published("mimo-v2-flash")


@pytest.mark.parametrize(
    ("name", "more"),
    [
        (
            "kimi-linear-48b-a3b",
            dict(
                head_dim=72, mla_use_nope=True, moe_router_activation_func="sigmoid",
                num_nextn_predict_layers=0,
                num_key_value_heads=32, rope_scaling=None, rope_theta=10_000.0, use_grouped_topk=True,
                moe_layer_freq=1,
            ),
        ),
        (
            "mimo-v2-flash",
            dict(
                attention_bias=False, attention_chunk_size=128, mlp_bias=False, n_shared_experts=None,
                rms_norm_eps=1e-5, rope_scaling=None, scoring_func="sigmoid", topk_method="noaux_tc",
                use_qk_norm=False,
            ),
        ),
        (
            "mellum2-12b-a2.5b",
            dict(max_window_layers=0, mlp_layer_types=["sparse"] * 28, use_sliding_window=True),
        ),
        (
            "hy3-preview",
            dict(
                enable_attention_fp32_softmax=False, enable_lm_head_fp32=True, enable_moe_fp32_combine=False,
                expert_hidden_dim=1536, moe_router_enable_expert_bias=True, moe_router_use_sigmoid=True,
                num_nextn_predict_layers=1, qk_norm=True, route_norm=True,
            ),
        ),
        (
            "glm-5.2",
            dict(
                index_share_for_mtp_iteration=True, index_topk_pattern=None, indexer_rope_interleave=True,
                moe_layer_freq=1, moe_router_dtype="float32", rope_interleave=True, scoring_func="sigmoid",
            ),
        ),
    ],
)  # fmt: skip
def test_what_published_files_hold_beside_the_preset_changes_nothing(name, more):
    assert from_hf(config_of(name) | more) == published(name)


def test_exaones_older_spelling_of_its_layers():
    hub = config_of("k-exaone-236b-a23b")
    del hub["first_k_dense_replace"], hub["sliding_window_pattern"]
    older = hub | dict(
        is_moe_layer=[False] + [True] * 47, first_last_k_dense_replace=1,
        layer_types=(["sliding_attention"] * 3 + ["full_attention"]) * 12, scoring_func="sigmoid",
    )  # fmt: skip
    assert from_hf(older) == published("k-exaone-236b-a23b")
    full = published("k-exaone-236b-a23b").mixer_of_layers[3]
    assert not full.rope.enabled and full.window is None


def test_exaone_without_windows_has_positions_everywhere():
    config = config_of("k-exaone-236b-a23b") | dict(sliding_window=None)
    assert from_hf(config).attention.rope.enabled and not from_hf(config).mixers


def test_glms_shared_indexers_in_three_spellings():
    named = ["full"] * 3 + (["shared"] * 3 + ["full"]) * 18 + ["shared"] * 3
    letters = "".join(name[0].upper() for name in named)
    config = config_of("glm-5.2")
    model = from_hf(config)
    assert model.mtp_like == 74
    for key in ("index_topk_freq", "index_skip_topk_offset"):
        del config[key]
    assert (
        from_hf(config | {"indexer_types": named})
        == from_hf(config | {"index_topk_pattern": letters})
        == model
    )


def test_deepseek_v2_may_renormalise_where_readers_agree():
    config = config_of("deepseek-v2-lite") | {"norm_topk_prob": True}
    model = from_hf(config)
    assert model.router.renormalize
    assert family_named("deepseek_v2").to_hf(model)["norm_topk_prob"] is True


def test_longcats_layers_are_two_of_ours():
    model = published("longcat-flash")
    assert (model.num_layers, len(model.moe_layers), model.dense_blocks) == (56, 28, 56)
    config = config_of("longcat-flash")
    del config["num_layers"]
    assert from_hf(config | {"num_hidden_layers": 56}) == model
    assert from_hf(config) == model


def test_what_old_versions_of_transformers_wrote_is_harmless():
    old = dict(max_length=20, temperature=1.0, top_k=50, num_beams=1, is_llama_config=True)
    assert from_hf(config_of("llama-3-8b") | old) == published("llama-3-8b")


def test_keys_of_other_families_that_switch_nothing_on_are_harmless():
    """Qwen3-Coder's release says that it has no shared expert, and that it has the norms it has."""
    coder = dict(
        qkv_bias=False, shared_expert_intermediate_size=0, use_qk_norm=True, sliding_window=None,
        use_sliding_window=False, max_window_layers=62, n_group=1, topk_group=1, routed_scaling_factor=1.0,
        scoring_func="softmax", moe_layer_freq=1, embedding_multiplier=1.0, router_aux_loss_coef=0.0,
    )  # fmt: skip
    assert from_hf(config_of("qwen3-coder-480b-a35b") | coder) == published("qwen3-coder-480b-a35b")
    for key, value in dict(shared_expert_intermediate_size=8, scoring_func="sigmoid", n_group=2).items():
        with pytest.raises(ConfigError, match=f"{key} = {value!r}: not a field of the family"):
            from_hf(config_of("qwen3-coder-480b-a35b") | {key: value})


def test_dynamic_scaling_is_none_within_the_context():
    """Its base grows beyond max_position_embeddings, which is the longest text that a model here accepts."""
    scaling = {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}
    assert from_hf(config_of("mixtral-8x7b") | scaling) == published("mixtral-8x7b")


@pytest.mark.parametrize("name", ["afmoe", "minimax_m2", "solar_open", "hy_v3"])
def test_a_width_of_heads_that_a_model_leaves_out_is_refused_where_a_family_has_its_own(name):
    """Left out of the file, it would be read as the family's 128."""
    family = family_named(name)
    config = config_of(next(iter(family.presets))) | dict(hidden_size=512, num_attention_heads=8, head_dim=64)
    draft = to_dict(from_hf(config))
    for mixer in (draft["attention"], *draft["mixers"]):
        mixer["head_dim"] = None
    with pytest.raises(ConfigError, match=r"cannot express it, its config\.json would read as"):
        family.to_hf(from_dict(ModelConfig, draft))


def test_one_expert_a_token_is_read_and_not_trained():
    model = from_hf(config_of("mixtral-8x7b") | {"num_experts_per_tok": 1})
    assert model.router.top_k == 1
    with pytest.raises(ConfigError, match=r"router\.top_k = 1: .*gets no gradient"):
        RunConfig(model=model)
