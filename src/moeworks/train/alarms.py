"""Alarms: what is judged at a line of metrics, when one is raised and when it ends.

A figure's badness is 1 at its threshold and grows as it gets worse. An alarm is raised after `patience` bad
lines in a row (badness >= 1) and ends after as many good ones (badness < release); lines in between start the
count anew, and lines where a figure cannot be judged change nothing. Both are reported once; the state is
part of the checkpoint.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from moeworks.config import AlarmConfig, RunConfig
from moeworks.config.pools import domain_types
from moeworks.ops.load import DEAD_LOAD, breadth, load_figures
from moeworks.ops.pools import fair_loads

ENOUGH = 50.0
"""Assignments per expert, on average, that a line must have counted before a load is judged: with fewer, an
expert that does its fair share could look dead by chance."""


@dataclass(frozen=True, eq=False)
class Figures:
    """Figures of the steps since the previous line of metrics; l counts MoE layers."""

    counts_lE: Tensor
    """int64 [layers, E]: assignments."""
    logit_size_l: Tensor
    """[layers]: mean over tokens of the largest absolute logit."""
    bias_spread_l: Tensor | None
    """[layers]: largest minus smallest expert_bias; None for routers without."""
    domain_counts: Tensor | None
    """int64 [domains, layers, E]; None where there is one domain, or too many."""
    attention_counts: tuple[Tensor, ...] = ()
    """int64 [E] per layer with a mixture of attention: assignments of its own experts."""
    attention_logit_size_l: Tensor = field(default_factory=lambda: torch.zeros(0))
    """Largest absolute router logit, averaged over tokens, of each layer with a mixture of attention."""


@dataclass(frozen=True)
class Reading:
    """One figure of one layer, and of one domain, beside its threshold."""

    alarm: str
    layer: int
    """Index of the layer in the model."""
    domain: str
    """"" for alarms that are not of a domain."""
    value: float
    badness: float
    part: str = ""
    """"attention" for a mixture of attention, "" for the layer's MoE."""

    @property
    def key(self) -> str:
        """Key of this figure in AlarmState."""
        return "/".join((self.alarm, str(self.layer), self.domain, *([self.part] if self.part else [])))

    @property
    def place(self) -> str:
        """The layer in words."""
        return f"the mixture of attention of layer {self.layer}" if self.part else f"layer {self.layer}"


@dataclass(frozen=True)
class AlarmState:
    """Alarms that are on, and the number of consecutive lines that contradict the state of each figure."""

    active: frozenset[str] = frozenset()
    streaks: Mapping[str, int] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The state as JSON, for the checkpoint."""
        return {"active": sorted(self.active), "streaks": dict(sorted(self.streaks.items()))}

    @classmethod
    def from_json(cls, saved: Mapping[str, Any]) -> "AlarmState":
        """The state that `to_json` wrote; an empty state for a checkpoint without alarms."""
        return cls(frozenset(saved.get("active", ())), dict(saved.get("streaks", {})))


def advance(
    state: AlarmState, badness: Mapping[str, float], config: AlarmConfig
) -> tuple[AlarmState, list[str], list[str]]:
    """The state after one line, and the keys that it raises and ends."""
    active, streaks = set(state.active), dict(state.streaks)
    raised, ended = [], []
    for key, bad in badness.items():
        against = bad < config.release if key in active else bad >= 1
        streak = streaks.pop(key, 0) + 1 if against else 0
        if streak < config.patience:
            streaks.pop(key, None)
            if streak:
                streaks[key] = streak
        elif key in active:
            active.remove(key)
            ended.append(key)
        else:
            active.add(key)
            raised.append(key)
    return AlarmState(frozenset(active), streaks), raised, ended


# The figures that are judged.


def read_figures(figures: Figures, config: RunConfig, domains: Sequence[str]) -> list[Reading]:
    """Every figure that can be judged now."""
    alarms, top_k = config.alarms, config.model.router.top_k
    layers = config.model.moe_layers
    counts_lE = figures.counts_lE
    readings: list[Reading] = []

    def add(alarm: str, values: Sequence[float], bad: Callable[[float], float], domain: str = "") -> None:
        for layer, value in zip(layers, values, strict=True):
            readings.append(Reading(alarm, layer, domain, value, bad(value)))

    pools = _pools_of(config, domains)
    if pools:
        breadth_l, dead = _in_pools(figures, pools, top_k)
    else:
        breadth_l, dead = breadth(counts_lE, top_k).tolist(), load_figures(counts_lE).dead_experts
    if alarms.breadth and breadth_l and counts_lE.numel() and _enough(counts_lE[0]):
        add("route_collapse", breadth_l, _below(alarms.breadth))
    if alarms.dead_share and dead and counts_lE.numel() and _enough(counts_lE[0]):
        add("dying_experts", [n / counts_lE.shape[1] for n in dead], _above(alarms.dead_share))
    # A router without scores has placeholder logits whose softmax is exactly its choice: not a logit size.
    if alarms.logit_size and config.model.router.choice.linear:
        add("exploding_logits", figures.logit_size_l.tolist(), _above(alarms.logit_size))
    if alarms.bias_spread and figures.bias_spread_l is not None:
        add("bias_runaway", figures.bias_spread_l.tolist(), _above(alarms.bias_spread))
    if alarms.domain_breadth and figures.domain_counts is not None:
        for number, (domain, own_lE) in enumerate(zip(domains, figures.domain_counts, strict=True)):
            own_lE = own_lE[:, pools[number]] if pools else own_lE
            if _enough(own_lE[0]):
                own = breadth(own_lE, top_k).tolist()
                # A collapsed layer starves every domain; route_collapse alone reports that.
                own = [1.0 if whole < alarms.breadth else b for b, whole in zip(own, breadth_l, strict=True)]
                add("domain_starvation", own, _below(alarms.domain_breadth), domain)
    return readings + _attention_readings(figures, config)


def _attention_readings(figures: Figures, config: RunConfig) -> list[Reading]:
    """The figures of mixtures of attention that can be judged now."""
    alarms, readings = config.alarms, []
    sizes = figures.attention_logit_size_l.tolist()
    for place, (layer, mixer) in enumerate(config.model.mixtures_of_attention):
        values: list[tuple[str, float, Callable[[float], float]]] = []
        if place < len(figures.attention_counts) and _enough(figures.attention_counts[place]):
            counts_lE = figures.attention_counts[place][None]
            if alarms.breadth:
                values.append(
                    ("route_collapse", *breadth(counts_lE, mixer.top_k).tolist(), _below(alarms.breadth))
                )
            if alarms.dead_share:
                dead = load_figures(counts_lE).dead_experts[0] / mixer.num_experts
                values.append(("dying_experts", dead, _above(alarms.dead_share)))
        if alarms.logit_size and place < len(sizes):
            values.append(("exploding_logits", sizes[place], _above(alarms.logit_size)))
        readings += [Reading(name, layer, "", value, bad(value), "attention") for name, value, bad in values]
    return readings


def _pools_of(config: RunConfig, domains: Sequence[str]) -> list[list[int]]:
    """The experts that each domain may use; empty if every domain may use all of them."""
    pools = config.model.router.pool_experts
    return [list(pools[kind]) for kind in domain_types(config.model.router, domains)]


def _in_pools(
    figures: Figures, pools: Sequence[Sequence[int]], top_k: int
) -> tuple[list[float], Sequence[int]]:
    """Per layer the least breadth of a pool, and the dead experts, beside fair loads (moeworks.ops.pools).

    Nothing where domains are not counted. Domains of one pool count together.
    """
    if figures.domain_counts is None:
        return [], []
    distinct = sorted({tuple(pool) for pool in pools})
    places = torch.tensor(
        [distinct.index(tuple(pool)) for pool in pools], device=figures.domain_counts.device
    )
    counts_PlE = figures.domain_counts.new_zeros(len(distinct), *figures.counts_lE.shape)
    counts_PlE.index_add_(0, places, figures.domain_counts)
    least = [1.0] * len(figures.counts_lE)
    for counts_lE, pool in zip(counts_PlE, distinct, strict=True):
        if _enough(counts_lE[0, list(pool)]):
            own = breadth(counts_lE[:, list(pool)], top_k).tolist()
            least = [min(pair) for pair in zip(least, own, strict=True)]
    dead = []
    for counts_PE in counts_PlE.unbind(dim=1):
        fair_E, times = fair_loads(counts_PE, distinct)
        dead.append(int((counts_PE.sum(dim=0) * times < DEAD_LOAD * fair_E).sum()))
    return least, dead


def _enough(counts_E: Tensor) -> bool:
    return float(counts_E.sum()) / counts_E.numel() >= ENOUGH


def _above(threshold: float) -> Callable[[float], float]:
    return lambda value: value / threshold


def _below(threshold: float) -> Callable[[float], float]:
    return lambda value: threshold / value if value > 0 else math.inf


# The records that are written.


def alarm_records(
    state: AlarmState, figures: Figures, config: RunConfig, domains: Sequence[str], step: int
) -> tuple[AlarmState, list[dict[str, Any]]]:
    """The state after a line at `step`, and a record for each alarm that was raised or has ended.

    Layers that raise the same alarm at the same line share a record.
    """
    if step <= config.alarms.grace_steps or not (figures.counts_lE.numel() or figures.attention_counts):
        return state, []
    readings = read_figures(figures, config, domains)
    state, raised, ended = advance(state, {r.key: r.badness for r in readings}, config.alarms)
    records = []
    for word, keys in (("raised", set(raised)), ("ended", set(ended))):
        groups: dict[tuple[str, str, str], list[Reading]] = {}
        for reading in readings:
            if reading.key in keys:
                groups.setdefault((reading.alarm, reading.domain, reading.part), []).append(reading)
        records += [_record(step, word, group, config) for group in groups.values()]
    return state, records


def _record(step: int, word: str, group: list[Reading], config: RunConfig) -> dict[str, Any]:
    name, domain = group[0].alarm, group[0].domain
    kind = KINDS[name]
    layers, values = [r.layer for r in group], [round(r.value, 4) for r in group]
    worst = max(group, key=lambda r: r.badness)
    record: dict[str, Any] = {
        "kind": "alarm",
        "step": step,
        "alarm": name,
        "state": word,
        "layers": layers,
        "domain": domain,
        "values": values,
        "threshold": getattr(config.alarms, kind.threshold),
        "text": kind.text(worst, config),
    }
    if worst.part:
        record["part"] = worst.part
    if word == "raised":
        record |= {"cause": kind.cause, "knob": kind.knob(config)}
    return record


@dataclass(frozen=True)
class AlarmKind:
    """The words of one alarm."""

    threshold: str
    """Field of AlarmConfig with the threshold."""
    text: Callable[[Reading, RunConfig], str]
    """Description of what the worst layer does."""
    cause: str
    """Most likely cause."""
    knob: Callable[[RunConfig], str]
    """Setting to change."""


def _effective(reading: Reading, config: RunConfig) -> str:
    """Breadth as a number of effective experts, in words."""
    router = config.model.router
    top_k, experts = router.top_k, router.num_routes
    if reading.part:
        mixer = dict(config.model.mixtures_of_attention)[reading.layer]
        top_k, experts = mixer.top_k, mixer.num_experts
    elif router.pools:
        return f"{reading.value:.0%} of the choice that its pool of experts offers"
    return f"{top_k + reading.value * (experts - top_k):.1f} of {experts} experts"


def _more_balance(config: RunConfig) -> str:
    balance = config.balance
    if balance.bias_rule != "none":
        return f"raise balance.bias_rate (now {balance.bias_rate:g}), or lower optimizer.lr"
    return (
        f"raise balance.global_batch_coef (now {balance.global_batch_coef:g}), or lower optimizer.lr (now"
        f" {config.optimizer.lr:g})"
    )


KINDS: Mapping[str, AlarmKind] = {
    "route_collapse": AlarmKind(
        "breadth",
        lambda r, c: f"{r.place} works as if it had {_effective(r, c)}",
        "experts that win early learn more and win more often; balancing is off or too weak, or the learning"
        " rate too high for the router",
        _more_balance,
    ),
    "dying_experts": AlarmKind(
        "dead_share",
        lambda r, c: f"{r.value:.0%} of the experts of {r.place} do under 1 % of their fair share",
        "an expert that is not chosen gets no gradient and stays as it is while the others improve",
        _more_balance,
    ),
    "exploding_logits": AlarmKind(
        "logit_size",
        lambda r, c: f"the largest router logit of a token of {r.place} is {r.value:.1f} on average",
        "nothing holds the logits: the router grows ever surer of itself, until rounding decides",
        lambda c: f"set balance.z_coef to 1e-3 or more (now {c.balance.z_coef:g}), or lower optimizer.lr",
    ),
    "bias_runaway": AlarmKind(
        "bias_spread",
        lambda r, c: f"the expert_bias of layer {r.layer} spreads over {r.value:.2f}",
        "the bias moves on without reaching balance: its steps are too large, or the scores answer to nothing"
        " it does",
        lambda c: (
            f"lower balance.bias_rate (now {c.balance.bias_rate:g}), set balance.bias_recentre, or help with"
            " balance.sequence_coef"
        ),
    ),
    "domain_starvation": AlarmKind(
        "domain_breadth",
        lambda r, c: f"the tokens of {r.domain!r} use {_effective(r, c)} in layer {r.layer}",
        "the domain is rare, or so unlike the others that its tokens all look the same to the router",
        lambda c: (
            f"set balance.sequence_coef (now {c.balance.sequence_coef:g}): it spreads the tokens of each text"
            " over the experts; or give the domain a larger share of the data"
        ),
    ),
}
"""Every alarm by name."""
