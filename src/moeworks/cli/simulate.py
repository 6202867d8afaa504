"""`moeworks simulate cache|placement|comm|speculation trace.parquet`: their options."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

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
    """Experts in fast memory: hit rates, bytes and stalls of every policy, and the optimum."""

    capacity: tuple[float, ...] = (0.125, 0.25, 0.5)
    """Share of the experts that fit, each a column."""
    policies: tuple[Policy, ...] = POLICIES
    """static takes its frequencies from the trace itself; belady knows the future and is the bound."""
    scope: Scope = "layer"
    """A cache for each layer, or one for all."""
    expert_mb: float = 10.0
    """Size of one expert in MB."""
    link_gb_s: float = 16.0
    """Bandwidth from slow to fast memory, in GB/s."""
    layer_us: float = 100.0
    """Microseconds that one layer computes for a token."""
    guesses: tuple[Guess, ...] = GUESSES
    """Prefetching: recall of these guesses, on the second half of the sequences."""


@dataclass(frozen=True, kw_only=True)
class PlacementOptions(TraceInput):
    """Load of devices: experts in order, by EPLB, and by EPLB with its packing refined."""

    devices: int
    """Devices with equally many experts."""
    replicas: int = 0
    """Slots beside one for each expert, in every layer."""
    nodes: int = 1
    """Nodes of the devices, for EPLB's hierarchical packing."""
    groups: int = 1
    """Groups of experts; hierarchical packing wants a multiple of the nodes."""
    batch_tokens: int = 1024
    """Tokens of a batch."""
    learn: float = 0.5
    """Share of the trace, its first tokens, that the placement is made from; the rest is what it is tried
    on."""


@dataclass(frozen=True, kw_only=True)
class CommOptions(TraceInput):
    """Devices that a token is sent to, and the bytes."""

    devices: int
    """Devices with equally many experts."""
    max_devices: int | None = None
    """Keep each token's best devices only, and see what is lost."""
    d_model: int = 4096
    """Numbers of a token."""
    dispatch_bytes: float = 1.0
    """Bytes of a number on the way out."""
    combine_bytes: float = 2.0
    """Bytes of a number on the way back."""


@dataclass(frozen=True, kw_only=True)
class SpeculationOptions(TraceInput):
    """Experts that a decode step reads: batches of sequences, and speculative decoding."""

    drafts: tuple[int, ...] = (1, 2, 3, 4, 8)
    """Draft tokens of a verification."""
    acceptance: float = 0.7
    """Chance that a draft token is accepted."""
    batch_sizes: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    """Sequences that are decoded together."""
    seed: int = 0
    """Of the samples."""


SimulateOptions = CacheOptions | PlacementOptions | CommOptions | SpeculationOptions


def parse(argv: list[str]) -> SimulateOptions:
    """The options that `argv` spells. Raises ConfigError for a value that breaks a rule."""
    options = tyro.cli(
        Annotated[CacheOptions, tyro.conf.subcommand("cache")]
        | Annotated[PlacementOptions, tyro.conf.subcommand("placement")]
        | Annotated[CommOptions, tyro.conf.subcommand("comm")]
        | Annotated[SpeculationOptions, tyro.conf.subcommand("speculation")],
        prog="moeworks simulate",
        args=argv,
    )
    limit = options.max_tokens
    check(limit is None or limit >= 1, "max_tokens", limit, "must be at least 1, or None")
    if isinstance(options, CacheOptions):
        shares = options.capacity
        good = bool(shares) and all(0 <= share <= 1 for share in shares)
        check(good, "capacity", shares, "must be shares of the experts, between 0 and 1")
        check(bool(options.policies), "policies", options.policies, "names none")
    if isinstance(options, PlacementOptions):
        check(0 < options.learn < 1, "learn", options.learn, "must lie between 0 and 1")
        check(options.replicas >= 0, "replicas", options.replicas, "must not be negative")
    return options
