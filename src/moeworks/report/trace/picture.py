"""The main figures of a trace as one picture."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from moeworks.report.picture import Drawing, draw_heat, draw_layers, draw_lines, png
from moeworks.report.trace.subject import Subject, drawn_domains


def trace_png(subject: Subject) -> bytes:
    """A PNG. Raises MissingDependencyError without matplotlib."""
    header = subject.inspection.header
    what = f"{subject.choices} of {header.num_experts} experts in {len(header.layers)} MoE layers"
    return png(f"{subject.name}: {what}", _drawings(subject))


def _drawings(subject: Subject) -> Sequence[Drawing]:
    """The map, then what else the trace gives."""
    analysis, layers = subject.inspection.analysis, subject.inspection.header.layers
    repeats, sets = analysis.repeats, analysis.working_sets

    def load(axes: Any) -> None:
        values = subject.inspection.experts.load
        draw_heat(axes, values, subject.layers, "Load of every expert", "load (1 = fair share)")

    def balance(axes: Any) -> None:
        lines = {
            "whole trace": analysis.max_vio.estimate,
            f"batches of {analysis.batch_load.batch_tokens:,} tokens": analysis.batch_load.max_vio,
        }
        draw_lines(axes, layers, lines, "Busiest expert", ("layer", "MaxVio (0 = balanced)"))
        axes.fill_between(layers, analysis.max_vio.low, analysis.max_vio.high, alpha=0.2)
        axes.set_ylim(bottom=0)

    def along(axes: Any) -> None:
        assert repeats is not None
        lines = {
            "neighbours": repeats.repeat_rate.estimate,
            "two tokens of one document": repeats.document_chance,
            "chance by load": repeats.chance,
        }
        draw_lines(axes, layers, lines, "Does the next token keep its experts?", ("layer", "share kept"))
        axes.set_ylim(bottom=0)

    def working(axes: Any) -> None:
        labels = ("tokens in a row", "distinct experts")
        draw_layers(axes, sets.windows, sets.mean, subject.layers, "Working sets", labels)
        axes.plot(sets.windows, sets.uniform, color="#8b929b", linestyle="--", label="even load")
        axes.set_xscale("log", base=2)
        axes.set_xticks(sets.windows, [str(window) for window in sets.windows])

    return [load, balance, *_about_domains(subject), *([along] if repeats else []), working]


def _about_domains(subject: Subject) -> list[Drawing]:
    table, information = subject.inspection.analysis.domains, subject.inspection.analysis.information
    if table is None or information is None:
        return []
    layers = subject.inspection.header.layers
    drawn = drawn_domains(subject)
    # The layer whose experts differ most between domains.
    preference = np.nan_to_num(table.preference(), nan=1.0)[:, :, drawn]
    place = int(np.argmax(preference.std(axis=(1, 2))))

    def reads(axes: Any) -> None:
        names = [subject.domains[number] for number in drawn]
        title = f"Which expert reads what? ({subject.layers[place]})"
        draw_heat(axes, preference[place].T, names, title, "times its share of all text")

    def knows(axes: Any) -> None:
        lines = {"domain, above its null": information.excess()}
        if information.token is not None:
            lines["domain beyond the words"] = information.excess_given_token()
        draw_lines(axes, layers, lines, "Words or topics?", ("layer", "bits per choice"))
        axes.set_ylim(bottom=0)

    return [reads, knows]
