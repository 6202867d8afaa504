"""`moeworks plan PATH_OR_PRESET`: its options."""

from dataclasses import dataclass
from typing import Annotated

import tyro

from moeworks.cli.options import parse_options, refuse_idle
from moeworks.errors import ConfigError
from moeworks.plan.devices import DEFAULT_DEVICE, Device, device_named, with_memory
from moeworks.plan.serving import ServingRequest
from moeworks.plan.units import parse_count, parse_memory


@dataclass(frozen=True)
class PlanOptions:
    """What serving a model takes (devices, speed, traffic), or with --tokens training it (time, money).

    Arithmetic on the config and on data sheets: speeds are upper bounds.
    """

    model: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="PATH_OR_PRESET")] = None
    """A folder with a config.json, a run's folder, a config.json, or a preset (moeworks list models)."""
    gpu: str | None = None
    """A device of `moeworks list gpus`; None is h100."""
    gpu_memory: str | None = None
    """Memory of a device in place of its own: 80GB, 80GiB, or 20B-params for the weights of 20 billion
    parameters."""
    gpus: Annotated[int | None, tyro.conf.arg(aliases=("--devices",))] = None
    """Devices to use. None is as few as hold the model, with --tokens as few as hold the training state."""
    gpus_per_node: int = 8
    """Devices that share a node."""
    memory_fraction: float = 0.9
    """Share of a device's memory to use."""
    dtype: str = "bf16"
    """Format of the weights: fp32, bf16, fp8, int8, mxfp4 or int4 (moeworks info explains them). The long
    names float32 and bfloat16 work as well."""
    kv_dtype: str = "bf16"
    """Type of the cache: fp32, bf16 or fp8."""
    context: int | None = None
    """Tokens of a sequence. None is 8192, with --tokens 4096, or the most that the model takes if that is
    less."""
    batch_size: int = 1
    """Sequences that are served at a time."""
    prefill_tokens: int = 8192
    """Prompt tokens that are read at a time."""
    tokens: str | None = None
    """Plan training on this many tokens instead of serving: 300B, 15T."""
    mfu: float | None = None
    """With --tokens: share of the peak bf16 FLOP/s that training reaches; None is 0.4."""
    price: float | None = None
    """With --tokens: price of one device for an hour."""
    json: bool = False
    """Print one JSON object and nothing else."""


_TRAINING_ONLY = ("mfu", "price")
_SERVING_ONLY = ("dtype", "kv_dtype", "batch_size", "prefill_tokens", "gpus_per_node")


@dataclass(frozen=True)
class PlanRequest:
    """The options of `moeworks plan`, checked as far as that needs no model."""

    options: PlanOptions
    device: Device
    tokens: int | None
    """Tokens to train on; None plans serving."""

    def serving(self, context: int) -> ServingRequest:
        """The options of serving sequences of `context` tokens. Raises ConfigError for bad values."""
        options = self.options
        return ServingRequest(
            dtype=options.dtype,
            kv_dtype=options.kv_dtype,
            context=context,
            batch=options.batch_size,
            devices=options.gpus,
            devices_per_node=options.gpus_per_node,
            memory_fraction=options.memory_fraction,
            prefill_tokens=options.prefill_tokens,
        )


def parse(argv: list[str]) -> PlanRequest:
    """The request that `argv` spells. Raises ConfigError."""
    options = parse_options(PlanOptions, argv, "moeworks plan")
    if options.model is None:
        raise ConfigError("model: missing; name a folder, a config.json or a preset (moeworks list models)")
    if options.tokens is None:
        refuse_idle(options, _TRAINING_ONLY, "without --tokens: it is for training")
    else:
        refuse_idle(options, _SERVING_ONLY, "with --tokens: it is for serving")
    device = None if options.gpu is None else device_named(options.gpu)
    if options.gpu_memory is not None:
        device = with_memory(device, *parse_memory(options.gpu_memory))
    tokens = None if options.tokens is None else parse_count(options.tokens, "tokens")
    return PlanRequest(options, device or device_named(DEFAULT_DEVICE), tokens)
