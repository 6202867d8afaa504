"""Recomputation, the disk, and adapters."""

import tempfile
from pathlib import Path

import torch
from torch import nn

from moeworks.doctor.probes import (
    TOLERANCE,
    backward,
    changed,
    gap,
    norm,
    probe,
    seeded_output,
    take_gradients,
    tensors_of,
    worst_gap,
)
from moeworks.doctor.subject import Inputs, Subject, Unavailable
from moeworks.doctor.verdict import Outcome, invariant, judge


@invariant("recompute", "recompute changes no gradient", 17, 21, 39)
def recompute(subject: Subject) -> Outcome:
    """Activation checkpointing, reentrant or not, gives the gradients of plain training and leaves the same
    state behind: a layer that counts in its forward pass counts twice, and one that decides anew takes the
    gradient of another decision. Measured: the largest difference of a gradient; buffers that differ."""
    words, holds = [], True
    for reentrant in (False, True):
        name = "reentrant" if reentrant else "not reentrant"
        try:
            difference, where, stray = _recomputed(subject, reentrant=reentrant)
        except Unavailable as reason:
            if not words and reentrant:
                raise
            words.append(f"{name}: {reason}")
            continue
        holds = holds and difference < TOLERANCE and not stray
        words.append(
            f"{name} {difference:.1e} ({where})" if difference > TOLERANCE else f"{name} {difference:.1e}"
        )
        words += [f"{name}: {', '.join(stray[:3])} differ"] if stray else []
    return judge(holds, "gradients differ by: " + "; ".join(words))


def _recomputed(subject: Subject, *, reentrant: bool) -> tuple[float, str, list[str]]:
    found = []
    for used in (False, True):
        model, inputs = subject.model().train(), subject.inputs(3)
        model.zero_grad(set_to_none=True)
        if used:
            with subject.recomputing(model, reentrant=reentrant):
                _train(subject, model, inputs)
        else:
            _train(subject, model, inputs)
        found.append((take_gradients(model), model))
    (wanted, plain), (given, recomputed) = found
    difference, where = worst_gap(given, wanted)
    return difference, where, changed(tensors_of(recomputed), plain)


def _train(subject: Subject, model: nn.Module, inputs: Inputs) -> None:
    """The gradients of a step, or of a function of the output where there is no step."""
    torch.manual_seed(1)
    try:
        subject.step(model, [inputs])
    except Unavailable:
        probe(subject.output(model, inputs)).backward()


@invariant("round-trip", "disk keeps experts in order", 5, 40, 41)
def round_trip(subject: Subject) -> Outcome:
    """A model that is saved and loaded computes the same, with more than ten experts too: sorted as strings
    "10" comes before "2", and a tensor that the loader does not fill stays at its random start. Measured: the
    relative change of the output, and tensors that differ."""
    model, inputs = subject.model(), subject.inputs(3)
    with tempfile.TemporaryDirectory() as folder:
        again = subject.save_and_load(model, Path(folder))
        difference = gap(seeded_output(subject, again, inputs), seeded_output(subject, model, inputs))
        names = changed(tensors_of(model), again)
    count = max(b.num_experts for b in subject.blocks(model))
    words = f"output changes by {difference:.1e} with {count} experts"
    words += f"; {len(names)} tensors differ, e.g. {names[0]}" if names else ""
    return judge(difference < TOLERANCE and not names, words)


@invariant("adapters", "adapters on experts work", 42)
def adapters(subject: Subject) -> Outcome:
    """Low-rank adapters on the experts' matrices change the output, get a gradient, and give the same when
    they are merged into the weights. Measured: the change of the output, the share of adapter tensors with
    a gradient, and the difference to the merged model."""
    model, inputs = subject.model(), subject.inputs(6)
    plain = seeded_output(subject, model, inputs)
    adapted = subject.adapt(model)
    output = subject.output(adapted.model, inputs)
    effect = gap(output.detach(), plain)
    backward(adapted.model, probe(output))
    alive = sum(p.grad is not None and norm([p.grad]) > 0 for p in adapted.parameters)
    merged = seeded_output(subject, adapted.merge(), inputs)
    difference = gap(merged, output.detach())
    words = f"output changes by {effect:.1e}; {alive} of {len(adapted.parameters)} tensors get a gradient"
    holds = effect > 1e-3 and alive == len(adapted.parameters) and difference < 10 * TOLERANCE
    return judge(holds, f"{words}; merged differs by {difference:.1e}")
