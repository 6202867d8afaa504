"""Evaluation, batches, padding, the order of time, and capacity."""

import torch
from torch import Tensor, nn

from moeworks.doctor import definitions
from moeworks.doctor.checks_bias import padded
from moeworks.doctor.probes import (
    TOLERANCE,
    changed,
    gap,
    repeats_in_training,
    seeded,
    seeded_output,
    state_of,
)
from moeworks.doctor.subject import Inputs, Subject, Unavailable
from moeworks.doctor.verdict import Outcome, invariant, judge
from moeworks.ops.routing import Routing


@invariant("eval-repeats", "evaluation repeats", 35)
def eval_repeats(subject: Subject) -> Outcome:
    """In evaluation the same input gives the same output, to the last bit, whatever the random numbers:
    noise, random dropping and random second experts belong to training. Measured: the largest difference of
    three calls."""
    model, inputs, outputs = subject.model(), subject.inputs(3), []
    for seed in (1, 2, 3):
        torch.manual_seed(seed)
        with torch.no_grad():
            outputs.append(subject.output(model, inputs))
    difference = max(gap(o, outputs[0]) for o in outputs[1:])
    return judge(all(torch.equal(o, outputs[0]) for o in outputs), f"outputs differ by {difference:.1e}")


@invariant("eval-changes-nothing", "evaluation changes nothing", 22)
def eval_changes_nothing(subject: Subject) -> Outcome:
    """A pass in evaluation changes no parameter and no buffer: no_grad protects no counter. Measured: tensors
    of the model that are not bit for bit as before."""
    model = subject.model()
    before = state_of(model)
    seeded_output(subject, model, subject.inputs(3))
    names = changed(before, model)
    words = f": {', '.join(names[:3])}" if names else ""
    return judge(not names, f"{len(names)} of {len(before)} tensors changed{words}")


@invariant("eval-batch", "rows are independent", 35, 36)
def eval_batch(subject: Subject) -> Outcome:
    """In evaluation a row's output does not depend on the rows beside it: alone, in a batch, or in another
    order, it is the same. Capacities that are counted over a batch break that, so that a served model's
    answer depends on the other users. Measured: the largest relative difference."""
    if subject.claims.drops_in_evaluation:
        raise Unavailable("its config asks for a capacity in evaluation, over the whole batch")
    model, inputs = subject.model(), subject.inputs(5)
    together = seeded_output(subject, model, inputs)
    alone = torch.cat([seeded_output(subject, model, inputs.rows(slice(i, i + 1))) for i in range(5)])
    turned = seeded_output(subject, model, Inputs(inputs.values.flip(0))).flip(0)
    difference = max(gap(alone, together), gap(turned, together))
    return judge(difference < TOLERANCE, f"outputs differ by {difference:.1e}")


@invariant("padding", "padding has no effect", 14, 37)
def padding(subject: Subject) -> Outcome:
    """Padding behind a row changes nothing for its tokens: not their outputs, not their experts, and under a
    capacity it takes no place. Measured: the relative change of the valid tokens' outputs, in evaluation, and
    in training where that repeats."""
    batch, words, holds = subject.inputs(3, length=10), [], True
    for name, model in _modes(subject):
        plain = seeded_output(subject, model, batch)
        with_padding = seeded_output(subject, model, padded(batch))[:, : plain.shape[1]]
        difference = gap(with_padding, plain)
        holds = holds and difference < TOLERANCE
        words.append(f"{name} {difference:.1e}")
    return judge(holds, "outputs change by: " + ", ".join(words))


@invariant("causality", "no look at later tokens", 38)
def causality(subject: Subject) -> Outcome:
    """What a position gives does not depend on later tokens, through routing either: experts that choose
    their tokens, or capacities that go to the most probable ones, tell earlier tokens about later ones;
    such a model looks better in training than it can be when it writes. Measured: the change of the first
    half's outputs when the second half is replaced, in evaluation, and in training where that repeats."""
    if not subject.claims.causal:
        raise Unavailable("it reads in both directions")
    whole, other = subject.inputs(1, length=16), subject.inputs(1, length=16, seed=8)
    mixed = Inputs(torch.cat([whole.values[:, :8], other.values[:, 8:]], dim=1))
    words, holds = [], True
    for name, model in _modes(subject):
        claims = subject.claims
        if name == "training" and claims.capacity_factor and claims.drop_policy != "position":
            words.append("training: drops by probability over the batch, as its config asks")
            continue
        difference = gap(
            seeded_output(subject, model, mixed)[:, :8], seeded_output(subject, model, whole)[:, :8]
        )
        holds = holds and difference < TOLERANCE
        words.append(f"{name} {difference:.1e}")
    return judge(holds, "first half changes by: " + ", ".join(words))


def _modes(subject: Subject) -> list[tuple[str, nn.Module]]:
    """Evaluation, and training if it does the same for every random seed."""
    model = subject.model().train()
    modes = [("evaluation", subject.model())]
    return [*modes, ("training", model)] if repeats_in_training(subject, model) else modes


@invariant("capacity", "capacity is kept to", 13, 31, 32)
def capacity(subject: Subject) -> Outcome:
    """Where there is a capacity, an expert takes ceil(factor * tokens * k / experts) assignments at most,
    none is dropped while there is room, those that go are the last ones (or the least probable, if so
    configured), and a dropped assignment contributes nothing. Measured: assignments whose fate differs from
    that."""
    claims = subject.claims
    if claims.capacity_factor is None:
        raise Unavailable("it is dropless")
    model, inputs = subject.model().train(), subject.inputs(6)
    wrong = total = dropped = 0
    seen = seeded(subject, model, inputs)
    for routing in seen.routings:
        if routing.kept_TK is None:
            return judge(False, "a capacity is configured and nothing is marked as kept or dropped")
        wanted_TK = _kept(routing, subject)
        wrong += int((routing.kept_TK != wanted_TK).sum())
        dropped += int((~wanted_TK).sum())
        total += wanted_TK.numel()
    leaks = _leaks(subject, model, inputs, seen.output.detach(), seen.routings)
    words = f"{wrong} of {total} assignments differ, {dropped} have to be dropped; {leaks}"
    return judge(wrong == 0 and not leaks.startswith("dropped ones"), words)


def _kept(routing: Routing, subject: Subject) -> Tensor:
    """bool [T, K], one assignment after the other."""
    claims = subject.claims
    tokens, slots = routing.expert_ids_TK.shape
    limit = definitions.capacity(tokens * slots, routing.num_experts, claims, tokens)
    order = [(t, k) for t in range(tokens) for k in range(slots)]
    probs = routing.router_probs_TE.detach().gather(1, routing.expert_ids_TK).tolist()
    if claims.drop_policy == "probability":
        order.sort(key=lambda tk: -probs[tk[0]][tk[1]])
    elif claims.drop_policy == "batch_priority":
        order.sort(key=lambda tk: (tk[1], -max(probs[tk[0]])))
    room = [limit] * routing.num_experts
    kept_TK = torch.zeros(tokens, slots, dtype=torch.bool)
    for t, k in order:
        expert = int(routing.expert_ids_TK[t, k])
        kept_TK[t, k] = room[expert] > 0
        room[expert] -= 1
    return kept_TK


def _leaks(
    subject: Subject, model: nn.Module, inputs: Inputs, plain: Tensor, routings: tuple[Routing, ...]
) -> str:
    """Whether a token whose assignment to an expert was dropped still feels that expert's weights."""
    if plain.shape != inputs.values.shape:
        return "what they contribute is seen in a lone layer only"
    routing, block = routings[0], subject.blocks(model)[0]
    assert routing.kept_TK is not None
    felt = looked = 0
    for expert in range(block.num_experts):
        lost = ((routing.expert_ids_TK == expert) & ~routing.kept_TK).any(1)
        for tensor in block.experts:
            with torch.no_grad():
                tensor.of(expert).mul_(-2).add_(0.1)
        output = seeded_output(subject, model, inputs).flatten(0, 1)
        for tensor in block.experts:
            with torch.no_grad():
                tensor.of(expert).sub_(0.1).div_(-2)
        close = (output - plain.flatten(0, 1)).abs().amax(1) <= 1e-5 * plain.abs().max()
        felt, looked = felt + int((lost & ~close).sum()), looked + int(lost.sum())
    return f"dropped ones contribute in {felt} of {looked}" if felt else f"{looked} contribute nothing"
