"""The tensors of a published checkpoint and those of a decoder, as rules of correspondence; no torch.

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
    """Place in a model where a rule is applied."""

    model: ModelConfig
    mixer: MixerConfig
    """Mixer of the layer."""


View = Callable[..., Any]
"""Function from a Place and our tensors to a view of them, or to a list of views that lie side by side."""


@dataclass(frozen=True)
class Rule:
    """One published tensor."""

    theirs: str
    """Published name, within a layer or within the model. {e} runs over the experts, in numerical order; {s}
    is the place of a layer among those that make one published layer."""
    ours: str | tuple[str, ...]
    """The names of our tensors; with {e} in `theirs`, expert e's part of each."""
    view: View | None = None
    """View of our tensors that is the published one; None is the tensor itself."""
    dim: int = 0
    """Dimension along which several views lie side by side."""
    flatten: tuple[int, int] | None = None
    """Dimensions of the view that are a single one in the published tensor."""
    only: str | None = None
    """Kind of mixer whose layers the rule is for; None is every kind."""

    @property
    def names(self) -> tuple[str, ...]:
        """`ours` as a tuple."""
        return (self.ours,) if isinstance(self.ours, str) else self.ours


@dataclass(frozen=True)
class Either:
    """Alternative layouts: reading takes the one that the checkpoint holds, writing the first."""

    options: tuple[tuple[Rule, ...], ...]


Rules = tuple[Rule | Either, ...]


@dataclass(frozen=True, kw_only=True)
class WeightMap:
    """All tensors of a family's checkpoints."""

    layer_prefix: str = "model.layers.{i}."
    """Prefix of the names of the tensors of a layer; {i} is its number."""
    layers_in_one: int = 1
    """Number of our layers that make one published layer (LongCat-Flash: 2)."""
    top: Rules
    """Rules of the tensors outside the layers."""
    layer: Rules
    """Rules of the tensors of a layer; those that do not apply to a layer are skipped."""
    mtp: Rules = ()
    """Rules of further tensors of a multi-token prediction layer, which is numbered after the others."""
    ignored: tuple[str, ...] = ()
    """Patterns (fnmatch) of tensors that hold nothing to read; {n} is the number of layers."""
    renamed: tuple[tuple[str, str], ...] = ()
    """Parts of names that some writers put in the place of others, as (theirs, usual), applied in this order:
    those of releases around other models, and those that transformers gives the tensors in memory."""
