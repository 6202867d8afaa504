"""How the tensors of a published checkpoint correspond to a decoder's, as data; no torch.

A rule says which view of one or more of our tensors a published tensor is. Reading copies into the view and
writing copies out of it, so every rule is reversible by construction, and reading needs no memory beside the
model's own.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from moeworks.config.mixers import MixerConfig
from moeworks.config.model import ModelConfig


@dataclass(frozen=True)
class Place:
    """Where a rule is applied."""

    model: ModelConfig
    mixer: MixerConfig
    """That of the layer."""


View = Callable[..., Any]
"""From a Place and our tensors to a view of them, or to a list of views that lie beside each other."""


@dataclass(frozen=True)
class Rule:
    """One published tensor."""

    theirs: str
    """Its name, within a layer or within the model. {e} runs over the experts, in numerical order; {s} is the
    place of a layer among those that make one published layer."""
    ours: str | tuple[str, ...]
    """The names of our tensors; with {e} in `theirs`, expert e's part of each."""
    view: View | None = None
    """None: the tensor itself."""
    dim: int = 0
    """Along which several views lie beside each other."""
    flatten: tuple[int, int] | None = None
    """Dimensions of the view that are one in the published tensor."""
    only: str | None = None
    """The kind of mixer whose layers it is for; None: any."""

    @property
    def names(self) -> tuple[str, ...]:
        """`ours` as a tuple."""
        return (self.ours,) if isinstance(self.ours, str) else self.ours


@dataclass(frozen=True)
class Either:
    """Layouts that both occur: read whichever a checkpoint holds, write the first."""

    options: tuple[tuple[Rule, ...], ...]


Rules = tuple[Rule | Either, ...]


@dataclass(frozen=True, kw_only=True)
class WeightMap:
    """All tensors of a family's checkpoints."""

    layer_prefix: str = "model.layers.{i}."
    """Before the names of a layer's tensors; {i} is its number."""
    layers_in_one: int = 1
    """Layers of ours that make one of the published numbers (LongCat-Flash: 2)."""
    top: Rules
    """Tensors outside the layers."""
    layer: Rules
    """Tensors of a layer; those for which a layer has nothing are passed over."""
    mtp: Rules = ()
    """Further tensors of a multi-token prediction layer, which is numbered after the others."""
    ignored: tuple[str, ...] = ()
    """Patterns (fnmatch) of tensors that carry nothing of their own; {n} is the number of layers."""
    renamed: tuple[tuple[str, str], ...] = ()
    """Parts of names that some writers put in the place of others, as (theirs, usual), applied in this order:
    those of releases around other models, and those that transformers gives the tensors in memory."""
