"""The work of `moeworks simulate`: one function a simulation, from options to rows, and their printing."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from moeworks.cli.output import console, grid, print_json
from moeworks.cli.simulate import (
    CacheOptions,
    CommunicationOptions,
    PlacementOptions,
    SimulateOptions,
    SpeculationOptions,
)
from moeworks.simulate.cache import Link, cache_cost, simulate_cache
from moeworks.simulate.communication import bytes_per_token, communication
from moeworks.simulate.placement import contiguous, device_load, eplb, refine
from moeworks.simulate.prefetch import prefetch_recall
from moeworks.simulate.touched import batch_experts, speculation
from moeworks.trace import RoutingTrace, count_experts


@dataclass(frozen=True)
class Result:
    """A table: its title, and rows with the same keys; figures per layer are under by_layer."""

    title: str
    rows: list[dict[str, Any]]


def run(options: SimulateOptions) -> None:
    """Simulate, and print tables, or one JSON object."""
    trace = RoutingTrace.open(options.trace)
    if options.max_tokens is not None:
        trace = trace.where(np.arange(trace.num_tokens) < options.max_tokens)
    trace = trace.load()
    if isinstance(options, CacheOptions):
        results = cache_results(trace, options)
    elif isinstance(options, PlacementOptions):
        results = placement_results(trace, options)
    elif isinstance(options, CommunicationOptions):
        results = communication_results(trace, options)
    else:
        results = speculation_results(trace, options)
    if options.json:
        print_json({"trace": str(options.trace), "results": results})
        return
    for result in results:
        _print(result)


def cache_results(trace: RoutingTrace, options: CacheOptions) -> list[Result]:
    """A row per policy and capacity, and one per guess and capacity."""
    link = Link(options.expert_mb * 1e6, options.link_gb_s * 1e9, options.layer_us * 1e-6)
    experts = trace.header.num_experts
    total = experts * (trace.num_layers if options.scope == "global" else 1)
    rows = []
    for share in options.capacity:
        for policy in options.policies:
            table = simulate_cache(trace, policy, round(share * total), scope=options.scope)
            cost = cache_cost(table, link)
            rows.append(
                {
                    "capacity": table.capacity,
                    "policy": policy,
                    "hit_rate": table.total_hit_rate,
                    "MB_per_token": cost.bytes_loaded / 1e6,
                    "stall_ms": cost.stall_seconds * 1e3,
                    "stall_ms_prefetched": cost.stall_seconds_overlapped * 1e3,
                    "tokens_per_second": cost.tokens_per_second,
                    "by_layer": table.hit_rate,
                }
            )
    where = "of all layers together" if options.scope == "global" else "of each layer"
    results = [Result(f"cache of experts {where}; stalls per token", rows)]
    budgets = tuple(sorted({max(round(share * experts), 1) for share in options.capacity}))
    if len(np.unique(trace.tokens.sequence)) >= 2 and options.guesses:
        tables = [prefetch_recall(trace, guess, budgets) for guess in options.guesses]
        guessed = [
            {
                "loaded_ahead": budget,
                "guess": table.guess,
                "recall": table.recall[:, column].mean(),
                "by_layer": table.recall[:, column],
            }
            for column, budget in enumerate(budgets)
            for table in tables
        ]
        results.append(Result("prefetching: share of needed experts among those loaded ahead", guessed))
    return results


def placement_results(trace: RoutingTrace, options: PlacementOptions) -> list[Result]:
    """A row per way to place."""
    experts, layers = trace.header.num_experts, trace.num_layers
    early = np.arange(trace.num_tokens) < round(options.learn * trace.num_tokens)
    load = count_experts(trace.where(early)).total()
    slots = experts + options.replicas
    in_order = contiguous(layers, experts, options.devices)
    ours = eplb(load, slots, options.devices, num_nodes=options.nodes, num_groups=options.groups)
    ways = {
        "in order": in_order,
        "EPLB": ours,
        "EPLB, refined": refine(ours, load),
    }
    late = trace.where(~early)
    rows = []
    for name, placement in ways.items():
        table = device_load(late, placement, options.batch_tokens)
        rows.append(
            {
                "placement": name,
                "slots": placement.expert_of_slot.shape[1],
                "max_over_mean": table.mean.mean(),
                "worst_layer": table.mean.max(),
                "worst_batch": table.imbalance.max(),
                "by_layer": table.mean,
            }
        )
    title = f"load of {options.devices} devices in batches of {options.batch_tokens:,} tokens, 1 is balanced"
    return [Result(title, rows)]


def communication_results(trace: RoutingTrace, options: CommunicationOptions) -> list[Result]:
    """Without the limit, and with it."""
    limits = [None] if options.max_devices is None else [None, options.max_devices]
    rows = []
    for limit in limits:
        table = communication(trace, options.devices, max_devices=limit)
        size = bytes_per_token(
            table,
            options.d_model,
            dispatch_bytes=options.dispatch_bytes,
            combine_bytes=options.combine_bytes,
        )
        rows.append(
            {
                "limit": limit,
                "devices": table.devices.mean(),
                "uniform": table.uniform,
                "kB_per_token_and_layer": size.mean() / 1e3,
                "lost_assignments": table.lost_assignments.mean(),
                "lost_weight": None if table.lost_weight is None else table.lost_weight.mean(),
                "by_layer": table.devices,
            }
        )
    return [Result(f"devices of a token, of {options.devices}", rows)]


def speculation_results(trace: RoutingTrace, options: SpeculationOptions) -> list[Result]:
    """Batches, then drafts."""
    batches = batch_experts(trace, options.batch_sizes, seed=options.seed)
    found = speculation(trace, options.drafts, options.acceptance, seed=options.seed)
    together = [
        {
            "sequences": size,
            "experts": batches.distinct[:, i].mean(),
            "by_load": batches.by_load[:, i].mean(),
            "uniform": batches.uniform[i],
            "by_layer": batches.distinct[:, i],
        }
        for i, size in enumerate(batches.tokens)
    ]
    drafted = [
        {
            "drafts": drafts,
            "experts": found.touched.distinct[:, i].mean(),
            "by_load": found.touched.by_load[:, i].mean(),
            "uniform": found.touched.uniform[i],
            "tokens": found.accepted[i],
            "cost": found.cost[i],
            "gain": found.gain[i],
            "by_layer": found.touched.distinct[:, i],
        }
        for i, drafts in enumerate(found.drafts)
    ]
    return [
        Result("experts of a layer that a batch reads, each sequence one token", together),
        Result(
            f"experts of a layer that a verification reads; acceptance {options.acceptance:g};"
            " gain is tokens over cost in expert bytes",
            drafted,
        ),
    ]


def _print(result: Result) -> None:
    columns = [name for name in result.rows[0] if name != "by_layer"]
    header = (name.replace("max_over_mean", "max/mean").replace("_", " ") for name in columns)
    screen = console()
    screen.print(result.title)
    screen.print(grid("", header, ([_cell(name, row[name]) for name in columns] for row in result.rows)))
    screen.print()


def _cell(name: str, value: object) -> str:
    if value is None and name == "limit":
        return "none"
    if value is None or value != value:  # NaN
        return "-"
    return f"{value:,.3f}" if isinstance(value, float) else str(value)
