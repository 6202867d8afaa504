"""A MoE layer in training: time over the dense layer of equal active FLOPs, and what uneven routing costs."""

from dataclasses import replace
from functools import partial
from typing import Any

from suite.arms import MATHS, our_arms, peer_arms
from suite.layers import LAYERS, TINY, LayerRun, LayerShape
from suite.peers import DENSE, GROUPED
from suite.registry import Arm, Case, Operation, Sampler, Settings, register
from suite.routing import KINDS, TRACES
from suite.sampling import milliseconds


def layer_cases(settings: Settings) -> list[Case]:
    """Uniform, Zipf and real loads at T 4096 and d 512; then a wider layer, few tokens and many."""
    if settings.quick:
        return [TINY.case()]
    base = [LayerShape(T=4096, D=512, **sizes) for sizes in LAYERS]
    shapes = [replace(shape, routing=kind) for kind in KINDS for shape in base]
    shapes = [shape for shape in shapes if shape.routing != "trace" or shape.E in TRACES]
    changes: list[dict[str, Any]] = [dict(D=1024), dict(T=512), dict(T=16_384)]
    for change in changes:
        shapes += [replace(shape, **change) for shape in base]
    return [shape.case() for shape in shapes]


def _timed(settings: Settings, layer: LayerRun) -> Sampler:
    return Sampler(milliseconds(layer.run, settings), layer.fingerprint)


def layer_arms(case: Case, settings: Settings) -> list[Arm]:
    """Ours and the peers, timed."""
    shape = LayerShape(**case.shape)
    sampled = partial(_timed, settings)
    return [*our_arms(shape, settings, sampled), *peer_arms(shape, settings, sampled)]


register(
    Operation(
        name="layer",
        summary="MoE layer, forward and backward with the router",
        unit="ms",
        reference=DENSE.name,
        cases=layer_cases,
        arms=layer_arms,
    )
)


def skew_cases(settings: Settings) -> list[Case]:
    """The three layers; the routings are arms, side by side."""
    if settings.quick:
        return [TINY.case()]
    return [LayerShape(T=4096, D=512, **sizes).case() for sizes in LAYERS]


def skew_arms(case: Case, settings: Settings) -> list[Arm]:
    """Ours and transformers' default under each routing, each over itself under uniform routing."""
    shape, sampled = LayerShape(**case.shape), partial(_timed, settings)
    arms = []
    for kind in KINDS:
        skewed = replace(shape, routing=kind)
        theirs = peer_arms(skewed, settings, sampled, [GROUPED])
        for arm in [*our_arms(skewed, settings, sampled), *theirs]:
            over = f"{arm.name}, {KINDS[0]}"
            arms.append(replace(arm, name=f"{arm.name}, {kind}", over=over, maths=f"{MATHS}, {kind}"))
    return sorted(arms, key=lambda arm: str(arm.over))


register(
    Operation(
        name="layer_skew",
        summary="The same layer under skewed and real loads, each over itself under uniform routing",
        unit="ms",
        reference=None,
        cases=skew_cases,
        arms=skew_arms,
    )
)
