"""Heat maps of expert load: layer x expert over training, and domain x expert layer by layer."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from moeworks.analyse.load import relative_load
from moeworks.analyse.verdicts.words import percent, span
from moeworks.report.fragments import inert
from moeworks.report.heat_map import colorbar, heat_map, row_height, rows
from moeworks.report.run.names import expert_names, layer_names
from moeworks.report.run.run_data import RunData
from moeworks.report.theme import SATURATION, Figure

MAX_FRAMES = 60
"""Positions of the slider over training."""
MAX_CELLS = 200_000
"""Cells of one figure over all its frames; about 5 bytes each in the page."""
MAX_DOMAINS = 40
"""Domains drawn, largest first."""


@dataclass(frozen=True)
class LoadWindow:
    """Assignments per expert over a range of steps: int64 [MoE layers, E]."""

    first_step: int
    last_step: int
    tokens_per_expert: np.ndarray

    @property
    def load(self) -> np.ndarray:
        """Load relative to the balanced share, float64 [MoE layers, E]: 1.0 is the fair share.

        NaN in a layer that saw no token.
        """
        return relative_load(self.tokens_per_expert)

    @property
    def steps(self) -> str:
        return span(self.first_step, self.last_step)


def load_windows(run: RunData, limit: int = MAX_FRAMES) -> list[LoadWindow]:
    """The routing counts of a run, neighbours added up so that at most `limit` windows cover every step.

    The number also falls for very large models, to keep the page small.
    """
    if not run.routing:
        return []
    cells = run.routing[0].tokens_per_expert.size
    count = min(len(run.routing), limit, max(2, MAX_CELLS // cells))
    windows, done = [], 0
    for part in np.array_split(np.arange(len(run.routing)), count):
        records = run.routing[part[0] : part[-1] + 1]
        total = np.sum([record.tokens_per_expert for record in records], axis=0)
        windows.append(LoadWindow(done + 1, records[-1].step, total))
        done = records[-1].step
    return windows


def draw_load(run: RunData, windows: Sequence[LoadWindow]) -> Figure:
    """Load of every expert in every MoE layer, a frame per window, opened at the last one.

    z is the load relative to the balanced share, to two decimals.
    """
    frames = [{"name": w.steps, "data": [{"type": "heatmap", "z": rows(w.load, 2)}]} for w in windows]
    experts = expert_names(run, windows[0].tokens_per_expert.shape[1])
    return heat_map(
        experts,
        layer_names(run),
        frames,
        frames[-1],
        130 + len(run.moe_layers) * row_height(len(run.moe_layers)),
        zmin=0,
        zmax=SATURATION,
        hovertemplate="Expert %{x} of %{y}<br>works %{z:.2f} times its fair share<extra></extra>",
        colorbar=colorbar("load (1 = fair share)", (0, 1, 2, 3), ("0", "1", "2", "3 +")),
    )


def drawn_domains(run: RunData) -> list[str]:
    """Names of the domains in the heat map: the largest by assignments, as many as the page has room for."""
    if run.summary is None or not run.moe_layers:
        return []
    counts = run.summary.domain_tokens_per_expert
    used = {name: int(matrix.sum()) for name, matrix in counts.items() if matrix.sum() > 0}
    cells = max((matrix.size for matrix in counts.values()), default=1)
    room = min(MAX_DOMAINS, max(4, MAX_CELLS // cells))
    return sorted(used, key=lambda name: (-used[name], name))[:room]


def domain_shares(counts: dict[str, np.ndarray], domains: Sequence[str]) -> np.ndarray:
    """Share of a domain's assignments in a layer that go to an expert: float64 [MoE layers, domains, E].

    Each row sums to 1; without preference every value is 1 / E.
    """
    loads = np.stack([relative_load(counts[name]) for name in domains], axis=1)
    return loads / loads.shape[-1]


def draw_domains(run: RunData, domains: Sequence[str], shares: np.ndarray) -> Figure:
    """Domain x expert, a frame per MoE layer. z is a percentage; neutral is the uniform 100 / E."""
    frames = [
        {"name": name, "data": [{"type": "heatmap", "z": rows(100 * layer, 2)}]}
        for name, layer in zip(layer_names(run), shares, strict=True)
    ]
    uniform = 1 / shares.shape[-1]
    ticks = [100 * uniform * n for n in range(4)]
    texts = ["0", *(percent(n * uniform) for n in (1, 2)), f"{percent(3 * uniform)} +"]
    return heat_map(
        expert_names(run, shares.shape[-1]),
        [inert(name) for name in domains],
        frames,
        frames[0],
        150 + len(domains) * row_height(len(domains)),
        zmin=0,
        zmax=SATURATION * 100 * uniform,
        hovertemplate="%{z:.1f} % of the work on %{y}<br>goes to expert %{x}"
        f"<br>(spread evenly it would be {percent(uniform)})<extra></extra>",
        colorbar=colorbar("share of the assignments", ticks, texts),
    )
