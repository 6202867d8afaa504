"""What checks have in common: comparisons, seeded passes, and alterations of a working copy."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from moeworks.doctor.subject import Block, Inputs, Seen, Subject, Unavailable
from moeworks.ops.routing import Routing

TOLERANCE = 1e-4
"""Relative to the largest value, for float32 results that only the order of additions may separate."""


def gap(found: Tensor, wanted: Tensor) -> float:
    """max |found - wanted| / max |wanted|; infinite when one of them is not finite."""
    if not (found.isfinite().all() and wanted.isfinite().all()):
        return float("inf")
    if not found.numel():
        return 0.0
    return ((found - wanted).abs().max() / wanted.abs().max().clamp(min=1e-30)).item()


def seeded(subject: Subject, model: nn.Module, inputs: Inputs) -> Seen:
    """A pass on the same random numbers every time."""
    torch.manual_seed(1)
    return subject.run(model, inputs)


@torch.no_grad()
def seeded_output(subject: Subject, model: nn.Module, inputs: Inputs) -> Tensor:
    """The output of such a pass, without routing and gradients."""
    torch.manual_seed(1)
    return subject.output(model, inputs).detach()


def repeats_in_training(subject: Subject, model: nn.Module) -> bool:
    """Whether `model`, in training mode, does the same for every random seed."""
    outputs = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        with torch.no_grad():
            outputs.append(subject.output(model, subject.inputs(2)))
    return torch.equal(*outputs)


def probe(output: Tensor) -> Tensor:
    """A scalar that every element of the output moves, as a task's loss would."""
    generator = torch.Generator().manual_seed(5)
    weights = torch.randn(output.shape, generator=generator).to(output)
    return (output * weights).sum() / output.shape[0]


def backward(model: nn.Module, scalar: Tensor) -> None:
    """Fresh gradients of `scalar`."""
    model.zero_grad(set_to_none=True)
    scalar.backward()


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """Copies by name; a missing one is 0."""
    return {
        name: torch.zeros_like(p) if p.grad is None else p.grad.detach().clone()
        for name, p in model.named_parameters()
    }


def take_gradients(model: nn.Module) -> dict[str, Tensor]:
    """The gradients themselves by name, which the model then has no more; a missing one is 0."""
    taken = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in model.named_parameters()}
    model.zero_grad(set_to_none=True)
    return taken


def worst_gap(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> tuple[float, str]:
    """The largest gap over gradients or weights, relative to the largest value of all, and its name."""
    scale = max((w.abs().max().item() for w in wanted.values() if w.numel()), default=0.0) or 1e-30
    gaps = {
        name: (found[name] - w).abs().max().item() / scale if found[name].isfinite().all() else float("inf")
        for name, w in wanted.items()
        if w.numel()
    }
    name = max(gaps, key=gaps.__getitem__)
    return gaps[name], name


def blocks_with_bias(subject: Subject, model: nn.Module) -> list[tuple[int, Block, Tensor]]:
    """Number, block and selection bias of the layers that have one."""
    found = [(i, b, b.selection_bias) for i, b in enumerate(subject.blocks(model))]
    having = [(i, b, bias) for i, b, bias in found if bias is not None]
    if not having:
        raise Unavailable("it has no selection bias")
    return having


def same_choice(one: Routing, other: Routing) -> Tensor:
    """bool [T]: whether a token has the same set of experts in both."""
    return (one.expert_ids_TK.sort(1).values == other.expert_ids_TK.sort(1).values).all(1)


def chosen(routing: Routing) -> Tensor:
    """bool [E]: experts that a valid token uses."""
    return routing.tokens_per_expert() > 0


def norm(tensors: Sequence[Tensor | None]) -> float:
    """The norm over all of them."""
    return sum(float(t.double().square().sum()) for t in tensors if t is not None) ** 0.5


def state_of(model: nn.Module) -> dict[str, Tensor]:
    """Copies of everything that the model keeps: parameters and all buffers."""
    return {name: tensor.clone() for name, tensor in tensors_of(model).items()}


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Everything that the model keeps, without copies."""
    return {n: t.detach() for n, t in (*model.named_parameters(), *model.named_buffers())}


def changed(before: dict[str, Tensor], model: nn.Module) -> list[str]:
    """Names of what is not bit for bit as before."""
    now = dict((*model.named_parameters(), *model.named_buffers()))
    return [
        n for n, t in before.items() if n not in now or not torch.equal(now[n].nan_to_num(), t.nan_to_num())
    ]


def numbers(values: Sequence[float]) -> str:
    """A few figures, short."""
    return ", ".join(f"{v:.3g}" for v in values)
