"""What the numbers say, in words. Every verdict states the threshold that it was judged by."""

import numpy as np

from moeworks.analyse.verdicts.words import percent, plural, shortened
from moeworks.report.run.heat_maps import domain_shares, drawn_domains, load_windows
from moeworks.report.run.names import layer_names
from moeworks.report.run.run_data import RunData
from moeworks.report.verdict import Verdict

NEARLY_UNUSED = 0.1
"""An expert with less than this part of its fair share is nearly unused."""
UNEVEN, LOPSIDED = 0.5, 1.5
"""MaxVio above these deserves a look; is a problem."""
STILL_FALLING = 0.01
"""A last validation better by this part than the one before: training was not exhausted."""
MEMORISING = 0.15
"""Validation loss above training loss by more than this part."""
SPECIALISED = 2.0
"""An expert with this many times its share of all text in a domain prefers that domain."""
RECENT_STEPS = 5
"""Logged steps that a last training loss is the mean of."""


def _progress(run: RunData) -> list[Verdict]:
    if run.summary is not None:
        return []
    steps = run.train[-1].step if run.train else 0
    text = f"The run is not finished: {steps:,} of {run.config.train.steps:,} steps are logged."
    return [Verdict("note", text, "There is no summary.json yet; what it would fill is left out below.")]


def _validation(run: RunData) -> list[Verdict]:
    points = [(record.step, record.bits_per_byte) for record in run.evals]
    if len(points) < 2:
        return []
    (first_step, first), (_, before), (last_step, last) = points[0], points[-2], points[-1]
    text = (
        f"Validation went from {first:.3f} (step {first_step:,})"
        f" to {last:.3f} bits per byte (step {last_step:,})"
    )
    rule = f"Judged by the last two validations: {before:.3f}, then {last:.3f}; 1 % is the threshold."
    if last <= (1 - STILL_FALLING) * before:
        return [Verdict("good", f"{text} and was still falling: longer training would probably help.", rule)]
    if last <= before:
        return [Verdict("note", f"{text} and has levelled off.", rule)]
    return [Verdict("look", f"{text}, and the last one is worse than the one before.", rule)]


def _memorising(run: RunData) -> list[Verdict]:
    """Only for finished runs: the last periodic validation may be far from the last logged step."""
    if run.summary is None or not run.train:
        return []
    train = float(np.mean([record.loss for record in run.train[-RECENT_STEPS:]]))
    gap = run.summary.eval.loss / train - 1
    rule = (
        f"Loss on unseen text {run.summary.eval.loss:.3f}, on training text {train:.3f} nats per token"
        f" (mean of the last {RECENT_STEPS} logged steps)."
        f" More than {100 * MEMORISING:.0f} % above would be a warning."
    )
    if gap > MEMORISING:
        return [
            Verdict("look", "The model does clearly better on text it trained on than on unseen text.", rule)
        ]
    return [Verdict("good", "The model does about as well on unseen text as on text it trained on.", rule)]


def _usage(run: RunData) -> list[Verdict]:
    """Nearly unused experts in the last stretch of training."""
    window = load_windows(run)[-1]
    names = layer_names(run)
    idle = (window.load < NEARLY_UNUSED).sum(axis=1)
    num_experts = window.load.shape[1]
    rule = f"Counted over {window.steps}; nearly unused means under {NEARLY_UNUSED:g} of the fair share."
    if not idle.any():
        layers = plural(len(names), "MoE layer")
        return [Verdict("good", f"Every expert is used in {'all ' if len(names) > 1 else ''}{layers}.", rule)]
    parts = [
        f"{name}: {n} of {num_experts} experts {'is' if n == 1 else 'are'} nearly unused"
        for name, n in zip(names, idle, strict=True)
        if n
    ]
    level = "problem" if idle.max() > num_experts / 4 else "look"
    advice = (
        "Memory that hardly works. Early in training it often mends itself; if it stays, raise the balance"
        " loss (--balance.global-batch-coef) or use a selection bias (--balance.bias-rule sign)."
    )
    return [Verdict(level, f"{shortened(parts)}.", rule, advice)]


def _evenness(run: RunData) -> list[Verdict]:
    last = run.train[-1]
    worst = int(np.argmax(last.max_vio))
    value = last.max_vio[worst]
    text = (
        f"The busiest expert of all does {1 + value:.2f} times its fair share of the work"
        f" ({layer_names(run)[worst]}, MaxVio {value:.2f})"
    )
    rule = f"At step {last.step:,}. MaxVio up to {UNEVEN} counts as even, above {LOPSIDED} as lopsided."
    if value <= UNEVEN:
        return [Verdict("good", f"{text}: the load is even.", rule)]
    advice = (
        "When experts work in parallel all others wait for the busiest. It usually falls as training goes on;"
        " more balance (--balance.global-batch-coef, --balance.bias-rule sign) makes it fall sooner."
    )
    if value <= LOPSIDED:
        return [Verdict("look", f"{text}: the load is somewhat uneven.", rule, advice)]
    return [Verdict("problem", f"{text}: the load is lopsided.", rule, advice)]


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


def _specialisation(run: RunData) -> list[Verdict]:
    """The strongest preference of an expert for a domain.

    It is measured against the expert's share of all text, not against the uniform share: a busy expert has a
    large share of every domain without preferring any. Experts with little work on the domain do not count.
    """
    domains = drawn_domains(run)
    if run.summary is None or len(domains) < 2:
        return []
    counts = run.summary.domain_tokens_per_expert
    shares = domain_shares(counts, domains)
    overall = domain_shares({"all": np.sum([counts[name] for name in domains], axis=0)}, ["all"])
    matters = shares >= 1 / shares.shape[-1]
    preference = np.divide(shares, overall, out=np.zeros_like(shares), where=matters)
    place = np.unravel_index(preference.argmax(), shares.shape)
    layer, domain, expert = place
    rule = f"{SPECIALISED:g} times its share of all validation text counts as a preference."
    if preference[place] < SPECIALISED:
        return [Verdict("note", "No expert prefers a kind of text: each works on all of them alike.", rule)]
    text = (
        f"Experts specialise: in {layer_names(run)[layer]}, expert {expert} does {percent(shares[place])}"
        f" of the work on {domains[domain]}, but {percent(overall[layer, 0, expert])} of all the work."
    )
    return [Verdict("note", text, rule)]


def judge_run(run: RunData) -> list[Verdict]:
    """All verdicts on a run, the most general first; those whose data are missing are left out."""
    verdicts = _progress(run) + _validation(run) + _memorising(run)
    if run.moe_layers and run.routing:
        verdicts += _usage(run)
    if run.moe_layers and run.train:
        verdicts += _evenness(run) + _dropping(run)
    return verdicts + _specialisation(run)
