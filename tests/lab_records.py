"""Cells of labs that nobody trained: records with given losses and metrics."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from moeworks.labs.lab import Lab
from moeworks.labs.results import Results

DOCUMENTS = 40
POINTS = 4
_SIGNS = ((1, -1, 1, -1), (1, 1, -1, -1), (1, -1, -1, 1))


def record(
    arm: str,
    seed: int,
    bits: float | None,
    metrics: Mapping[str, float] | None = None,
    layers: Mapping[str, list[float]] | None = None,
    *,
    flops: int = 1000,
    experts: int = 4,
) -> dict[str, Any]:
    """A record as run_cell makes it, of `bits` per byte; None is a cell that diverged."""
    sizes = np.random.default_rng(0).integers(100, 2000, DOCUMENTS)
    nats = None if bits is None else (bits * math.log(2) * sizes).tolist()
    steps = [5 * (point + 1) for point in range(POINTS)]
    counts = [[[10 + seed + e + layer for e in range(experts)] for layer in range(2)] for _ in steps]
    figures = {name: [0.5, 0.25] for name in ("max_vio", "dead", "load_entropy", "dropped")}
    signal = {name: [0.2, 0.1] for name in ("signal_to_noise", "router_entropy", "margin", "top_directions")}
    return {
        "format": 1,
        "lab": "made up",
        "arm": arm,
        "seed": seed,
        "key": f"{arm}{seed}",
        "environment": {},
        "count": {"parameters": 10, "active": 5, "flops": flops, "steps": 20, "tokens": 640},
        "diverged": {"step": 3, "message": "not finite"} if bits is None else None,
        "documents": None if nats is None else {"nats": nats, "bytes": sizes.tolist()},
        "metrics": {"cpu_seconds": 1.5, "diverged": float(bits is None), **(metrics or {})},
        "layers": dict(layers or {}),
        "curve": [
            {"step": s, "tokens": 32 * s, "cpu_seconds": 0.1 * s, "train_loss": 4.0, "loss": 4.0 - 0.1 * s}
            for s in steps
        ],
        "load": [{"step": s, "counts": c, **figures} for s, c in zip(steps, counts, strict=True)],
        "signal": [{"step": s, **signal} for s in steps],
    }


def results(
    lab: Lab,
    bits: Mapping[str, float | None] | None = None,
    metrics: Mapping[str, Mapping[str, float]] | None = None,
    layers: Mapping[str, Mapping[str, list[float]]] | None = None,
    *,
    noise: float = 0.0005,
    seeds: int = 4,
) -> Results:
    """Results of every arm of `lab`: 2 bits per byte and no metrics but those given, and noise on both.

    The noise of an arm, and of a difference of arms, is 0 in its mean over seeds.
    """
    records = []
    for place, arm in enumerate(lab.arms):
        loss = (bits or {}).get(arm.name, 2.0)
        for seed in range(seeds):
            noisy = noise * (1 + place) * _SIGNS[place % 3][seed % 4]
            own = {n: v and v + noisy for n, v in (metrics or {}).get(arm.name, {}).items()}
            per_layer = {
                name: [value + noisy * layer for layer, value in enumerate(values)]
                for name, values in (layers or {}).get(arm.name, {}).items()
            }
            records.append(record(arm.name, seed, None if loss is None else loss + noisy, own, per_layer))
    return Results(records, [arm.name for arm in lab.arms], lab.baseline)
