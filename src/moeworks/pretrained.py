"""Models from disk: moeworks' own runs, published checkpoints, GGUF files."""

from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moeworks.checkpoint import latest_checkpoint, read_checkpoint
from moeworks.checkpoint.bindings import check_names, fill, usual_names
from moeworks.checkpoint.gguf_source import GgufSource
from moeworks.checkpoint.publish import published_config, read_companions
from moeworks.checkpoint.quantized import dequantized
from moeworks.checkpoint.source import FolderSource, RoutedExpertsSource, Source
from moeworks.config import ModelConfig, RunConfig
from moeworks.config.codec import from_dict
from moeworks.config.weight_rules import WeightMap
from moeworks.errors import CheckpointError, ConfigError
from moeworks.families import Family, family_named, family_of
from moeworks.families.gguf import gguf_model
from moeworks.families.weights import plain
from moeworks.gguf_file import GgufFile
from moeworks.models.decoder import Decoder
from moeworks.models.init import NoInit
from moeworks.models.origin import Origin
from moeworks.models.weights import load_weights

_DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}
_EMBED = "model.embed_tokens.weight"
_HEAD = "lm_head.weight"


def load(
    path: str | Path, *, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> Decoder:
    """A model in evaluation mode, every tensor of it from the disk.

    Args:
        path: a published checkpoint's folder (config.json with a `model_type`, and safetensors files), a
            `.gguf` file, a run's folder (`runs/NAME`), or one of its checkpoints
            (`runs/NAME/checkpoints/step-00000100`).
        device: where the model goes.
        dtype: of its weights; None keeps what the checkpoint says (float32 for GGUF). Selection biases stay
            float32.

    Raises CheckpointError when there is none, it is damaged, or its tensors are not those of its config, and
    ConfigError when its config is not one that moeworks can build.
    """
    folder = Path(path)
    if folder.suffix == ".gguf":
        return _load_gguf(folder, torch.device(device), dtype)
    published = published_config(folder)
    if published is None:
        model = _load_run(folder)
        return model.to(device=device, dtype=dtype).eval()
    return _load_published(folder, published, torch.device(device), dtype)


def find_checkpoint(path: Path) -> Path:
    """`path` itself if it is a checkpoint, else the latest one of the run there."""
    if (path / "checkpoint.json").is_file():
        return path
    if not (path / "config.json").is_file():
        raise CheckpointError(f"{path}: neither a run (config.json) nor a checkpoint (checkpoint.json)")
    return latest_checkpoint(path / "checkpoints")


def _load_run(path: Path) -> Decoder:
    directory = find_checkpoint(path)
    checkpoint = read_checkpoint(directory)
    try:
        config = from_dict(RunConfig, checkpoint.state["config"])
    except ConfigError as error:
        raise CheckpointError(f"{directory}: {error}") from error
    model = Decoder(config.model)
    if config.train.precision == "float64":
        model = model.double()
    load_weights(model, checkpoint.tensors["model"], str(directory))
    model.origin = Origin(None, {}, directory)
    return model


def _load_published(
    folder: Path, config: dict[str, Any], device: torch.device, dtype: torch.dtype | None
) -> Decoder:
    family = family_of(config)
    source = dequantized(FolderSource(folder), config)
    model_config = _with_held_mtp(family.weights, family.from_hf(config), source)
    router = model_config.router
    if router.num_identity_experts:
        source = RoutedExpertsSource(source, router.num_experts, router.num_identity_experts)
    origin = Origin(family.name, config, folder, read_companions(folder))
    kind = dtype or _declared_dtype(config, source)
    return build_from(source, model_config, family, origin, str(folder), device=device, dtype=kind)


def _load_gguf(path: Path, device: torch.device, dtype: torch.dtype | None) -> Decoder:
    file = GgufFile(path)
    source, found = GgufSource(file), gguf_model(file)
    origin = Origin(found.family, found.config, path)
    family = replace(family_named(found.family), weights=found.weights)
    config = _with_held_mtp(family.weights, family.from_hf(found.config), source)
    return build_from(source, config, family, origin, str(path), device=device, dtype=dtype or torch.float32)


def build_from(
    source: Source,
    config: ModelConfig,
    family: Family,
    origin: Origin,
    where: str,
    *,
    device: torch.device,
    dtype: torch.dtype,
) -> Decoder:
    """A model whose every tensor comes from `source`; names and shapes are checked before memory is taken.

    `where` names the source in error messages.
    """
    with NoInit(), torch.device("meta"):
        model = Decoder(config).to(dtype)
    check_names(_tied_weights(family, config, source), config, state_of(model), source, where)
    # As to_empty does, whose empty_like from the meta device imports sympy first.
    model._apply(lambda t: torch.empty(t.shape, dtype=t.dtype, device=device))
    fill(family.weights, config, state_of(model), source, where)
    _check_tied(config, family, source, where)
    model.origin = origin
    return model.eval()


def state_of(model: Decoder) -> dict[str, Tensor]:
    """The tensors that a checkpoint holds, by name; they are the model's own memory."""
    return dict(model.state_dict(keep_vars=False))


def _declared_dtype(config: dict[str, Any], source: Source) -> torch.dtype:
    """The dtype that config.json declares, or else that of the first floating-point tensor."""
    inner = config.get("text_config")
    for place in (config, inner if isinstance(inner, dict) else {}):
        name = place.get("dtype") or place.get("torch_dtype")
        if isinstance(name, str) and name.removeprefix("torch.") in _DTYPES:
            return _DTYPES[name.removeprefix("torch.")]
    names = sorted(source.names())
    first = source.tensor(names[0]).dtype if names else torch.float32
    return first if first in _DTYPES.values() else torch.bfloat16


def _with_held_mtp(weights: WeightMap, config: ModelConfig, source: Source) -> ModelConfig:
    """`config` with as many multi-token prediction layers as the files hold, whatever it declares."""
    names = usual_names(weights, source.names()).keys()
    own = tuple(rule.theirs for rule in plain(weights.mtp))

    def holds(number: int) -> bool:
        prefix = weights.layer_prefix.format(i=config.num_layers + number)
        if number < config.num_mtp_layers:
            return any(name.startswith(prefix) for name in names)
        # A layer that the config does not declare counts if it holds tensors that only MTP layers have.
        return any(prefix + name in names for name in own)

    return changed(config, num_mtp_layers=next(number for number in count() if not holds(number)))


def changed(config: ModelConfig, **changes: Any) -> ModelConfig:
    """`config` itself when nothing changes."""
    same = all(getattr(config, name) == value for name, value in changes.items())
    return config if same else replace(config, **changes)


# Tied embeddings: a checkpoint may hold the output projection too, as a copy.


def _tied_weights(family: Family, config: ModelConfig, source: Source) -> WeightMap:
    weights = family.weights
    if not config.tie_embeddings or _HEAD not in usual_names(weights, source.names()):
        return weights
    return replace(weights, ignored=(*weights.ignored, _HEAD))


def _check_tied(config: ModelConfig, family: Family, source: Source, where: str) -> None:
    names = usual_names(family.weights, source.names())
    if not config.tie_embeddings or _HEAD not in names or _EMBED not in names:
        return
    if not torch.equal(source.tensor(names[_HEAD]), source.tensor(names[_EMBED])):
        raise CheckpointError(
            f"{where}: config.json ties {_HEAD} to {_EMBED}, but the two tensors differ: config.json or the"
            " weights are of another model"
        )
