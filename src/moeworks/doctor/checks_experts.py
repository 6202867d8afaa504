"""The experts: that they differ, learn, do the work that the router gives them, and no other."""

from dataclasses import replace

import torch
from torch import Tensor

from moeworks.doctor.probes import (
    TOLERANCE,
    backward,
    chosen,
    gap,
    norm,
    probe,
    seeded,
    seeded_output,
)
from moeworks.doctor.subject import Block, Subject, Unavailable
from moeworks.doctor.verdict import Outcome, failed, invariant, judge

_LOOKED_AT = 8
"""Experts per layer that are altered one by one."""


@invariant("experts-differ", "experts start different", 35, 41, 42)
def experts_differ(subject: Subject) -> Outcome:
    """A new model's experts differ from each other and none is left at 0 or uninitialised. Copies of one
    expert get equal gradients where they are equally used, and stay alike for long. Measured: the smallest
    distance between two experts as a share of their norm, and the spread of norms."""
    model = subject.fresh(seed=3)
    nearest, spread, biases = float("inf"), 1.0, 0
    for block in subject.blocks(model):
        if block.num_experts == 1:
            raise Unavailable("there is one expert")
        for tensor in block.experts:
            rows = torch.stack([tensor.of(e).detach().flatten().double() for e in range(block.num_experts)])
            if tensor.of(0).dim() < 2 and not rows.any():
                biases += 1  # biases start at 0 in all experts, as they should
                continue
            if not rows.isfinite().all():
                return failed(f"{block.path}.{tensor.name} is not finite")
            norms = rows.norm(dim=1)
            if not norms.min() > 0 or tensor.of(0).dim() < 2:
                if tensor.of(0).dim() < 2:
                    continue
                return failed(f"{block.path}.{tensor.name}: an expert is 0")
            distance = torch.cdist(rows, rows) + torch.eye(len(rows)).double() * 1e30
            nearest = min(nearest, (distance.min() / norms.max()).item())
            spread = max(spread, (norms.max() / norms.min()).item())
    words = f"nearest two are {nearest:.2f} of their norm apart; norms differ by a factor of {spread:.2f}"
    return judge(nearest > 0.05 and spread < 4, words)


@invariant("experts-learn", "chosen experts learn", 29, 41)
def experts_learn(subject: Subject) -> Outcome:
    """Every expert that a router chooses gets a gradient, no other does, and every gradient is finite.
    Experts without a gradient never learn, whatever the router says; gradients of experts without tokens
    are read from memory that nobody wrote. Measured: chosen experts with a gradient, over all layers."""
    model, inputs = subject.model(), subject.inputs(8, length=24)
    try:
        seen = seeded(subject, model, inputs)
        output, used = seen.output, [chosen(_kept(r)) for r in seen.routings]
    except Unavailable:  # hooks see no choice: with so many tokens each expert should have some
        torch.manual_seed(1)
        output, used = subject.output(model, inputs), None
    backward(model, probe(output))
    learn = total = stray = 0
    for number, block in enumerate(subject.blocks(model)):
        for expert in range(block.num_experts):
            grads = [t.gradient(expert) for t in block.experts]
            if not all(g.isfinite().all() for g in grads):
                return failed(f"{block.path}: a gradient of expert {expert} is not finite")
            alive = norm(grads) > 0
            due = used is None or bool(used[number][expert])
            learn, total, stray = learn + (alive and due), total + due, stray + (alive and not due)
    words = f"{learn} of {total} {'chosen ' if used else ''}experts get a gradient"
    words += f", and {stray} that no token chose" if stray else ""
    return judge(learn == total and not stray, words)


def _kept(routing):
    """The routing without the assignments that capacity dropped, as far as counting goes."""
    if routing.kept_TK is None:
        return routing
    lost = routing.num_experts  # one more, imaginary expert
    ids = routing.expert_ids_TK.masked_fill(~routing.kept_TK, lost)
    logits = torch.cat([routing.router_logits_TE, routing.router_logits_TE[:, :1]], dim=1)
    return replace(routing, expert_ids_TK=ids, router_logits_TE=logits)


@invariant("experts-work", "chosen experts do the work", 29, 36, 40)
def experts_work(subject: Subject) -> Outcome:
    """The expert that the router names is the one that computes: altering its weights alters the output of
    every token that chose it. Measured: altered tokens among those that chose an altered expert, one expert
    after the other."""
    model, inputs = subject.model(), subject.inputs(4)
    seen = seeded(subject, model, inputs)
    plain = seen.output.detach().flatten(0, 1)
    moved = due = 0
    for block, routing in _ends(list(zip(subject.blocks(model), seen.routings, strict=True))):
        for expert in range(min(block.num_experts, _LOOKED_AT)):
            mine = routing.expert_ids_TK == expert
            if routing.kept_TK is not None:
                mine &= routing.kept_TK
            users = (mine & (routing.routing_weights_TK > 1e-6)).any(1)
            originals = _alter(block, expert)
            output = seeded_output(subject, model, inputs).flatten(0, 1)
            _restore(block, expert, originals)
            moved += int((output[users] != plain[users]).flatten(1).any(1).sum())
            due += int(users.sum())
    if not due:
        raise Unavailable("no token chose one of the experts that were altered")
    return judge(moved == due, f"{moved} of {due} tokens change with an expert that they chose")


@torch.no_grad()
def _alter(block: Block, expert: int) -> list[Tensor]:
    originals = [t.of(expert).detach().clone() for t in block.experts]
    for tensor in block.experts:
        part = tensor.of(expert)
        part.add_(torch.randn_like(part) * part.std(correction=0).clamp(min=0.1))
    return originals


@torch.no_grad()
def _restore(block: Block, expert: int, originals: list[Tensor]) -> None:
    for tensor, original in zip(block.experts, originals, strict=True):
        tensor.of(expert).copy_(original)


def _ends(items: list) -> list:
    return items if len(items) <= 2 else [items[0], items[-1]]


@invariant("experts-idle", "experts without tokens do nothing", 29)
def experts_idle(subject: Subject) -> Outcome:
    """An expert that no token chose has no part in the result, not even times 0: its weights may be anything,
    NaN included. Code that computes all experts and multiplies by 0, or reads rows that nobody wrote, turns
    a NaN or an overflow in one expert into NaN everywhere. Measured: the output with NaN in idle experts."""
    model, inputs = subject.model(), subject.inputs(1, length=3)
    seen = seeded(subject, model, inputs)
    plain, idle = seen.output.detach(), 0
    for block, routing in zip(subject.blocks(model), seen.routings, strict=True):
        used = chosen(routing)
        for expert in range(block.num_experts):
            if not used[expert]:
                idle += 1
                for tensor in block.experts:
                    with torch.no_grad():
                        tensor.of(expert).fill_(torch.nan)
    if not idle:
        raise Unavailable("every expert is chosen by three tokens already")
    model.zero_grad(set_to_none=True)
    output = seeded(subject, model, inputs).output
    backward(model, probe(output))
    grads = [t.gradient(e) for b in subject.blocks(model) for t in b.experts for e in range(b.num_experts)]
    broken = sum(not g.isfinite().all() for g in grads)
    difference = gap(output.detach(), plain)
    words = f"{idle} idle experts set to NaN: output changes by {difference:.1e}, {broken} gradients broken"
    return judge(difference < TOLERANCE and not broken, words)


@invariant("experts-permute", "order of experts is no matter", 36, 40, every_expert=True)
def experts_permute(subject: Subject) -> Outcome:
    """Experts have no place of their own: permuted together with their rows of the router (and of the bias),
    groups as a whole, they compute the same. Anything that mixes up expert numbers shows. Measured: the
    relative change of the output."""
    model, inputs = subject.model(), subject.inputs(3)
    plain = seeded_output(subject, model, inputs)
    permuted = 0
    for block in subject.blocks(model):
        if block.by_table:
            raise Unavailable("a table of token ids names its experts, and would have to be permuted too")
        routes = {t.shape[0] for t in block.router}
        if len(routes) != 1:
            raise Unavailable(f"{block.path}: no rows of a router found")
        order = _order(block.num_experts, subject.claims.num_groups)
        for tensors in block.experts:
            copies = [tensors.of(e).detach().clone() for e in range(block.num_experts)]
            for new, old in enumerate(order):
                with torch.no_grad():
                    tensors.of(new).copy_(copies[old])
        rows = [*order, *range(block.num_experts, routes.pop())]
        if block.selection_bias is not None and block.selection_bias.numel() != len(rows):
            raise Unavailable(f"{block.path}: its router has rows of more than the experts that are chosen")
        for tensor in block.router:
            with torch.no_grad():
                tensor.copy_(tensor[rows].clone())
        if block.selection_bias is not None:
            flat = block.selection_bias.view(-1)
            with torch.no_grad():
                flat.copy_(flat[rows].clone())
        permuted += 1
    difference = gap(seeded_output(subject, model, inputs), plain)
    return judge(difference < TOLERANCE, f"output changes by {difference:.1e} in {permuted} permuted layers")


def _order(experts: int, groups: int) -> list[int]:
    """Groups in another order, and experts in another order inside them."""
    size = experts // groups
    grouped = [[g * size + (e + 1 + g) % size for e in range(size)][::-1] for g in range(groups)]
    return [e for group in (grouped[1:] + grouped[:1]) for e in group]


@invariant("weight-zero", "weight 0 is nothing", 7, 31)
def weight_zero(subject: Subject) -> Outcome:
    """A chosen expert with weight 0 contributes nothing, its output bias included, and the contribution is
    proportional to the weight: biases that are added without the routing weight (or a forgotten weight) show.
    Measured: the change of the output when all experts of a layer with weights 0 are altered."""
    if subject.claims.weights_on == "input":
        raise Unavailable("weights multiply the experts' inputs, so that biases act whatever the weight")
    model, inputs = subject.model(), subject.inputs(2)
    routings = list(seeded(subject, model, inputs).routings)
    number = len(routings) - 1
    silent = replace(
        routings[number], routing_weights_TK=torch.zeros_like(routings[number].routing_weights_TK)
    )
    decisions = (*routings[:number], silent)
    with torch.no_grad():
        plain = subject.replay(model, inputs, decisions)
        block = subject.blocks(model)[number]
        for expert in range(block.num_experts):
            _alter(block, expert)
        difference = gap(subject.replay(model, inputs, decisions), plain)
    return judge(difference < TOLERANCE, f"output changes by {difference:.1e}")


@invariant("replay", "replay reproduces", 39)
def replay(subject: Subject) -> Outcome:
    """A pass whose layers are made to decide as recorded gives the recorded output, also when the routers
    have changed meanwhile: the record of ids and weights is the whole decision. Measured: the relative
    difference after altering all routers."""
    model, inputs = subject.model(), subject.inputs(3)
    seen = seeded(subject, model, inputs)
    with torch.no_grad():
        for block in subject.blocks(model):
            for tensor in block.router:
                tensor.add_(torch.randn_like(tensor) * tensor.std(correction=0).clamp(min=0.01))
        free = seeded_output(subject, model, inputs)
        forced = subject.replay(model, inputs, seen.routings)
    difference, without = gap(forced, seen.output.detach()), gap(free, seen.output.detach())
    return judge(difference < TOLERANCE, f"differs by {difference:.1e}; without replay by {without:.1e}")
