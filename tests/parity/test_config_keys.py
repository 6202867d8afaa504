"""Every family and every key of its config.json, left out and null: transformers' own class is the oracle.

Its class completes a config.json; that whole is read here, and must be the model that the part is read as. A
config that its class refuses is refused here. Both spellings of rotations, every tiny configuration.
"""

import copy
import json
import logging
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import pytest
import transformers
from tiny_families import TINY
from transformers import CONFIG_MAPPING

from moeworks.config.codec import to_dict
from moeworks.config.model import ModelConfig
from moeworks.errors import ConfigError
from moeworks.families import FAMILIES, Family, family_of
from moeworks.families.base import HARMLESS, Json

NO_CLASS = {"deepseek", "kimi_k2", "grok-1", "minicpm"}
"""Published model types that transformers has no class for: their keys have no oracle."""
WRAPPERS = {"llama4", "qwen3_5_moe"}
"""Classes of a text model and a vision tower."""
IGNORED_THERE = {
    "glm4_moe_lite": {"first_k_dense_replace"},
    "hy_v3": {"first_k_dense_replace", "expert_hidden_dim"},
    "mimo_v2_flash": {
        "attention_chunk_size", "hybrid_layer_pattern", "layernorm_epsilon", "moe_layer_freq", "rope_theta",
        "swa_rope_theta", "partial_rotary_factor", "add_full_attention_sink_bias",
        "add_swa_attention_sink_bias", "swa_num_key_value_heads", "sliding_window_size",
    },
    "dbrx": {"attn_config.attn_pdrop", "ffn_config.moe_loss_weight", "ffn_config.hidden_size"},
}  # fmt: skip
"""Keys of published files that other readers follow, or that change nothing, and that transformers' class
ignores or checks without a use."""


@pytest.fixture(scope="module", autouse=True)
def silent():
    """Most configs here are half a config, of which transformers warns."""
    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity(logging.CRITICAL)
    yield
    transformers.logging.set_verbosity(level)


def test_the_families_without_a_class_are_known():
    kinds = {kind for family in FAMILIES for kind in family.model_types}
    assert {kind for kind in kinds if kind not in CONFIG_MAPPING} == NO_CLASS
    swept = {tiny.model_type for tiny in TINY.values()}
    assert kinds - NO_CLASS - WRAPPERS == swept


def completed(config: Json) -> Json:
    """The config.json as transformers' class completes it; raises what the class raises."""
    made = CONFIG_MAPPING[config["model_type"]].from_dict(copy.deepcopy(config))
    whole = json.loads(json.dumps(made.to_dict(), default=str))
    rope = whole.get("rope_parameters")
    if isinstance(rope, dict) and not any(isinstance(value, dict) for value in rope.values()):
        # The class gives a share where the family has one of its own: none means the whole head.
        rope.setdefault("partial_rotary_factor", 1.0)
    return whole


def read(config: Json) -> ModelConfig | None:
    """The model, with the widths of heads that are not said; None where it is refused."""
    try:
        model = family_of(config).from_hf(config)
    except ConfigError:
        return None
    draft = to_dict(model)
    for mixer in (draft["attention"], *draft["mixers"]):
        if mixer["kind"] == "gqa" and mixer["head_dim"] is None:
            mixer["head_dim"] = draft["d_model"] // mixer["num_heads"]
    return draft


def wanted(config: Json) -> ModelConfig | None:
    try:
        whole = completed(config)
    except Exception:
        return None
    return read(whole)


def spellings(name: str) -> Iterator[Json]:
    """The config of a tiny model as transformers writes it and as we do, without what is never read."""
    tiny = TINY[name]
    new = completed({"model_type": tiny.model_type, **tiny.options})
    family = family_of(new)
    for config in (new, family.to_hf(family.from_hf(new))):
        yield without(json.loads(json.dumps(config)), family)


def without(config: Json, family: Family, path: str = "") -> Json:
    """A config without the keys that are not read, or not by transformers."""
    unread = (HARMLESS - family.defaults.keys() - {"model_type"}) | family.harmless
    beyond = IGNORED_THERE.get(family.name, set())
    return {
        key: without(value, family, f"{key}.") if isinstance(value, dict) else value
        for key, value in config.items()
        if key not in unread and path + key not in beyond
    }


def changed(config: Json) -> Iterator[tuple[str, str, Json]]:
    """Each key's path, whether it is absent or null, and the config that is left."""
    for key, value in config.items():
        if key == "model_type":
            continue
        yield key, "absent", {other: config[other] for other in config if other != key}
        yield key, "null", {**config, key: None}
        if isinstance(value, dict):
            yield from ((f"{key}.{path}", how, {**config, key: rest}) for path, how, rest in changed(value))


@pytest.mark.parametrize("name", TINY)
def test_a_key_left_out_or_null_means_what_transformers_makes_of_it(name, record_property):
    wrong: list[str] = []
    swept = 0
    for spelling, config in zip(("new", "old"), spellings(name), strict=True):
        assert read(config) == wanted(config) is not None
        for path, how, part in changed(config):
            swept += 1
            if read(part) != wanted(part):
                wrong.append(f"{path} {how} ({spelling} spelling)")
    record_property("keys", swept)
    assert swept >= 60
    assert not wrong


def other_names(family: Family, kind: str) -> dict[str, str]:
    """transformers' other names of the keys that we read."""
    known = {entry.key for entry in family.fields} | set(family.defaults)
    pairs: dict[str, Any] = dict(CONFIG_MAPPING[kind].attribute_map)
    # Either side of a pair may be the one that files carry.
    either = pairs | {usual: other for other, usual in pairs.items()}
    return {other: usual for other, usual in either.items() if usual in known and other not in known}


@pytest.mark.parametrize("name", TINY)
def test_other_names_of_keys_are_read(name):
    config = next(spellings(name))
    family = family_of(config)
    for other, usual in other_names(family, config["model_type"]).items():
        if usual in config and other not in family.harmless:
            renamed = {other if key == usual else key: value for key, value in config.items()}
            assert read(renamed) == read(config) is not None, other


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_defaults_are_those_of_the_class(family):
    """Of every key that the class has; the families' own table is their only home."""
    kind = family.model_types[0]
    if kind in NO_CLASS:
        return
    theirs = {entry.name: entry.default for entry in fields(CONFIG_MAPPING[kind])}
    theirs["rope_theta"] = CONFIG_MAPPING[kind].default_theta
    theirs.pop("rope_parameters", None)
    shared = family.defaults.keys() & theirs.keys()
    assert {key: family.defaults[key] for key in shared} == {key: theirs[key] for key in shared}
