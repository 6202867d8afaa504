"""What the checks look at: any MoE model behind one interface.

A subject that cannot offer something raises Unavailable with the reason, and the check is "not applicable".
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from moeworks.ops.routing import Routing


class Unavailable(Exception):  # noqa: N818  (an answer, not an error)
    """The subject cannot offer what a check needs; the message is the reason."""


@dataclass(frozen=True, eq=False)
class Inputs:
    """B rows of L tokens."""

    values: Tensor
    """int64 [B, L] token ids, or float [B, L, D] of a lone layer."""
    valid_BL: Tensor | None = None
    """bool, False for padding; None: all are valid."""

    def rows(self, chosen: slice) -> "Inputs":
        """Some of the rows."""
        return Inputs(self.values[chosen], None if self.valid_BL is None else self.valid_BL[chosen])


@dataclass(frozen=True, eq=False)
class Seen:
    """What one forward pass gave."""

    output: Tensor
    """float [B, L, ...]: logits, states, or a layer's output."""
    routings: tuple[Routing, ...]
    """One per MoE layer, in the order of Subject.blocks; they carry gradients."""


@dataclass(frozen=True, eq=False)
class ExpertTensor:
    """One of the tensors that each expert has: a stacked parameter, or a parameter per expert."""

    name: str
    parts: tuple[nn.Parameter, ...]
    count: int
    """E, the routed experts."""

    def of(self, expert: int) -> Tensor:
        """The expert's own part, a view."""
        return _part(self.parts, expert, self.count)

    def gradient(self, expert: int) -> Tensor:
        """Its gradient; zeros where there is none."""
        part = self.parts[expert] if len(self.parts) > 1 else self.parts[0]
        if part.grad is None:
            return torch.zeros_like(self.of(expert))
        return _part((part.grad,) * len(self.parts), expert, self.count)


def _part(parts: tuple[Tensor, ...], expert: int, count: int) -> Tensor:
    if len(parts) > 1:
        return parts[expert]
    rows = parts[0].shape[0] // count  # DBRX stores [E * F, D]
    return parts[0][expert] if rows == 1 else parts[0][expert * rows : (expert + 1) * rows]


@dataclass(frozen=True, eq=False)
class Block:
    """One MoE layer of a model."""

    path: str
    num_experts: int
    """Routed experts with weights of their own."""
    router: tuple[Tensor, ...]
    """Parameters whose first dimension is the routes."""
    selection_bias: Tensor | None
    """What is added to scores for the choice, any shape with one value per route."""
    experts: tuple[ExpertTensor, ...]
    by_table: bool = False
    """Token ids decide who is chosen, not scores."""


@dataclass(frozen=True, kw_only=True)
class Claims:
    """What a model says of itself; None where it does not say, and then nothing is held against it."""

    top_k: int | None = None
    score: Literal["softmax", "sigmoid", "sqrtsoftplus"] | None = None
    renormalize: bool | None = None
    scale: float | None = None
    num_groups: int = 1
    top_k_groups: int = 1
    group_score: Literal["max", "top2_sum"] | None = None
    weights_on: Literal["output", "input"] | None = None
    capacity_factor: float | None = None
    """In training; None is dropless."""
    min_capacity: int = 1
    drop_policy: Literal["position", "probability", "batch_priority"] = "position"
    drops_in_evaluation: bool = False
    """A capacity for the whole batch binds in evaluation too, so that rows depend on each other."""
    choice: str | None = None
    """How experts are chosen where that is not each token's top-k of its own scores."""
    pooled: bool = False
    """Tokens of different types have different experts."""
    causal: bool = True
    """No position depends on a later one."""
    chooses_by: Literal["scores", "logits"] = "scores"
    """What the selection bias is added to."""
    step_wide_balance: bool = False
    """The balance loss is that of the whole optimizer step, not one of each micro-batch."""
    bias_is_trained: bool = False
    """Loss-free balancing: the selection bias is there to be moved during training."""
    balance_coef: float | None = None
    """The coefficient of the balance loss that the config sets; None: no balance loss is claimed."""
    balance_error: str | None = None
    """What the model raises when it is asked for its balance loss."""


@dataclass(frozen=True, eq=False)
class Step:
    """One training step as the model's own code does it; gradients are left on the parameters."""

    reported: Tensor
    """The loss that is shown."""
    objective: Tensor
    """The loss whose gradient was taken, balance losses included."""


@dataclass(frozen=True, eq=False)
class Adapted:
    """A model with low-rank adapters on its experts."""

    model: nn.Module
    parameters: tuple[nn.Parameter, ...]
    """Of the adapters."""
    merge: Callable[[], nn.Module]
    """Writes the adapters into the weights; the model without adapters."""


class Subject(ABC):
    """A model under examination. Subclasses say what they can; what is not abstract may stay unavailable.

    Methods take the working copy that `model()` made, so that no check sees what another one did.
    """

    name: str
    kind: str
    """One or two words: what it is."""
    claims: Claims

    @abstractmethod
    def model(self) -> nn.Module:
        """A copy in float32 and evaluation mode, to be altered at will."""

    @abstractmethod
    def inputs(self, rows: int = 2, length: int = 12, seed: int = 0) -> Inputs:
        """Random inputs that the model takes."""

    @abstractmethod
    def output(self, model: nn.Module, inputs: Inputs) -> Tensor:
        """float [B, L, ...] of a forward pass in the mode that the model is in."""

    @abstractmethod
    def run(self, model: nn.Module, inputs: Inputs) -> Seen:
        """A forward pass and its routing."""

    @abstractmethod
    def blocks(self, model: nn.Module) -> tuple[Block, ...]:
        """The MoE layers."""

    def fresh(self, seed: int) -> nn.Module:
        """The model as its own initialisation leaves it."""
        raise Unavailable("there is no way to build it anew")

    def task(self, model: nn.Module, inputs: Inputs) -> Tensor:
        """The loss that training has beside balance, with its graph."""
        raise Unavailable("it has no training step")

    def balance(self, model: nn.Module, inputs: Inputs) -> dict[str, Tensor]:
        """Balance losses by name (switch, sequence, z, ...) as the model's code computes them when asked."""
        raise Unavailable("it offers no balance loss")

    def balance_by_default(self, model: nn.Module, inputs: Inputs) -> Tensor | None:
        """What training adds to its objective for balance when nobody asks; None or 0 is nothing."""
        raise Unavailable("it offers no balance loss")

    def balance_in_step(self, model: nn.Module, inputs: Inputs) -> Tensor | None:
        """What `step` adds to its objective for balance; where it has to be asked for, `step` asks."""
        return self.balance_by_default(model, inputs)

    def step(self, model: nn.Module, batches: list[Inputs]) -> Step:
        """One optimizer step over micro-batches, without the update of the weights but with everything else
        that a step changes."""
        raise Unavailable("it has no training step")

    def recomputing(self, model: nn.Module, *, reentrant: bool) -> AbstractContextManager[None]:
        """Within it, forward passes use activation checkpointing."""
        raise Unavailable("it has no activation checkpointing")

    def replay(self, model: nn.Module, inputs: Inputs, routings: tuple[Routing, ...]) -> Tensor:
        """The output of a pass whose MoE layers are made to decide as recorded."""
        raise Unavailable("its decisions cannot be forced")

    def save_and_load(self, model: nn.Module, folder: Path) -> nn.Module:
        """The model after a round trip over the disk, through its own format."""
        raise Unavailable("it has no format on disk")

    def adapt(self, model: nn.Module) -> Adapted:
        """Low-rank adapters on the experts' matrices, with random weights."""
        raise Unavailable("adapters on its experts are not supported")
