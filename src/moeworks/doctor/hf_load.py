"""Models by transformers itself, for families that moeworks does not know: local files, safetensors, no code
that comes with a checkpoint."""

from pathlib import Path
from typing import Any

from torch import nn

from moeworks.errors import CheckpointError, ConfigError, require


def load_transformers(folder: Path, device: str = "cpu") -> nn.Module:
    """The model of a published checkpoint in evaluation mode and in its own dtype.

    Raises MissingDependencyError without transformers, ConfigError for an encoder-decoder, CheckpointError
    for a folder that transformers cannot load or that leaves tensors of the model without values.
    """
    transformers = require("transformers", extra="transformers")
    try:
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
        names = getattr(config, "architectures", None) or [""]
        kind = getattr(transformers, names[0], None) or transformers.AutoModelForCausalLM
        if config.is_encoder_decoder:
            raise ConfigError(
                f"{folder}: an encoder-decoder reads two texts, a source and a target; record it in Python"
                " with moeworks.doctor.record_transformers"
            )
        model, loaded = kind.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, dtype="auto", output_loading_info=True
        )
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, AttributeError, TypeError) as error:
        if isinstance(error, ConfigError):
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


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__
