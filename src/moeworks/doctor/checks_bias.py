"""The selection bias of loss-free balancing."""

import torch
from torch import Tensor, nn

from moeworks.doctor.probes import blocks_with_bias, gap, same_choice, seeded
from moeworks.doctor.subject import Inputs, Subject, Unavailable
from moeworks.doctor.verdict import Outcome, failed, invariant, judge
from moeworks.ops.routing import Routing


@invariant("bias-not-in-weights", "bias stays out of the weights", 2)
def bias_not_in_weights(subject: Subject) -> Outcome:
    """The selection bias decides who is chosen and never enters the mixing weights: a token that keeps its
    experts keeps their weights. Where the bias leaks, balancing distorts the model. Measured: after random
    changes of one layer's bias, the largest relative change of weights among tokens with the same experts."""
    model, inputs = subject.model(), subject.inputs(8)
    worst, kept = 0.0, 0
    for number, _, bias in _ends(blocks_with_bias(subject, model)):
        before = seeded(subject, model, inputs).routings[number]
        original = bias.detach().clone()
        for size in (0.3, 0.1, 0.03, 0.01, 0.003):
            with torch.no_grad():
                bias.copy_(original + size * torch.randn_like(original))
            after = seeded(subject, model, inputs).routings[number]
            same = same_choice(before, after)
            if same.sum() >= 8:
                break
        with torch.no_grad():
            bias.copy_(original)
        kept += int(same.sum())
        if same.any():
            worst = max(worst, gap(_by_expert(after)[same], _by_expert(before)[same]))
    if not kept:
        raise Unavailable("every token changed its experts, however small the change of the bias")
    return judge(worst < 1e-3, f"weights of {kept} tokens that keep their experts change by {worst:.1e}")


def _by_expert(routing: Routing) -> Tensor:
    """float [T, E]: weights, 0 for experts that are not chosen."""
    empty = torch.zeros_like(routing.router_logits_TE)
    return empty.scatter(1, routing.expert_ids_TK, routing.routing_weights_TK.to(empty)).detach()


def _ends(blocks: list) -> list:
    """The first and the last."""
    return blocks if len(blocks) <= 2 else [blocks[0], blocks[-1]]


@invariant("bias-shift", "a constant added to all biases does nothing", 3)
def bias_shift(subject: Subject) -> Outcome:
    """Adding one constant to every selection bias changes no choice. Where losing groups (or padding) are
    masked with 0 instead of -inf, they win as soon as the biased scores of the others are negative. Measured:
    the share of tokens that change experts with -2 and with +2, in the first and last layer."""
    model, inputs = subject.model(), subject.inputs(8)
    changed = total = 0
    for number, _, bias in _ends(blocks_with_bias(subject, model)):
        before = seeded(subject, model, inputs).routings[number]
        for shift in (-2.0, 2.0):
            with torch.no_grad():
                bias.add_(shift)
            after = seeded(subject, model, inputs).routings[number]
            with torch.no_grad():
                bias.sub_(shift)
            changed += int((~same_choice(before, after)).sum())
            total += len(after.expert_ids_TK)
    return judge(changed <= 0.01 * total, f"{changed} of {total} choices change")


@invariant("bias-selects", "bias decides the choice", 7, every_expert=True)
def bias_selects(subject: Subject) -> Outcome:
    """A very large selection bias makes every token choose that expert; otherwise the bias is not read where
    experts are chosen, and balancing has no handle. Measured: the share of tokens that choose an expert
    whose bias was raised by 100."""
    model, inputs = subject.model(), subject.inputs(4)
    took = total = 0
    for number, block, bias in _ends(blocks_with_bias(subject, model)):
        for expert in {0, block.num_experts - 1}:
            original = bias.detach().clone()
            with torch.no_grad():
                bias.view(-1)[expert] += 100
            routing = seeded(subject, model, inputs).routings[number]
            with torch.no_grad():
                bias.copy_(original)
            took += int((routing.expert_ids_TK == expert).any(1).sum())
            total += len(routing.expert_ids_TK)
    return judge(took == total, f"{took} of {total} tokens choose it")


@invariant("bias-float32", "bias stays float32", 5)
def bias_float32(subject: Subject) -> Outcome:
    """The selection bias is float32 after the model is cast to bfloat16, to the last bit. In bfloat16 a few
    hundred distinct biases become a handful, and most tokens change experts. Measured: dtype and largest
    change of the bias after `.bfloat16()`."""
    model = subject.model()
    exact = []
    for _, _, bias in blocks_with_bias(subject, model):
        with torch.no_grad():
            bias.copy_(8 + 1e-4 * torch.arange(bias.numel()).view_as(bias))
        exact.append(bias.detach().clone())
    model.bfloat16()
    found = [bias for _, _, bias in blocks_with_bias(subject, model)]
    error = max((f.float() - e).abs().max().item() for f, e in zip(found, exact, strict=True))
    distinct = found[0].unique().numel()
    words = f"{str(found[0].dtype).removeprefix('torch.')}, off by at most {error:.1e}"
    return judge(error == 0, f"{words}; {distinct} distinct values of {exact[0].numel()}")


@invariant("bias-moves", "bias is trained", 23)
def bias_moves(subject: Subject) -> Outcome:
    """A training step moves the selection bias of every layer against the load: up where an expert had less
    than its share, down where more. A model that has the bias and no rule that moves it trains without any
    balancing. Measured: the change in a step, and its correlation with the missing load."""
    _needs_trained_bias(subject)
    model, batch = subject.model().train(), subject.inputs(4)
    _zero(subject, model)
    loads = [r.tokens_per_expert().double() for r in seeded(subject, model, batch).routings]
    steps = _step_of(subject, model, [batch])
    if not any(s.any() for s in steps):
        return failed("frozen: a training step leaves every bias as it was")
    agreements = []
    for step, load in zip(steps, loads, strict=True):
        missing = load.mean() - load
        agreements.append((torch.corrcoef(torch.stack([step.double(), missing]))[0, 1]).item())
    worst = min(0.0 if a != a else a for a in agreements)  # a layer that stayed has no correlation
    size = max(s.abs().max().item() for s in steps)
    return judge(worst > 0.3, f"moves by up to {size:.1e}; correlation with the missing load {worst:.2f}")


@invariant("bias-per-step", "bias moves once per step", 24)
def bias_per_step(subject: Subject) -> Outcome:
    """The selection bias moves once per optimizer step, by the counts of all its micro-batches: the same step
    in one piece and in two moves it equally. Measured: the largest difference as a share of the move."""
    _needs_trained_bias(subject)
    batch = subject.inputs(4)
    whole = _moved(subject, [batch])
    parts = _moved(subject, [batch.rows(slice(0, 2)), batch.rows(slice(2, 4))])
    return _same_move(parts, whole)


@invariant("bias-padding", "padding moves no bias", 14)
def bias_padding(subject: Subject) -> Outcome:
    """Padding counts in no load: a step on the same tokens with padding behind them moves the selection bias
    by the same. Measured: the largest difference as a share of the move."""
    _needs_trained_bias(subject)
    batch = subject.inputs(2, length=10)
    return _same_move(_moved(subject, [padded(batch)]), _moved(subject, [batch]))


@invariant("bias-recompute", "recompute moves no bias twice", 17, 21)
def bias_recompute(subject: Subject) -> Outcome:
    """Activation checkpointing runs each layer again in the backward pass, which must not count its tokens
    again. Measured: the largest difference of the bias after a step with and without, as a share of the
    move."""
    _needs_trained_bias(subject)
    batch, outcome = subject.inputs(4), None
    whole = _moved(subject, [batch])
    for reentrant in (False, True):
        model = subject.model().train()
        try:
            with subject.recomputing(model, reentrant=reentrant):
                steps = _step_of(subject, _zero(subject, model), [batch])
        except Unavailable:
            if not reentrant:
                raise
            continue
        outcome = _same_move(steps, whole)
        if outcome.verdict == "fail":
            return outcome
    assert outcome is not None
    return outcome


@invariant("bias-evaluation", "evaluation moves no bias", 22)
def bias_evaluation(subject: Subject) -> Outcome:
    """Passes in evaluation leave nothing behind that moves the selection bias in the next step. Measured: the
    largest difference after a step with and without an evaluation before it, as a share of the move."""
    _needs_trained_bias(subject)
    batch, other = subject.inputs(4), subject.inputs(4, seed=3)
    model = _zero(subject, subject.model())
    with torch.no_grad():
        for _ in range(2):
            seeded(subject, model, other)
    return _same_move(_step_of(subject, model.train(), [batch]), _moved(subject, [batch]))


def padded(batch: Inputs, extra: int = 6) -> Inputs:
    """The batch with `extra` positions of padding after each row, filled with other rows' tokens."""
    values = batch.values
    filler = values.flip(0)[:, -1:].expand(-1, extra, *values.shape[2:])
    filler = 3 * filler if values.is_floating_point() else filler
    valid = torch.ones(values.shape[0], values.shape[1] + extra, dtype=torch.bool)
    valid[:, values.shape[1] :] = False
    return Inputs(torch.cat([values, filler], dim=1), valid)


def _needs_trained_bias(subject: Subject) -> None:
    if not subject.claims.bias_is_trained:
        raise Unavailable("it has no selection bias")


def _zero(subject: Subject, model: nn.Module) -> nn.Module:
    for _, _, bias in blocks_with_bias(subject, model):
        with torch.no_grad():
            bias.zero_()
    return model


def _moved(subject: Subject, batches: list[Inputs]) -> list[Tensor]:
    """How far a step on a new copy moves each layer's bias from 0."""
    return _step_of(subject, _zero(subject, subject.model()).train(), batches)


def _step_of(subject: Subject, model: nn.Module, batches: list[Inputs]) -> list[Tensor]:
    before = [bias.detach().clone() for _, _, bias in blocks_with_bias(subject, model)]
    torch.manual_seed(1)
    subject.step(model, batches)
    after = blocks_with_bias(subject, model)
    return [(bias.detach() - b).flatten().float() for (_, _, bias), b in zip(after, before, strict=True)]


def _same_move(found: list[Tensor], wanted: list[Tensor]) -> Outcome:
    scale = max(w.abs().max().item() for w in wanted)
    if not scale:
        raise Unavailable("the bias does not move at all (bias-moves)")
    worst = max((f - w).abs().max().item() for f, w in zip(found, wanted, strict=True)) / scale
    return judge(worst < 1e-4, f"difference of {worst:.1%} of the move")
