"""The tables of `moeworks plan`."""

from collections.abc import Iterator, Sequence

from rich.console import Group
from rich.table import Table

from moeworks.cli.amounts import bytes_text, count_text, flops_text, seconds_text
from moeworks.cli.output import facts, grid, notes
from moeworks.config.model import ModelConfig
from moeworks.plan.devices import Device
from moeworks.plan.figures import ModelFigures
from moeworks.plan.memory import SPLITS
from moeworks.plan.routing import Traffic
from moeworks.plan.serving import ServingPlan, SplitPlan
from moeworks.plan.training import STATE_BYTES, TrainingPlan

NONE = "-"


def device_words(device: Device) -> str:
    """A device in one line."""
    parts = []
    if device.parameters is not None:
        parts.append(f"{count_text(device.parameters)} parameters")
    if device.memory is not None:
        parts.append(bytes_text(device.memory))
    if device.bandwidth is not None:
        parts.append(f"{bytes_text(device.bandwidth)}/s")
    parts += [f"{kind} {flops_text(peak, per_second=True)}" for kind, peak in device.flops.items()]
    return f"{device.name}: {', '.join(parts)} ({device.source})"


def device_list(devices: Sequence[Device]) -> Group:
    """`devices`, and the sources of their figures."""
    header = ["device", "memory", "bandwidth", "fp32", "bf16", "fp8 FLOP/s", "link"]
    table = grid("", header, map(_device_row, devices))
    sources = notes((device.name, device.source) for device in devices)
    return Group(table, "", "Sources", sources)


def _device_row(device: Device) -> list[str]:
    peaks = [device.flops.get(kind) for kind in ("fp32", "bf16", "fp8")]
    return [
        device.name,
        bytes_text(device.memory or 0),
        f"{bytes_text(device.bandwidth or 0)}/s",
        *(flops_text(peak, per_second=True).removesuffix("FLOP/s") if peak else NONE for peak in peaks),
        f"{bytes_text(device.link)}/s" if device.link else NONE,
    ]


def serving_tables(model: ModelConfig, figures: ModelFigures, plan: ServingPlan) -> Iterator[Table | Group]:
    """What must be held, on how many devices, how fast it decodes, and what the devices send."""
    yield _held(figures, plan)
    if plan.device.parameters is not None:
        about = "total parameters over those of a device; caches and activations are not counted"
        yield facts("Devices", [("needed", f"{plan.devices_needed:,}", about)])
    else:
        yield _memory(plan)
    if any(split.decode is not None for split in plan.splits):
        yield _speed(plan)
    yield _step(model, figures, plan)
    if plan.traffic_devices is not None:
        yield _traffic(plan, plan.traffic_devices)


def training_tables(plan: TrainingPlan) -> Iterator[Table]:
    """Work, time, memory and money."""
    rows = [
        (
            "FLOPs per token",
            flops_text(plan.flops_per_token),
            f"sequences of {plan.seq_len:,}, masked pairs counted",
        ),
        ("", flops_text(plan.flops_per_token_causal), "masked pairs left out"),
        ("FLOPs", f"{plan.flops:.3e}", f"{count_text(plan.tokens)} tokens"),
        ("device time", f"{plan.device_seconds / 3600:,.0f} h", f"at {plan.mfu:.0%} of the peak bf16 FLOP/s"),
        ("time", seconds_text(plan.seconds), f"on {plan.devices:,} devices"),
        ("speed", f"{plan.tokens_per_second:,.0f}", "tokens/s"),
    ]
    if plan.cost is not None:
        rows.append(("cost", f"{plan.cost:,.0f}", f"at {plan.price_per_hour:g} per device and hour"))
    about = f"{STATE_BYTES} bytes per parameter: weights, gradients, Adam in float32; activations come on top"
    rows.append(("state", bytes_text(plan.state_bytes), about))
    if plan.devices_for_state is not None:
        rows.append(("", f"{plan.devices_for_state:,} devices", "hold it, spread over all of them"))
    yield facts("Training", rows)


def _held(figures: ModelFigures, plan: ServingPlan) -> Table:
    request = plan.request
    windows = plan.cache_bytes != request.batch * request.context * figures.kv_bytes_per_token
    per_token = f"{figures.kv_bytes_per_token:,} B"
    cache = f"{request.kv_dtype}: {request.batch:,} x {request.context:,} tokens x {per_token}"
    cache += ", but for windows, chunks or states" if windows else ""
    weights = request.dtype + (", MTP layers left out" if figures.parameters.mtp else "")
    return facts(
        "To be held",
        [
            ("weights", bytes_text(plan.weight_bytes), weights),
            ("cache", bytes_text(plan.cache_bytes), cache),
            ("activations", bytes_text(plan.activation_bytes), "on each device, an estimate"),
        ],
    )


def _distinct(plan: ServingPlan) -> tuple[SplitPlan, ...]:
    """The splits, or the first one where all of them are one device."""
    return plan.splits[:1] if all(split.devices == 1 for split in plan.splits) else plan.splits


def _memory(plan: ServingPlan) -> Group:
    splits = _distinct(plan)
    usable = bytes_text(plan.usable_bytes or 0)
    share = f"{plan.request.memory_fraction:.0%} of {bytes_text(plan.device.memory or 0)}"
    title = f"Devices, and what the fullest holds ({usable} usable, {share})"
    header = ["split", "devices", "weights", "cache", "activations", "together", "most sequences"]
    words = [(split.split, split.problem or SPLITS[split.split]) for split in splits]
    if len(splits) == 1:
        words = [(split.split, split.problem) for split in splits if split.problem]
    return Group(grid(title, header, map(_memory_row, splits)), notes(words))


def _memory_row(split: SplitPlan) -> list[str]:
    load = split.load
    if load is None:
        return [split.split, *[NONE] * 6]
    return [
        split.split,
        f"{split.devices:,}",
        bytes_text(load.weights),
        bytes_text(load.cache),
        bytes_text(load.activations),
        bytes_text(load.total),
        f"{split.most_sequences:,}",
    ]


def _speed(plan: ServingPlan) -> Table:
    request = plan.request
    when = f"token {request.context:,}, batch {request.batch:,}"
    title = f"Decode at {when}, at best (prompt: reading one)"
    header = ["split", "devices", "reads", "step", "tokens/s", "a sequence", "bound by", "prompt"]
    return grid(title, header, [_speed_row(split) for split in _distinct(plan) if split.decode is not None])


def _speed_row(split: SplitPlan) -> list[str]:
    speed = split.decode
    assert speed is not None
    return [
        split.split,
        f"{split.devices:,}",
        bytes_text(speed.reads.total),
        seconds_text(speed.step_seconds),
        f"{speed.tokens_per_second:,.0f}",
        f"{speed.tokens_per_second_per_sequence:,.1f}",
        speed.bound,
        NONE if split.prefill_seconds is None else seconds_text(split.prefill_seconds),
    ]


def _step(model: ModelConfig, figures: ModelFigures, plan: ServingPlan) -> Table:
    reads, flops = plan.step_bytes, figures.flops.decode_per_token * plan.request.batch
    rows = []
    if plan.experts_touched is not None:
        touched = f"of {model.router.num_experts} in each layer, if routing is uniform"
        rows.append(("experts touched", f"{plan.experts_touched:.1f}", touched))
        rows.append(("experts", bytes_text(reads.experts), "read"))
    rows += [
        ("other weights", bytes_text(reads.other_weights), "read"),
        ("cache", bytes_text(reads.cache), "read"),
        ("arithmetic", flops_text(flops), f"{flops / reads.total:.1f} FLOP per byte read"),
    ]
    return facts("One decode step of the batch, all devices together", rows)


def _traffic(plan: ServingPlan, devices: Traffic) -> Table:
    places = [("devices", devices)]
    if plan.traffic_nodes is not None:
        places.append(("nodes", plan.traffic_nodes))
    limited = any(traffic.per_token != traffic.per_token_unlimited for _, traffic in places)
    columns = [_traffic_values(traffic, limited=limited) for _, traffic in places]
    rows = [[name, *(column[i][1] for column in columns)] for i, (name, _) in enumerate(columns[0])]
    if plan.exchange_seconds is not None:
        rows.append(["a decode step's, at full link speed", seconds_text(plan.exchange_seconds)])
    header = ["", *(f"{traffic.places:,} {name}" for name, traffic in places)]
    return grid("Expert-parallel traffic of a token", header, rows)


def _traffic_values(traffic: Traffic, *, limited: bool) -> list[tuple[str, str]]:
    """Names and values; with `limited`, what the router's groups save."""
    visits = [("visited, if routing is uniform", f"{traffic.per_token:.2f}")]
    sent = [("sent per layer, there and back", bytes_text(traffic.bytes_per_token_layer))]
    if limited:
        without = "  without the router's groups"
        visits.append((without, f"{traffic.per_token_unlimited:.2f}"))
        sent.append((without, bytes_text(traffic.bytes_per_token_layer_unlimited)))
    visits.append(("  at most", str(traffic.limit)))
    sent.append(("  with a copy for each expert", bytes_text(traffic.bytes_per_token_layer_per_expert)))
    return [*visits, *sent, ("sent over all layers", bytes_text(traffic.bytes_per_token))]
