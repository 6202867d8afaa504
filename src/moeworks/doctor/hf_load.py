"""Models built by transformers, for families that moeworks does not know.

Local files and safetensors only; no code that comes with a checkpoint, or that its config.json names, is run.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from moeworks.checkpoint.source import read_json
from moeworks.errors import CheckpointError, ConfigError, MoeworksError, require

_ADAPTER = "adapter_config.json"
_PARAMETERS_PER_BYTE = 8
"""More than any quantisation reaches: a bit each."""


def load_transformers(folder: Path, device: str = "cpu") -> nn.Module:
    """The model of a published checkpoint in evaluation mode and in its own dtype.

    Raises MissingDependencyError without transformers, ConfigError for an encoder-decoder, CheckpointError
    for a folder that transformers cannot load, that leaves tensors of the model without values, or that
    needs code of its own.
    """
    transformers = require("transformers", extra="transformers")
    described = read_json(folder / "config.json")
    _refuse_foreign_code(folder, described, transformers)
    try:
        # None in place of False makes transformers ask on stdout, and run the code when stdin says "y".
        config = transformers.AutoConfig.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
        if config.is_encoder_decoder:
            raise ConfigError(
                f"{folder}: an encoder-decoder reads two texts, a source and a target; record it in Python"
                " with moeworks.doctor.record_transformers"
            )
        kind = _model_class(transformers, config)
        _check_size(folder, kind, config)
        model, loaded = kind.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, dtype="auto", output_loading_info=True,
            trust_remote_code=False,
        )  # fmt: skip
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, AttributeError, TypeError) as error:
        if isinstance(error, MoeworksError):
            raise
        raise CheckpointError(f"{folder}: transformers cannot load it: {_first_line(error)}") from error
    missing = sorted(loaded["missing_keys"])
    if missing:
        raise CheckpointError(f"{folder}: has no tensor for {missing[0]} and {len(missing) - 1} others")
    return model.to(device).eval()


def text_config(model: nn.Module) -> Any:
    """The part of a model's config that describes its text decoder."""
    config: Any = model.config
    return config.get_text_config()


def _refuse_foreign_code(folder: Path, described: dict[str, Any], transformers: Any) -> None:
    """Raise CheckpointError for a folder that transformers can load only by running code from elsewhere."""
    known = described.get("model_type") in transformers.CONFIG_MAPPING
    if "auto_map" in described and not known:
        raise CheckpointError(
            f"{folder}: a {described.get('model_type')!r} needs Python code that comes with the checkpoint"
            " (auto_map in its config.json), and moeworks never runs that; build the model in a program of"
            " your own and record it with moeworks.doctor.record_transformers"
        )
    kernels = [name for name in _implementations(described) if "/" in name]
    if kernels:
        raise CheckpointError(
            f"{folder}: its config.json names {kernels[0]!r}, a kernel to be downloaded from the Hugging Face"
            " Hub and run; remove the key, and transformers' own implementation is used"
        )
    if (folder / _ADAPTER).exists():
        raise CheckpointError(
            f"{folder}: holds an adapter beside the model ({_ADAPTER}), which moeworks does not apply;"
            " merge it into the weights, or move its files away"
        )


def _implementations(config: Any, key: str = "") -> Iterator[str]:
    """Every string of a config.json below a key such as attn_implementation, at any depth."""
    if isinstance(config, dict):
        for name, value in config.items():
            yield from _implementations(value, name if "_implementation" in name else key)
    elif isinstance(config, list):
        for value in config:
            yield from _implementations(value, key)
    elif key and isinstance(config, str):
        yield config


def _model_class(transformers: Any, config: Any) -> Any:
    """The class that the config names, where transformers has it; else the one for causal language models."""
    names = getattr(config, "architectures", None) or [""]
    named = getattr(transformers, names[0], None)
    is_model = isinstance(named, type) and issubclass(named, transformers.PreTrainedModel)
    return named if is_model else transformers.AutoModelForCausalLM


def _check_size(folder: Path, kind: Any, config: Any) -> None:
    """Raise CheckpointError when the config describes a model that the files cannot hold.

    transformers would fill what is missing with random numbers, however much memory that takes.
    """
    with torch.device("meta"):
        build = getattr(kind, "from_config", None)  # automatic classes have it
        model = kind(config) if build is None else build(config, trust_remote_code=False)
    described = sum(p.numel() for p in model.parameters())
    held = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    if described > held * _PARAMETERS_PER_BYTE:
        raise CheckpointError(
            f"{folder}: its config.json describes {described:,} parameters, and its safetensors files hold"
            f" {held:,} bytes: the weights of another model, or not all of them"
        )


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__
