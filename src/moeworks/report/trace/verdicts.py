"""What a trace's numbers say, in words: each with its threshold, what it likely means, and what to do."""

import numpy as np

from moeworks.analyse.load import DEAD_LOAD
from moeworks.report.trace.meaning import judge_meaning
from moeworks.report.trace.subject import Subject
from moeworks.report.verdict import Verdict
from moeworks.report.words import percent, plural, shortened

UNEVEN, LOPSIDED = 0.5, 1.5
"""MaxVio above these deserves a look; is a problem (as for a training run)."""
FEW_ASSIGNMENTS = 100
"""With a fair share below this an expert may look dead by chance."""
FEW_DOCUMENTS = 20
"""With fewer documents intervals and null bands are rough."""
SWINGS = 2.0
"""Batches this many times as uneven as the whole trace swing between kinds of text."""
DECIDED, UNDECIDED = 0.9, 0.95
"""A first choice with more of the weight than this decides alone; more entropy than this is undecided."""


def judge_trace(subject: Subject) -> list[Verdict]:
    """All verdicts on a trace, problems first; those whose columns are missing are left out."""
    verdicts = [
        *_findings(subject),
        *_size(subject),
        *_dead(subject),
        *_evenness(subject),
        *_batches(subject),
        *_confidence(subject),
        *_overruled(subject),
        *judge_meaning(subject),
    ]
    order = ("problem", "look")
    return sorted(verdicts, key=lambda one: order.index(one.level) if one.level in order else len(order))


def _findings(subject: Subject) -> list[Verdict]:
    findings = subject.inspection.findings
    rule = "By the validator (docs/trace-format.md): ids, order, filler, copied and shifted layers, weights."
    if not findings:
        return [Verdict("good", "The recording is sound: the validator found nothing.", rule)]
    parts = [
        ("" if f.layer is None else f"layer {f.layer}: ") + f"{f.message} ({plural(f.count, 'token')})"
        for f in findings
    ]
    advice = "Mend the recording first: the figures below are those of what was recorded, right or wrong."
    return [Verdict("problem", f"{shortened(parts, 3)}.", rule, advice)]


def _size(subject: Subject) -> list[Verdict]:
    documents = subject.inspection.documents
    if documents >= FEW_DOCUMENTS:
        return []
    text = (
        f"The trace holds {plural(documents, 'document')} only: what varies between texts is not well known."
    )
    rule = f"Under {FEW_DOCUMENTS} documents; intervals and null bands resample whole documents."
    return [Verdict("note", text, rule, "Trace more texts, many short ones rather than a few long ones.")]


def _dead(subject: Subject) -> list[Verdict]:
    load = subject.inspection.analysis.load
    experts, k = subject.inspection.header.num_experts, subject.inspection.header.top_k
    fair = subject.inspection.tokens * k / experts
    rule = f"Dead: under {percent(DEAD_LOAD)} of the fair share, {fair:,.0f} assignments each."
    if not load.dead.any():
        layers = plural(len(subject.layers), "MoE layer")
        every = "the MoE layer" if len(subject.layers) == 1 else f"all {layers}"
        return [Verdict("good", f"No expert is dead in {every}.", rule)]
    parts = [
        f"{name}: {dead} of {experts} experts dead"
        for name, dead in zip(subject.layers, load.dead, strict=True)
        if dead
    ]
    if fair < FEW_ASSIGNMENTS:
        advice = "With so few tokens chance alone leaves experts out. Trace more text before you conclude."
        return [Verdict("note", f"{shortened(parts)}.", rule, advice)]
    advice = (
        "Dead experts are memory without use: the router collapsed early, or these texts lack what they"
        " know. Trace other texts; in training raise the balance loss or the rate of the selection bias, or"
        " start them anew; for serving they can be pruned or kept on slow memory."
    )
    level = "problem" if load.dead.max() > experts / 8 else "look"
    return [Verdict(level, f"{shortened(parts)}.", rule, advice)]


def _evenness(subject: Subject) -> list[Verdict]:
    interval = subject.inspection.analysis.max_vio
    worst = int(np.argmax(interval.estimate))
    value = float(interval.estimate[worst])
    expert = int(np.nanargmax(subject.inspection.experts.load[worst]))
    text = (
        f"The busiest expert of all, {expert} of {subject.layers[worst]}, does {1 + value:.2f} times its fair"
        f" share of the work"
    )
    rule = (
        f"MaxVio {value:.2f} ({interval.level:.0%} interval {interval.low[worst]:.2f} to"
        f" {interval.high[worst]:.2f} over documents); up to {UNEVEN} counts as even, above {LOPSIDED} as"
        " lopsided."
    )
    if value <= UNEVEN:
        return [Verdict("good", f"{text}: the load is even.", rule)]
    advice = (
        "When experts work in parallel all wait for the busiest. If these texts are like the training data,"
        " training balanced too little; if they are special, some skew is knowledge. For serving, replicate"
        " busy experts: moeworks simulate placement."
    )
    if value <= LOPSIDED:
        return [Verdict("look", f"{text}: the load is somewhat uneven.", rule, advice)]
    return [Verdict("problem", f"{text}: the load is lopsided.", rule, advice)]


def _batches(subject: Subject) -> list[Verdict]:
    analysis = subject.inspection.analysis
    if analysis.batch_load.max_vio_of_batch.shape[1] < 2:
        return []
    whole, batch = float(analysis.max_vio.estimate.mean()), float(analysis.batch_load.max_vio.mean())
    rule = (
        f"Mean over layers: MaxVio {batch:.2f} in batches of {analysis.batch_load.batch_tokens:,} tokens,"
        f" {whole:.2f} over all; {SWINGS:g} times as much, and above {UNEVEN}, counts as swinging."
    )
    if batch < SWINGS * whole or batch < UNEVEN:
        return []
    text = "The load is more even over all texts than in any stretch of them: busy experts take turns."
    advice = (
        "Experts specialise in kinds of text. Mix requests in a batch, or let placement follow the traffic."
    )
    return [Verdict("note", text, rule, advice)]


def _confidence(subject: Subject) -> list[Verdict]:
    table = subject.inspection.analysis.confidence
    verdicts = []
    k = subject.inspection.header.top_k
    if table.weight_by_rank is not None and k > 1:
        worst = int(np.argmax(table.weight_by_rank[:, 0]))
        share = float(table.weight_by_rank[worst, 0])
        rule = f"The first choice's mean share of the weight; above {percent(DECIDED)} it decides alone."
        if share > DECIDED:
            text = f"In {subject.layers[worst]} the first choice has {percent(share)} of the weight."
            advice = (
                f"The other {plural(k - 1, 'expert')} of a token cost as much and hardly count: a smaller"
                " top-k would do here, or weights without renormalising."
            )
            verdicts.append(Verdict("look", text, rule, advice))
    if table.entropy is not None:
        worst = int(np.argmax(table.entropy))
        value = float(table.entropy[worst])
        rule = f"Mean entropy of the router's scores over log E; above {UNDECIDED} it hardly decides."
        if value > UNDECIDED:
            text = f"The router of {subject.layers[worst]} is undecided: its scores are nearly all alike."
            advice = (
                f"Relative entropy {value:.2f}. Usual early in training, and in sigmoid routers, whose scores"
                " are near one another. Late in softmax routers it means a too strong balance loss or z-loss,"
                " or inputs that cannot be told apart."
            )
            verdicts.append(Verdict("look", text, rule, advice))
    return verdicts


def _overruled(subject: Subject) -> list[Verdict]:
    overruled = subject.inspection.analysis.confidence.overruled
    if overruled is None or overruled.max() < 0.01:
        return []
    worst = int(np.argmax(overruled))
    text = (
        f"In {subject.layers[worst]} {percent(float(overruled[worst]))} of the tokens get an expert that"
        " their logits would not choose."
    )
    rule = "Negative margins; a selection bias or groups of experts change the choice. From 1 % on."
    advice = (
        "Part of loss-free balancing. Above a half the bias rather than the text chooses: lower its rate."
    )
    return [Verdict("look" if overruled[worst] > 0.5 else "note", text, rule, advice)]
