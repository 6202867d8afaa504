"""From what a user names to a Subject: a run, a checkpoint, an architecture, or any Python object."""

import importlib
import inspect
import sys
from pathlib import Path
from typing import Any

from torch import nn

from moeworks.checkpoint import read_checkpoint
from moeworks.config import BalanceConfig, ModelConfig, MoEConfig, RunConfig
from moeworks.config.codec import from_dict
from moeworks.doctor.ours import DecoderSubject, LayerSubject
from moeworks.doctor.shrink import build_tiny, enliven_
from moeworks.doctor.subject import Subject, Unavailable
from moeworks.errors import ConfigError, require
from moeworks.layers.moe import MoE
from moeworks.models.decoder import Decoder
from moeworks.pretrained import find_checkpoint, load, published_config

TRANSFORMERS = "transformers:"


def subject_of_path(path: Path) -> Subject:
    """The model of a run, a checkpoint or a published checkpoint, with its own weights."""
    if path.suffix == ".gguf" or published_config(path) is not None:
        return DecoderSubject(load(path), str(path))
    state = read_checkpoint(find_checkpoint(path), verify=False).state
    return DecoderSubject(load(path), str(path), from_dict(RunConfig, state["config"]).balance)


def subject_of_config(config: ModelConfig, name: str, balance: BalanceConfig | None = None) -> Subject:
    """A tiny random model of that architecture."""
    if not config.moe_layers:
        raise ConfigError(f"{name}: a dense model; it has no MoE layer to examine")
    return DecoderSubject(build_tiny(config), f"{name} (tiny)", balance)


def subject_of_spec(spec: str) -> Subject:
    """`transformers:ClassName`, or `module:attribute` of any Python object.

    Raises ConfigError when there is no such thing, or it is no MoE model.
    """
    if spec.startswith(TRANSFORMERS):
        name = spec.removeprefix(TRANSFORMERS)
        tiny = _transformers("transformers_tiny")
        try:
            return _wrapped(tiny.tiny_class(tiny.named_class(name)), name)
        except ConfigError:
            raise
        except Exception as error:  # whatever a class of someone else's raises
            raise ConfigError(f"{spec}: cannot be built small: {error}") from error
    return subject_of_object(_imported(spec), spec)


def subject_of_object(thing: Any, name: str) -> Subject:
    """A moeworks layer, decoder or config, a transformers model or class, or a function that returns one."""
    if isinstance(thing, MoE):
        return LayerSubject(thing, name)
    if isinstance(thing, Decoder):
        return DecoderSubject(thing, name)
    if isinstance(thing, MoEConfig):
        layer = MoE(thing)
        enliven_(layer)
        return LayerSubject(layer, name)
    if isinstance(thing, ModelConfig):
        return subject_of_config(thing, name)
    if isinstance(thing, nn.Module):
        return _foreign(thing, name)
    if inspect.isclass(thing) and issubclass(thing, nn.Module) and hasattr(thing, "config_class"):
        return _wrapped(_transformers("transformers_tiny").tiny_class(thing), name)
    if callable(thing):
        try:
            made = thing()
        except TypeError as error:
            raise ConfigError(f"{name}: must be callable without arguments: {error}") from error
        if not callable(made) or isinstance(made, nn.Module):
            return subject_of_object(made, name)
    raise ConfigError(
        f"{name}: a {type(thing).__name__} is no MoE layer, decoder, config, or transformers model"
    )


def _foreign(module: nn.Module, name: str) -> Subject:
    ours = [m for m in module.modules() if isinstance(m, MoE)]
    if hasattr(module, "config") and hasattr(module, "save_pretrained"):
        return _wrapped(module, name)
    if ours:
        return LayerSubject(ours[0], f"{name}: its first MoE layer")
    raise ConfigError(
        f"{name}: {type(module).__name__} is neither a moeworks module nor a transformers model"
    )


def _wrapped(model: Any, name: str) -> Subject:
    try:
        return _transformers("transformers_subject").TransformersSubject(model, name)
    except Unavailable as reason:
        raise ConfigError(f"{name}: {reason}") from reason


def _transformers(module: str) -> Any:
    """A module of the adapter, which is imported when it is needed: transformers is an extra."""
    require("transformers", extra="transformers")
    return importlib.import_module(f"moeworks.doctor.{module}")


def _imported(spec: str) -> Any:
    module, _, attribute = spec.partition(":")
    if not attribute:
        raise ConfigError(f"{spec!r}: no preset, file or folder, nor of the form module:attribute")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        found: Any = importlib.import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"{spec}: {error}") from error
    return found
