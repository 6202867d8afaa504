"""`moeworks simulate cache|placement|communication|speculation trace.parquet`: their options."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from moeworks.cli.options import parse_options
from moeworks.errors import check
from moeworks.simulate.cache import POLICIES, Policy, Scope
from moeworks.simulate.prefetch import GUESSES, Guess


@dataclass(frozen=True, kw_only=True)
class TraceInput:
    """Options of all simulations."""

    trace: tyro.conf.Positional[Path]
    """A trace, as `moeworks trace` writes it."""
    max_tokens: int | None = None
    """Take only the first tokens; None takes all."""
    json: bool = False
    """Print one JSON object and nothing else."""


@dataclass(frozen=True, kw_only=True)
class CacheOptions(TraceInput):
    """A cache of experts in fast memory: hit rates, bytes and stalls of every policy, and the optimum."""

    capacity: tuple[float, ...] = (0.125, 0.25, 0.5)
    """Shares of the experts that fit into fast memory, each a column."""
    policies: tuple[Policy, ...] = POLICIES
    """Policies of replacement: static takes its frequencies from the trace itself, and belady, which knows
    the future, is the bound."""
    scope: Scope = "layer"
    """One cache for each layer, or one for all layers."""
    expert_mb: float = 10.0
    """Size of one expert in MB."""
    link_gb_s: float = 16.0
    """Bandwidth from slow to fast memory, in GB/s."""
    layer_us: float = 100.0
    """Microseconds of computation of one layer for one token."""
    guesses: tuple[Guess, ...] = GUESSES
    """Guesses of prefetching, whose recall is measured on the second half of the sequences."""


@dataclass(frozen=True, kw_only=True)
class PlacementOptions(TraceInput):
    """Load of devices with experts in order, by EPLB, and by EPLB with its packing refined."""

    devices: int
    """Number of devices, with equally many experts each."""
    replicas: int = 0
    """Slots of every layer beyond one for each expert."""
    nodes: int = 1
    """Number of nodes that the devices are in, for EPLB's hierarchical packing."""
    groups: int = 1
    """Groups of experts; hierarchical packing needs a multiple of the nodes."""
    batch_tokens: int = 1024
    """Tokens of a batch."""
    learn: float = 0.5
    """Share of the trace, its first tokens, that the placement is made from; it is measured on the rest."""


@dataclass(frozen=True, kw_only=True)
class CommunicationOptions(TraceInput):
    """Devices that a token is sent to, and the bytes that are sent."""

    devices: int
    """Number of devices, with equally many experts each."""
    max_devices: int | None = None
    """Most devices of a token: the best are kept, and what is lost is reported."""
    d_model: int = 4096
    """Width of the model: numbers of a token."""
    dispatch_bytes: float = 1.0
    """Bytes of a number on the way out."""
    combine_bytes: float = 2.0
    """Bytes of a number on the way back."""


@dataclass(frozen=True, kw_only=True)
class SpeculationOptions(TraceInput):
    """Experts that a decode step reads, with batches of sequences and with speculative decoding."""

    drafts: tuple[int, ...] = (1, 2, 3, 4, 8)
    """Numbers of draft tokens that are verified together."""
    acceptance: float = 0.7
    """Probability that a draft token is accepted."""
    batch_sizes: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    """Numbers of sequences that are decoded together."""
    seed: int = 0
    """Random seed of the samples."""


SimulateOptions = CacheOptions | PlacementOptions | CommunicationOptions | SpeculationOptions
SUBCOMMANDS: Any = (
    Annotated[CacheOptions, tyro.conf.subcommand("cache")]
    | Annotated[PlacementOptions, tyro.conf.subcommand("placement")]
    | Annotated[CommunicationOptions, tyro.conf.subcommand("communication")]
    | Annotated[SpeculationOptions, tyro.conf.subcommand("speculation")]
)


def parse(argv: list[str]) -> SimulateOptions:
    """The options that `argv` spells. Raises ConfigError for a value that breaks a rule."""
    options: SimulateOptions = parse_options(SUBCOMMANDS, argv, "moeworks simulate")
    limit = options.max_tokens
    check(limit is None or limit >= 1, "max_tokens", limit, "must be at least 1, or None")
    if isinstance(options, CacheOptions):
        shares = options.capacity
        good = bool(shares) and all(0 <= share <= 1 for share in shares)
        check(good, "capacity", shares, "must be shares of the experts, between 0 and 1")
        check(bool(options.policies), "policies", options.policies, "must name at least one policy")
    if isinstance(options, PlacementOptions):
        check(0 < options.learn < 1, "learn", options.learn, "must lie between 0 and 1")
        check(options.replicas >= 0, "replicas", options.replicas, "must not be negative")
    return options
