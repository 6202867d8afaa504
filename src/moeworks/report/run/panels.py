"""Which figures a run gets, with their titles, captions and text alternatives."""

import numpy as np

from moeworks.analyse.verdicts.training import NEARLY_UNUSED
from moeworks.analyse.verdicts.words import percent, plural
from moeworks.report.fragments import Panel
from moeworks.report.lines import MAX_LEGEND, describe_figure
from moeworks.report.run import curves, heat_maps
from moeworks.report.run.heat_maps import LoadWindow, domain_shares, drawn_domains
from moeworks.report.run.run_data import RunData
from moeworks.report.theme import Figure


def _curve(key: str, title: str, caption: str, figure: Figure) -> Panel:
    return Panel(key, title, caption, f"{title}. {describe_figure(figure)}", figure)


def learning_panels(run: RunData) -> list[Panel]:
    """How well the model predicts text."""
    panels = []
    if run.train:
        caption = "How surprised the model is by the next token of the text it trains on. Lower is better."
        panels.append(_curve("loss", "Training loss", caption, curves.draw_loss(run)))
    if run.evals:
        caption = (
            "The same on text it never trains on, per byte, so that tokenizers compare. Lower is better."
        )
        panels.append(_curve("validation", "Validation", caption, curves.draw_validation(run)))
    return panels


def _dead_caption(run: RunData) -> str:
    caption = "Experts with under 1 % of a fair share since the point before; the layers are stacked."
    if not any(sum(record.dead_experts) for record in run.train):
        caption += " There was none at any logged step."
    return caption


def balance_panels(run: RunData) -> list[Panel]:
    """How evenly the experts are used, over training; empty for a dense model."""
    if not run.moe_layers or not run.train:
        return []
    caption = (
        "How far a layer's busiest expert is above its fair share. 0 is perfect, 1 means twice the share."
    )
    if len(run.moe_layers) > MAX_LEGEND:
        caption += " Colours run from the first layer (blue) to the last (pink)."
    panels = [_curve("max_vio", "MaxVio by layer", caption, curves.draw_max_vio(run))]
    panels.append(_curve("dead", "Dead experts", _dead_caption(run), curves.draw_dead_experts(run)))
    if curves.balance_names(run):
        caption = "What training adds to the loss to keep the experts evenly used, before its coefficient."
        panels.append(_curve("balance", "Balance losses", caption, curves.draw_balance(run)))
    caption = "Evenness of the whole layer, not only of its busiest expert: 1 is perfectly even."
    panels.append(_curve("entropy", "Load entropy by layer", caption, curves.draw_load_entropy(run)))
    if any(any(record.dropped) for record in run.train):
        caption = "Assignments that found their expert full and were skipped."
        panels.append(_curve("dropped", "Dropped assignments by layer", caption, curves.draw_dropped(run)))
    return panels


def engine_panels(run: RunData) -> list[Panel]:
    """What the optimizer and the machine did."""
    if not run.train:
        return []
    rate = "The size of the optimizer's steps, as its schedule planned."
    norm = "How strongly the loss pulls at the weights. Spikes are a sign of trouble."
    speed = "Training tokens per second. Dips are other work on the same machine."
    return [
        _curve("learning_rate", "Learning rate", rate, curves.draw_learning_rate(run)),
        _curve("grad_norm", "Gradient norm", norm, curves.draw_grad_norm(run)),
        _curve("speed", "Speed", speed, curves.draw_speed(run)),
    ]


def load_panel(run: RunData, windows: list[LoadWindow]) -> Panel:
    """The layer x expert heat map; `windows` is not empty."""
    caption = (
        "Each row is a layer, each cell an expert. A neutral cell does its fair share, a blue one less,"
        " an orange one more."
    )
    if len(windows) > 1:
        caption += " Move the slider to see how it came about."
    last = windows[-1]
    low, high = np.nanmin(last.load), np.nanmax(last.load)
    alt = (
        f"Heat map of the load of {plural(last.load.shape[1], 'expert')}"
        f" in {plural(len(run.moe_layers), 'MoE layer')}."
        f" Over {last.steps} the load lies between {low:.2f} and {high:.2f} times the fair share,"
        f" and {int((last.load < NEARLY_UNUSED).sum())} are nearly unused. The table below has each layer."
    )
    return Panel("load", "Who does the work?", caption, alt, heat_maps.draw_load(run, windows))


def domain_panel(run: RunData) -> Panel | None:
    """The domain x expert heat map, if the run has counted any domain."""
    domains = drawn_domains(run)
    if run.summary is None or not domains:
        return None
    shares = domain_shares(run.summary.domain_tokens_per_expert, domains)
    left_out = len(run.summary.domain_tokens_per_expert) - len(domains)
    caption = (
        "Each row is a kind of text. An orange cell is an expert that gets more of this text than its even"
        " share, a blue one gets less. Rows that look different mean that the experts have specialised."
    )
    if left_out > 0:
        caption += f" The {plural(len(domains), 'largest domain')} of {len(domains) + left_out} are drawn."
    alt = (
        f"Heat map of {plural(len(domains), 'domain')} by expert, one layer at a time."
        " The table below names the experts that each uses most."
    )
    caption += f" The even share is {percent(1 / shares.shape[-1])}."
    return Panel(
        "domains", "Which expert reads what?", caption, alt, heat_maps.draw_domains(run, domains, shares)
    )
