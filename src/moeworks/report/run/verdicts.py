"""The verdicts on a run: what is judged is taken from its records here, and judged in moeworks.analyse."""

import numpy as np

from moeworks.analyse.verdicts import Verdict
from moeworks.analyse.verdicts.training import (
    judge_memorising,
    judge_preference,
    judge_stretch_load,
    judge_usage,
    judge_validation,
)
from moeworks.analyse.verdicts.words import percent, span
from moeworks.report.run.heat_maps import drawn_domains
from moeworks.report.run.names import layer_names
from moeworks.report.run.run_data import RunData

RECENT_STEPS = 5
"""Logged steps that a last training loss is the mean of."""
STRETCH = 0.1
"""Part of the training, at its end, that the load is judged over."""


def judge_run(run: RunData) -> list[Verdict]:
    """All verdicts on a run, the most general first; those whose data are missing are left out."""
    verdicts = _progress(run) + _validation(run)
    if run.summary is not None and run.train:  # the last periodic validation may be far from the last step
        verdicts += judge_memorising([r.loss for r in run.train[-RECENT_STEPS:]], run.summary.eval.loss)
    if run.moe_layers and run.routing:
        counts, stretch = last_stretch(run)
        verdicts += judge_usage(counts, layer_names(run), stretch)
        verdicts += judge_stretch_load(counts, layer_names(run), stretch)
    if run.moe_layers and run.train:
        verdicts += _dropping(run)
    domains = drawn_domains(run)
    if run.summary is not None and len(domains) > 1:
        counts_by_domain = {name: run.summary.domain_tokens_per_expert[name] for name in domains}
        verdicts += judge_preference(counts_by_domain, layer_names(run))
    return verdicts


def last_stretch(run: RunData) -> tuple[np.ndarray, str]:
    """Assignments [l, E] over the last part of the training, and its steps in words."""
    last = run.routing[-1].step
    records = [record for record in run.routing if record.step > (1 - STRETCH) * last]
    before = [record.step for record in run.routing if record.step < records[0].step]
    counts = np.sum([record.tokens_per_expert for record in records], axis=0)
    return counts, span(before[-1] + 1 if before else 1, last)


def _progress(run: RunData) -> list[Verdict]:
    if run.summary is not None:
        return []
    steps = run.train[-1].step if run.train else 0
    text = f"The run is not finished: {steps:,} of {run.config.train.steps:,} steps are logged."
    return [Verdict("note", text, "There is no summary.json yet; what it would fill is left out below.")]


def _validation(run: RunData) -> list[Verdict]:
    """Periodic validations read the same part of the validation text, the one behind the tile reads all."""
    periodic = run.evals[-1].tokens if run.evals else 0
    text = f"the same {periodic:,} tokens each time" if periodic else "the same text each time"
    found = judge_validation([r.step for r in run.evals], [r.bits_per_byte for r in run.evals], text)
    if run.summary is not None and periodic and run.summary.eval.tokens > periodic:
        whole = run.summary.eval
        note = (
            f" All {whole.tokens:,} tokens of validation text: {whole.bits_per_byte:.3f}, the figure above."
        )
        return [Verdict(one.level, one.text, one.rule + note, one.advice, one.test) for one in found]
    return found


def _dropping(run: RunData) -> list[Verdict]:
    if run.config.model.capacity.capacity_factor is None:
        return []
    last = run.train[-1]
    worst = int(np.argmax(last.dropped))
    rule = f"At step {last.step:,}; a full expert drops tokens because capacity_factor sets a limit."
    if last.dropped[worst] == 0:
        return [Verdict("good", "No expert was full: nothing was dropped.", rule)]
    text = f"Up to {percent(last.dropped[worst])} of the assignments are dropped ({layer_names(run)[worst]})."
    return [Verdict("look", text, rule)]
