"""The balance loss: what it is, whether it is on, and whom it reaches."""

import gc
import weakref

import torch
from torch import Tensor, nn

from moeworks.doctor import definitions
from moeworks.doctor.checks_bias import padded
from moeworks.doctor.probes import TOLERANCE, gap, repeats_in_training, seeded
from moeworks.doctor.subject import Claims, Inputs, Subject, Unavailable
from moeworks.doctor.verdict import Outcome, failed, invariant, judge
from moeworks.ops.routing import Routing

_SEEDS = (0, 1, 2)
_NOTHING = 1e-10
"""A gradient below this is that of a loss that cannot change, as where every token has every expert."""


@invariant("balance-on", "balance loss on in training", 10)
def balance_on(subject: Subject) -> Outcome:
    """A model whose config sets a coefficient for a balance loss adds that loss to its objective in training,
    without being asked by another switch. Measured: what a training pass with default arguments adds."""
    if subject.claims.balance_coef is None:
        raise Unavailable("its config claims no balance loss")
    model = subject.model().train()
    torch.manual_seed(1)
    added = subject.balance_by_default(model, subject.inputs(4))
    coef = subject.claims.balance_coef
    if added is None:
        return failed(f"off: the coefficient is {coef:g}, and training adds nothing unless it is asked to")
    return judge(added.item() != 0, f"training adds {added.item():.3g} with the coefficient {coef:g}")


@invariant("balance-definition", "balance loss as defined", 11, 12, 13, 15, 19, top_k_only=True)
def balance_definition(subject: Subject) -> Outcome:
    """Each balance loss is what its paper says, up to how layers are combined: E sum f P for the Switch
    loss, 1.0 at balance, f the share of assignments without the influence of bias or capacity, P the mean
    probability that sums to 1 over experts; and so for the sequence-wise, z, entropy and importance losses.
    A softmax taken twice, a constant, raw logits, or another scale (then one coefficient means something
    else in each library) all show. Measured: the ratio of the model's value to the definition's on three
    inputs."""
    if subject.claims.balance_error is not None:
        return failed(f"asked for its balance loss, the model raises {subject.claims.balance_error}")
    model, found = subject.model().train(), {}
    for seed in _SEEDS:
        torch.manual_seed(1)
        inputs = subject.inputs(4, seed=seed)
        values = subject.balance(model, inputs)
        routings = seeded(subject, model, inputs).routings
        for name, value in values.items():
            layers, pooled = _reference(subject, model, name, routings)
            ratios = found.setdefault(name, ([], []))
            ratios[0].append((value / layers).item())
            ratios[1].append((value / pooled).item())
    words, holds = [], True
    for name, ratios in found.items():
        ratio = min(ratios, key=lambda r: max(r) - min(r))
        mean = sum(ratio) / len(ratio)
        if max(ratio) - min(ratio) > 2e-3 * abs(mean):
            words.append(f"{name}: {min(ratio):.3f} to {max(ratio):.3f} times the definition")
            holds = False
        elif abs(mean - 1) > 1e-3:
            words.append(f"{name}: {mean:.3f} times the definition, so that its best value is {mean:.3g}")
            holds = False
        else:
            words.append(f"{name} {mean:.4f}")
    return judge(holds, "; ".join(words) + (" times the definition" if holds else ""))


@invariant("balance-per-layer", "balance loss per layer", 9, top_k_only=True)
def balance_per_layer(subject: Subject) -> Outcome:
    """The balance loss is taken layer by layer and then averaged (or summed). Thrown together, layers that
    collapse on different experts look balanced: two collapsed layers can have the best value there is.
    Measured: which of the two the model's loss follows, on a model whose routers are each pushed towards
    other experts."""
    model = subject.model().train()
    if len(subject.blocks(model)) < 2:
        raise Unavailable("it has a single MoE layer")
    _push_apart(subject, model)
    inputs = subject.inputs(4)
    torch.manual_seed(1)
    values = subject.balance(model, inputs)
    name = next(iter(values))
    routings = seeded(subject, model, inputs).routings
    layers, pooled = (x.item() for x in _reference(subject, model, name, routings))
    ratio = _scale(subject, name)
    value = values[name].item() / ratio
    if abs(layers - pooled) < 0.02 * layers:
        raise Unavailable("its layers cannot be pushed apart, so that both ways agree")
    holds = abs(value - layers) < abs(value - pooled)
    words = f"{value:.3f} (at its own scale); mean over layers {layers:.3f}, pooled {pooled:.3f}"
    return judge(holds, f"{name}: {'' if holds else 'pooled over layers: '}{words}")


def _scale(subject: Subject, name: str) -> float:
    """The constant factor between the model's loss and the definition, best fit of the two ways."""
    model = subject.model().train()
    inputs = subject.inputs(4, seed=7)
    torch.manual_seed(1)
    value = subject.balance(model, inputs)[name]
    layers, pooled = _reference(subject, model, name, seeded(subject, model, inputs).routings)
    ratios = [(value / x).item() for x in (layers, pooled)]
    return min(ratios, key=lambda r: abs(r - round(r)) if r > 0.5 else abs(r))


@torch.no_grad()
def _push_apart(subject: Subject, model: nn.Module) -> None:
    """Tilt each router towards two experts of its own: rows there grow, so that they win more often."""
    for number, block in enumerate(subject.blocks(model)):
        for tensor in block.router:
            first = 2 * number % tensor.shape[0]
            tensor[first : first + 2] *= 8


def _reference(
    subject: Subject, model: nn.Module, name: str, routings: tuple[Routing, ...]
) -> tuple[Tensor, Tensor]:
    """The definition's mean over layers, and its value pooled over layers (the same where pooling changes
    nothing)."""
    ids = [definitions.selection(_unbiased(subject, r), r.top_k, subject.claims) for r in routings]
    if name in ("switch", "global_batch"):
        layers = [definitions.switch(r, i) for r, i in zip(routings, ids, strict=True)]
        return torch.stack(layers).mean(), definitions.pooled_switch(routings, ids)
    if name == "sequence":
        raw = [definitions.selection(r.router_probs_TE.detach(), r.top_k, _UNGROUPED) for r in routings]
        values = [definitions.sequence(r, i) for r, i in zip(routings, raw, strict=True)]
    else:
        values = [getattr(definitions, name)(r) for r in routings]
    mean = torch.stack(values).mean()
    return mean, mean


def _unbiased(subject: Subject, routing: Routing) -> Tensor:
    by_logits = subject.claims.chooses_by == "logits"
    return (routing.router_logits_TE if by_logits else routing.router_probs_TE).detach()


_UNGROUPED = Claims()


@invariant("balance-gradient", "balance loss teaches the router", 11, 12, 16, top_k_only=True)
def balance_gradient(subject: Subject) -> Outcome:
    """The balance loss has a gradient at every router, and the one that its definition has. Measured: the
    smallest norm over routers, and the cosine to the definition's gradient."""
    model, inputs = subject.model().train(), subject.inputs(4)
    torch.manual_seed(1)
    norms, cosines = [], []
    for name, value in subject.balance(model, inputs).items():
        if not value.requires_grad:
            return failed(f"{name}: carries no gradient")
        found = _router_gradients(subject, model, value)
        references = _reference(subject, model, name, seeded(subject, model, inputs).routings)
        wanted = [_router_gradients(subject, model, r) for r in references]
        if torch.cat(wanted[0]).norm() < _NOTHING:
            continue  # every token has every expert
        norms.append(min(f.norm().item() for f in found))
        cosines.append(max(_cosine(found, w) for w in wanted))
    if not norms:
        raise Unavailable("it has no balance loss that could teach anything")
    words = f"smallest norm {min(norms):.1e}, cosine {min(cosines):.4f}"
    return judge(min(norms) > 0 and min(cosines) > 0.99, words)


def _router_gradients(subject: Subject, model: nn.Module, loss: Tensor) -> list[Tensor]:
    routers = [b.router for b in subject.blocks(model)]
    flat = [p for router in routers for p in router]
    if not flat:
        raise Unavailable("no parameters of a router found")
    found = iter(torch.autograd.grad(loss, flat, retain_graph=True, allow_unused=True))
    return [
        torch.cat(
            [torch.zeros_like(p).flatten() if (g := next(found)) is None else g.flatten() for p in router]
        )
        for router in routers
    ]


def _cosine(found: list[Tensor], wanted: list[Tensor]) -> float:
    one, other = torch.cat(found).double(), torch.cat(wanted).double()
    return (one @ other / (one.norm() * other.norm()).clamp(min=1e-30)).item()


@invariant("balance-padding", "padding balances nothing", 14)
def balance_padding(subject: Subject) -> Outcome:
    """Padding enters no balance loss: the same tokens with padding behind them have the same loss. Measured:
    the largest relative change."""
    model, batch = subject.model(), subject.inputs(3, length=10)
    found = subject.balance(model, padded(batch))
    wanted = subject.balance(model, batch)
    gaps = {name: gap(found[name].detach(), value.detach()) for name, value in wanted.items()}
    worst = max(gaps, key=gaps.__getitem__)
    return judge(gaps[worst] < 1e-3, f"{worst} changes by {gaps[worst]:.1e}")


@invariant("objective", "gradient of the step", 10, 16, top_k_only=True)
def objective(subject: Subject) -> Outcome:
    """A training step takes the gradient of the task's loss plus the balance loss times its coefficient, no
    more and no less. A balance loss that is computed and then dropped, or scaled on its way, shows at the
    routers. Measured: the largest difference, relative to the balance loss's own gradient there."""
    if subject.claims.balance_coef is None:
        raise Unavailable("its config claims no balance loss")
    batch, model = subject.inputs(4), subject.model().train()
    torch.manual_seed(1)
    added = subject.balance_in_step(model, batch)
    if added is None:
        raise Unavailable("its balance loss is off (balance-on)")
    if not added.requires_grad:
        return failed("the balance loss carries no gradient")
    balance = torch.cat(_router_gradients(subject, model, added))
    torch.manual_seed(1)
    task = torch.cat(_router_gradients(subject, model, subject.task(model, batch)))
    _, found = _step_gradient(subject, [batch])
    scale = balance.abs().max().item()
    if scale < _NOTHING:
        raise Unavailable("its balance loss has no gradient here, even by definition")
    difference = (found - task - balance).abs().max().item() / scale
    return judge(difference < 0.02, f"off by {difference:.1%} of the balance loss's gradient")


@invariant("micro-batches", "same step in any micro-batches", 16, 28, top_k_only=True)
def micro_batches(subject: Subject) -> Outcome:
    """A step cut into micro-batches has the gradients of the step in one piece, those of the balance loss
    included: not twice as much for twice as many. A balance loss that is by definition one of each
    micro-batch is tried on equal ones. Measured: the largest difference of the routers' gradients, as a share
    of the balance loss's own where there is one."""
    claims = subject.claims
    if claims.capacity_factor is not None:
        raise Unavailable("a capacity binds per micro-batch")
    if not subject.blocks(subject.model())[0].router:
        raise Unavailable("no parameters of a router found")
    if not repeats_in_training(subject, subject.model().train()):
        raise Unavailable("its training is random, differently for other micro-batches")
    first = subject.inputs(2, length=10)
    second = subject.inputs(2, length=10, seed=4) if claims.step_wide_balance else first
    whole = Inputs(torch.cat([first.values, second.values]))
    loss, wanted = _step_gradient(subject, [whole])
    parts, found = _step_gradient(subject, [first, second])
    scale = _balance_scale(subject, whole)
    scale = scale if scale > _NOTHING else wanted.abs().max().item()
    difference = (found - wanted).abs().max().item() / scale
    words = f"gradients differ by {difference:.1%}; losses {loss:.5f} in one piece and {parts:.5f} in two"
    return judge(difference < 0.02 and abs(parts - loss) < 1e-2 * abs(loss), words)


def _step_gradient(subject: Subject, batches: list[Inputs]) -> tuple[float, Tensor]:
    """The objective of a step on a new copy, and the routers' gradient."""
    model = subject.model().train()
    model.zero_grad(set_to_none=True)
    torch.manual_seed(1)
    loss = subject.step(model, batches).objective
    router = [p for b in subject.blocks(model) for p in b.router]
    grads = [torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in router]
    return loss.item(), torch.cat(grads)


def _balance_scale(subject: Subject, batch: Inputs) -> float:
    """The largest element of the balance loss's gradient at the routers; 0 where there is no such loss."""
    if subject.claims.balance_coef is None:
        return 0.0
    model = subject.model().train()
    torch.manual_seed(1)
    try:
        added = subject.balance_in_step(model, batch)
    except Unavailable:
        return 0.0
    if added is None or not added.requires_grad:
        return 0.0
    return torch.cat(_router_gradients(subject, model, added)).abs().max().item()


@invariant("reported-loss", "reports the task's loss", 20)
def reported_loss(subject: Subject) -> Outcome:
    """The loss that training reports is the task's (cross-entropy), without balance losses: otherwise curves
    of models with other coefficients cannot be compared, and perplexities are wrong. Measured: reported
    loss against the loss from the outputs, with the balance loss switched on."""
    if subject.claims.balance_coef is None:
        raise Unavailable("its config claims no balance loss")
    model, batch = subject.model().train(), subject.inputs(4)
    torch.manual_seed(1)
    with torch.no_grad():
        task = subject.task(model, batch).item()
    torch.manual_seed(1)
    step = subject.step(model, [batch])
    reported, whole = step.reported.item(), step.objective.item()
    if abs(whole - task) < 1e-6 * abs(task):
        raise Unavailable("its balance loss is off (balance-on)")
    words = f"reported {reported:.5f}, task {task:.5f}, with balance {whole:.5f}"
    return judge(abs(reported - task) < 0.2 * abs(whole - task), words)


@invariant("stateless", "passes leave nothing behind", 18, 22)
def stateless(subject: Subject) -> Outcome:
    """A pass leaves nothing behind: the balance loss of an input is the same after other passes, in training
    and evaluation, and the memory of a pass is freed. Lists of losses that nobody clears grow, and mix old
    steps into new ones. Measured: the relative change of the loss, and whether a pass's logits are freed."""
    model, batch = subject.model().train(), subject.inputs(2)
    seen = seeded(subject, model, batch)
    watched = weakref.ref(seen.routings[0].router_logits_TE)
    del seen
    gc.collect()
    if watched() is not None:
        return failed("the router's logits of a pass that is over stay in memory")
    try:
        torch.manual_seed(1)
        before = {n: v.detach() for n, v in subject.balance(model, batch).items()}
    except Unavailable:
        return judge(True, "freed; it offers no balance loss")
    for seed in (5, 6):
        subject.balance(model, subject.inputs(2, seed=seed))
        with torch.no_grad():
            seeded(subject, model.eval(), subject.inputs(2, seed=seed))
        model.train()
    torch.manual_seed(1)
    after = subject.balance(model, batch)
    change = max((gap(after[n].detach(), v) for n, v in before.items()), default=0.0)
    return judge(change < TOLERANCE, f"freed; the loss changes by {change:.1e}")
