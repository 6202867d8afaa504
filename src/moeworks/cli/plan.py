"""`moeworks plan PATH_OR_PRESET`: its options."""

from dataclasses import dataclass
from typing import Annotated

import tyro

from moeworks.errors import ConfigError, check
from moeworks.plan.devices import DEFAULT_DEVICE, Device, device_named, with_memory
from moeworks.plan.serving import ServingRequest
from moeworks.plan.units import parse_count, parse_memory


@dataclass(frozen=True)
class PlanOptions:
    """What serving a model takes (devices, speed, traffic), or with --tokens training it (time, money).

    Arithmetic on the config and on data sheets: speeds are upper bounds.
    """

    model: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="PATH_OR_PRESET")] = None
    """A folder with a config.json, a run's folder, a config.json, or a preset (moeworks info --list)."""
    gpu: str | None = None
    """A device of --list-gpus; the default is h100."""
    gpu_memory: str | None = None
    """Another amount of memory per device: 80GB, 80GiB, or 20B-params for so many parameters' weights."""
    gpus: int | None = None
    """Devices to use; the default is as few as hold the model (with --tokens: as hold the training state)."""
    gpus_per_node: int = 8
    """Devices that share a node."""
    memory_fraction: float = 0.9
    """Share of a device's memory to use."""
    dtype: str = "bf16"
    """Format of the weights: fp32, bf16, fp8, int8, mxfp4 or int4 (moeworks info explains them)."""
    kv_dtype: str = "bf16"
    """Type of the cache: fp32, bf16 or fp8."""
    context: int | None = None
    """Tokens of a sequence; the default is 8192, with --tokens 4096, or what the model takes."""
    batch: int = 1
    """Sequences at a time."""
    prefill_tokens: int = 8192
    """Tokens of prompts that are read at a time."""
    tokens: str | None = None
    """Plan training on so many tokens instead: 300B, 15T."""
    mfu: float | None = None
    """With --tokens: share of the peak bf16 FLOP/s that training reaches; the default is 0.4."""
    price: float | None = None
    """With --tokens: price of a device for an hour."""
    json: bool = False
    """Print one JSON object and nothing else."""
    list_gpus: bool = False
    """List the devices with the sources of their figures."""


_TRAINING_ONLY = ("mfu", "price")
_SERVING_ONLY = ("dtype", "kv_dtype", "batch", "prefill_tokens", "gpus_per_node")


@dataclass(frozen=True)
class PlanRequest:
    """What is asked for, read and checked as far as that needs no model."""

    options: PlanOptions
    device: Device
    tokens: int | None
    """A training budget; None plans serving."""

    def serving(self, context: int) -> ServingRequest:
        """The options of serving sequences of `context` tokens. Raises ConfigError for bad values."""
        options = self.options
        return ServingRequest(
            dtype=options.dtype,
            kv_dtype=options.kv_dtype,
            context=context,
            batch=options.batch,
            devices=options.gpus,
            devices_per_node=options.gpus_per_node,
            memory_fraction=options.memory_fraction,
            prefill_tokens=options.prefill_tokens,
        )


def parse(argv: list[str]) -> PlanRequest:
    """The request that `argv` spells. Raises ConfigError."""
    options = tyro.cli(PlanOptions, prog="moeworks plan", args=argv)
    if options.model is None and not options.list_gpus:
        raise ConfigError("model: missing; name a folder, a config.json or a preset (moeworks info --list)")
    _check_kind(options)
    device = None if options.gpu is None else device_named(options.gpu)
    if options.gpu_memory is not None:
        device = with_memory(device, *parse_memory(options.gpu_memory))
    tokens = None if options.tokens is None else parse_count(options.tokens, "tokens")
    return PlanRequest(options, device or device_named(DEFAULT_DEVICE), tokens)


def _check_kind(options: PlanOptions) -> None:
    """Every option that is given has an effect on the kind of plan that is asked for."""
    training = options.tokens is not None
    for name in _TRAINING_ONLY:
        value = getattr(options, name)
        check(training or value is None, name, value, "is for training and needs --tokens")
    for name in _SERVING_ONLY:
        value, default = getattr(options, name), getattr(PlanOptions, name)
        check(not training or value == default, name, value, "is for serving and goes not with --tokens")
