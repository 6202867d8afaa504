"""Muon for the hidden matrices and AdamW for the rest, or AdamW for all.

The optimizers' state is handed out under the parameters' names, so that a checkpoint does not depend on the
order in which a model lists them.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from moeworks.config.run import OptimizerConfig
from moeworks.errors import CheckpointError
from moeworks.train.adamw import AdamW
from moeworks.train.muon import Muon

NamedParameters = list[tuple[str, nn.Parameter]]

# Both ends of the model and the routers are no hidden matrices: they translate between tokens or experts and
# the residual stream, row by row.
_ROW_WISE = frozenset({"embed", "lm_head", "router"})
_FUSED_PAIR = "gate_up_proj"


@dataclass(frozen=True)
class ParameterGroups:
    """Names of the trained parameters by how they are optimised, in the model's order."""

    matrices: tuple[str, ...]
    """Hidden matrices, and stacks of them: muon, or adamw; with weight decay."""
    fused_pairs: tuple[str, ...]
    """Hidden matrices that hold two, gate above up: muon treats the halves separately; with weight decay."""
    rest: tuple[str, ...]
    """Embeddings, output projection, routers, norms, biases, gates: adamw without weight decay."""


def group_parameters(model: nn.Module) -> ParameterGroups:
    """Sort the parameters that require a gradient into groups, by name and number of dimensions.

    A hidden matrix has two dimensions, or three for a stack of them. It is none of: a bias or a stack of
    biases (`bias` ends its name), a matrix of one row or column (a gate), part of `embed`, `lm_head` or a
    `router`, or what its module lists as `row_wise`.
    """
    trained = [(name, param) for name, param in model.named_parameters() if param.requires_grad]
    row_wise = {
        f"{prefix}.{name}" if prefix else name
        for prefix, module in model.named_modules()
        for name in getattr(type(module), "row_wise", ())
    }
    hidden = [name for name, param in trained if name not in row_wise and _is_hidden_matrix(name, param)]
    fused = [name for name in hidden if _FUSED_PAIR in name.split(".")]
    return ParameterGroups(
        matrices=tuple(name for name in hidden if name not in set(fused)),
        fused_pairs=tuple(fused),
        rest=tuple(name for name, _ in trained if name not in set(hidden)),
    )


def _is_hidden_matrix(name: str, param: nn.Parameter) -> bool:
    return (
        param.ndim in (2, 3)
        and min(param.shape[-2:]) > 1
        and not name.endswith("bias")
        and _ROW_WISE.isdisjoint(name.split("."))
    )


class Optimizers:
    """The optimizers of one model, driven as one. Made by build_optimizers."""

    def __init__(self, parts: dict[str, Muon | AdamW]) -> None:
        """`parts` maps a name ("muon", "adamw") to an optimizer over named parameters."""
        self.parts = parts
        for group in self._groups():
            group["base_lr"] = group["lr"]

    def step(self, gradient_scale: Tensor | None = None) -> None:
        """Update all parameters that have a gradient, scaled by `gradient_scale` (see clip_scale).

        The gradients may hold any values afterwards.
        """
        for part in self.parts.values():
            part.gradient_scale = gradient_scale
            part.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the gradients, or set them to 0."""
        for part in self.parts.values():
            part.zero_grad(set_to_none=set_to_none)

    def set_lr_scale(self, scale: float) -> None:
        """Set every learning rate to `scale` times its peak."""
        for group in self._groups():
            group["lr"] = group["base_lr"] * scale

    def state_tensors(self) -> dict[str, Tensor]:
        """Tensors of the state, not copies, under names such as `adamw/embed.weight/exp_avg`."""
        return {
            f"{part_name}/{name}/{key}": value
            for part_name, part in self.parts.items()
            for group in part.param_groups
            for name, param in zip(group["param_names"], group["params"], strict=True)
            for key, value in part.state[param].items()
        }

    def load_state_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Copy saved state into these optimizers; training then goes on as if it had not stopped.

        Raises CheckpointError, before anything is changed, unless names, shapes and dtypes are those of
        state_tensors.
        """
        own = self.state_tensors()
        _check_same_state(own, tensors)
        for name, value in own.items():
            value.copy_(tensors[name])

    def _groups(self) -> Iterator[dict]:
        for part in self.parts.values():
            yield from part.param_groups


def build_optimizers(model: nn.Module, config: OptimizerConfig) -> Optimizers:
    """Optimizers for the parameters of `model` that require a gradient; their state starts at 0."""
    groups = group_parameters(model)
    params = dict(model.named_parameters())
    by_muon = {name for name, param in params.items() if _takes_muon(param, config)}

    def named(names: Iterable[str]) -> NamedParameters:
        return [(name, params[name]) for name in names]

    matrices = named(name for name in groups.matrices if name in by_muon)
    fused_pairs = named(name for name in groups.fused_pairs if name in by_muon)
    decayed = named(name for name in groups.matrices + groups.fused_pairs if name not in by_muon)
    rest = named(groups.rest)
    parts: dict[str, Muon | AdamW] = {}
    if matrices or fused_pairs:
        parts["muon"] = _muon(matrices, fused_pairs, config)
    if decayed or rest:
        parts["adamw"] = _adamw(decayed, rest, config)
    return Optimizers(parts)


def _takes_muon(matrix: nn.Parameter, config: OptimizerConfig) -> bool:
    """Whether muon optimises this hidden matrix; a stack of matrices belongs to the routed experts."""
    return config.name == "muon" and (matrix.ndim == 2 or config.expert_optimizer == "muon")


def _muon(matrices: NamedParameters, fused_pairs: NamedParameters, config: OptimizerConfig) -> Muon:
    groups = [{"params": matrices, "splits": 1}, {"params": fused_pairs, "splits": 2}]
    return Muon(
        [group for group in groups if group["params"]],
        lr=config.muon_lr,
        weight_decay=config.weight_decay,
        momentum=config.momentum,
        newton_schulz_steps=config.newton_schulz_steps,
    )


def _adamw(decayed: NamedParameters, rest: NamedParameters, config: OptimizerConfig) -> AdamW:
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": rest, "weight_decay": 0.0}]
    fused = all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for _, p in decayed + rest)
    return AdamW(
        [group for group in groups if group["params"]],
        lr=config.lr,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        fused=fused,
    )


def _check_same_state(own: dict[str, Tensor], saved: dict[str, Tensor]) -> None:
    missing, unknown = sorted(own.keys() - saved.keys()), sorted(saved.keys() - own.keys())
    if missing or unknown:
        raise CheckpointError(
            "the optimizer state is of another model or optimizer: "
            f"{_some('missing', missing)}, {_some('unknown', unknown)}"
        )
    for name, value in own.items():
        found, expected = _kind(saved[name]), _kind(value)
        if found != expected:
            raise CheckpointError(f"optimizer state {name} is {found}, and the model needs {expected}")


def _some(what: str, names: list[str]) -> str:
    return f"{len(names)} {what}" + (f" (first {names[0]})" if names else "")


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def first_nonfinite_gradient(model: nn.Module) -> str | None:
    """Name of the first parameter whose gradient holds a NaN or an infinity; waits for the device."""
    for name, param in model.named_parameters():
        if param.grad is not None and not torch.isfinite(param.grad).all():
            return name
    return None
