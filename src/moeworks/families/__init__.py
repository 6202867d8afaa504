"""Published model families, one file each: presets and the way between their config.json and ModelConfig.

    base.py     what a family is
    parts.py    what many of them share
    NAME.py     one family, called FAMILY

Nothing here imports torch.
"""

from collections.abc import Mapping
from typing import Any

from moeworks.config.model import ModelConfig
from moeworks.errors import ConfigError, nearest
from moeworks.families import (
    afmoe,
    dbrx,
    deepseek_v1,
    deepseek_v2,
    deepseek_v3,
    deepseek_v32,
    dots1,
    ernie4_5_moe,
    exaone_moe,
    flex_olmo,
    glm4_moe,
    glm4_moe_lite,
    glm_moe_dsa,
    gpt_oss,
    granitemoe,
    grok1,
    hunyuan_v1_moe,
    hy_v3,
    jetmoe,
    kimi_linear,
    llama,
    llama4,
    longcat_flash,
    mellum,
    mimo_v2_flash,
    minicpm_moe,
    minimax_m2,
    mistral4,
    mixtral,
    olmoe,
    phimoe,
    qwen2_moe,
    qwen3_5_moe,
    qwen3_moe,
    qwen3_next,
    solar_open,
)
from moeworks.families.base import Family

FAMILIES: tuple[Family, ...] = tuple(
    module.FAMILY
    for module in (
        afmoe, dbrx, deepseek_v1, deepseek_v2, deepseek_v3, deepseek_v32, dots1, ernie4_5_moe, exaone_moe,
        flex_olmo, glm4_moe, glm4_moe_lite, glm_moe_dsa, gpt_oss, granitemoe, grok1, hunyuan_v1_moe, hy_v3,
        jetmoe, kimi_linear, llama, llama4, longcat_flash, mellum, mimo_v2_flash, minicpm_moe,
        minimax_m2, mistral4, mixtral, olmoe, phimoe, qwen2_moe, qwen3_5_moe, qwen3_moe, qwen3_next,
        solar_open,
    )
)  # fmt: skip
"""Every family that is read and written."""

BY_MODEL_TYPE: Mapping[str, Family] = {kind: family for family in FAMILIES for kind in family.model_types}
BY_PRESET: Mapping[str, Family] = {name: family for family in FAMILIES for name in family.presets}


def family_of(config: Mapping[str, Any]) -> Family:
    """The family of a config.json; raises ConfigError when its model_type is unknown."""
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in BY_MODEL_TYPE:
        raise ConfigError(f"model_type = {kind!r}: unknown family; {nearest(str(kind), BY_MODEL_TYPE)}")
    return BY_MODEL_TYPE[kind]


def family_named(name: str) -> Family:
    """The family called `name`; raises ConfigError with the nearest name when there is none."""
    known = {family.name: family for family in FAMILIES}
    if name not in known:
        raise ConfigError(f"family = {name!r}: unknown; {nearest(name, known)}")
    return known[name]


def from_hf(config: Mapping[str, Any]) -> ModelConfig:
    """The model that a published config.json describes. Raises ConfigError."""
    return family_of(config).from_hf(config)


def published(name: str) -> ModelConfig:
    """A published model by name, as in 'mixtral-8x7b'; raises ConfigError with the nearest name."""
    if name not in BY_PRESET:
        raise ConfigError(f"preset = {name!r}: unknown published model; {nearest(name, BY_PRESET)}")
    return BY_PRESET[name].preset(name)


__all__ = [
    "BY_MODEL_TYPE",
    "BY_PRESET",
    "FAMILIES",
    "Family",
    "family_named",
    "family_of",
    "from_hf",
    "published",
]
