"""Weight rules applied to a model: which view of its tensors each published tensor is."""

import os
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

import torch
from torch import Tensor

from moeworks.checkpoint.source import Source
from moeworks.config.model import ModelConfig
from moeworks.config.weight_rules import Either, Place, Rule, Rules, WeightMap
from moeworks.errors import CheckpointError

_LISTED = 5
_READERS = 4
"""Largest number of reading threads; more do not read faster from the page cache."""
_EXPERT = "{e}"
_PLACE = "{s}"
_FREQUENCIES = "*.rotary_emb.inv_freq"
"""Pattern of buffers in old checkpoints, whose values follow from the config."""


@dataclass(frozen=True, eq=False)
class Binding:
    """One published tensor and the views of a model's tensors that it consists of."""

    name: str
    parts: tuple[Tensor, ...]
    dim: int
    flatten: tuple[int, int] | None

    @property
    def unflattened(self) -> tuple[int, ...]:
        """Shape of the parts joined along `dim`, before flattening."""
        shape = list(self.parts[0].shape)
        shape[self.dim] = sum(part.shape[self.dim] for part in self.parts) if shape else 0
        return tuple(shape) if self.parts[0].dim() else ()

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the published tensor."""
        whole = self.unflattened
        if self.flatten is None:
            return whole
        first, last = self.flatten
        joined = 1
        for size in whole[first : last + 1]:
            joined *= size
        return (*whole[:first], joined, *whole[last + 1 :])

    @torch.no_grad()
    def fill(self, published: Tensor) -> None:
        """Copy a published tensor into the model, in the model's dtype."""
        pieces = published.reshape(self.unflattened)
        if len(self.parts) == 1:
            self.parts[0].copy_(pieces)
            return
        sizes = [part.shape[self.dim] for part in self.parts]
        for part, piece in zip(self.parts, pieces.split(sizes, dim=self.dim), strict=True):
            part.copy_(piece)

    def collect(self) -> Tensor:
        """The published tensor, contiguous, sharing no memory with the model."""
        parts = [part.detach() for part in self.parts]
        whole = parts[0] if len(parts) == 1 else torch.cat(parts, dim=self.dim)
        return whole.reshape(self.shape).clone(memory_format=torch.contiguous_format)


def bind(
    weights: WeightMap, model: ModelConfig, tensors: Mapping[str, Tensor], present: set[str] | None = None
) -> list[Binding]:
    """All bindings between `tensors`, a decoder's state, and published names.

    `present` chooses between layouts, those names being in the checkpoint; None: the ones that are written.
    Raises CheckpointError when a tensor of ours is not covered whole: the family lacks a rule.
    """
    bindings = list(_instances(weights.top, "", "", Place(model, model.attention), tensors, present))
    for layer in range(model.num_layers):
        place = Place(model, model.mixer(layer))
        number, part = divmod(layer, weights.layers_in_one)
        rules = _at(weights.layer, part)
        theirs = weights.layer_prefix.format(i=number)
        bindings += _instances(rules, theirs, f"layers.{layer}.", place, tensors, present)
    for extra in range(model.num_mtp_layers):
        place = Place(model, model.mixer(model.mtp_like))
        theirs = weights.layer_prefix.format(i=model.num_layers + extra)
        bindings += _instances(weights.layer, theirs, f"mtp.{extra}.block.", place, tensors, present)
        bindings += _instances(weights.mtp, theirs, f"mtp.{extra}.", place, tensors, present)
    _check_covered(bindings, tensors)
    return bindings


def fill(
    weights: WeightMap, model: ModelConfig, tensors: Mapping[str, Tensor], source: Source, origin: str
) -> None:
    """Fill `tensors` from `source`, for which `check_names` has passed. Raises CheckpointError."""
    renamed = usual_names(weights, source.names())

    def refused(binding: Binding) -> bool:
        whole = len(binding.parts) == 1
        return not (whole and source.read_into(renamed[binding.name], binding.parts[0]))

    bindings = bind(weights, model, tensors, set(renamed))
    with ThreadPoolExecutor(min(os.cpu_count() or 1, _READERS)) as pool:
        rest = [binding for binding, no in zip(bindings, pool.map(refused, bindings), strict=True) if no]
    # Tensors that are dequantised or reordered need extra memory, so they are read one at a time.
    for binding in rest:
        name = renamed[binding.name]
        published = source.tensor(name)
        if not published.dtype.is_floating_point:
            raise CheckpointError(
                f"{origin}: {binding.name}: its dtype is {published.dtype}; expected a floating-point one"
            )
        binding.fill(published)
        source.release(name)


def check_names(
    weights: WeightMap, model: ModelConfig, tensors: Mapping[str, Tensor], source: Source, origin: str
) -> None:
    """Raise CheckpointError naming tensors that are missing, extra or misshapen; reads no values.

    `tensors` may be on the meta device, so that a wrong config costs no memory.
    """
    renamed = usual_names(weights, source.names())
    bindings = {binding.name: binding for binding in bind(weights, model, tensors, set(renamed))}
    problems = [f"{name} is missing" for name in bindings.keys() - renamed.keys()]
    problems += [
        f"{name} is unknown to the model"
        for name in renamed.keys() - bindings.keys()
        if not _ignored(weights, name, model.num_layers)
    ]
    for name in bindings.keys() & renamed.keys():
        got, want = source.shape(renamed[name]), bindings[name].shape
        if got != want:
            problems.append(f"{name} has shape {got}, the config means {want}")
    if problems:
        listed = "; ".join(sorted(problems)[:_LISTED])
        more = f"; and {len(problems) - _LISTED} more" if len(problems) > _LISTED else ""
        raise CheckpointError(f"{origin}: not a checkpoint of its config: {listed}{more}")


def usual_names(weights: WeightMap, names: Iterable[str]) -> dict[str, str]:
    """The usual name of each tensor, and its name in the checkpoint.

    Raises CheckpointError for one that is held under two names.
    """
    usual: dict[str, str] = {}
    for name in names:
        plain = name
        for theirs, ours in weights.renamed:
            plain = plain.replace(theirs, ours)
        if plain in usual:
            raise CheckpointError(
                f"{usual[plain]} and {name} are two names of one tensor; a checkpoint holds one of them"
            )
        usual[plain] = name
    return usual


def _ignored(weights: WeightMap, name: str, layers: int) -> bool:
    patterns = (pattern.replace("{n}", str(layers)) for pattern in weights.ignored)
    return any(fnmatchcase(name, pattern) for pattern in (*patterns, _FREQUENCIES))


def _at(rules: Rules, part: int) -> Rules:
    """`rules` for the layer at place `part` of those that make one published layer."""

    def named(rule: Rule) -> Rule:
        return replace(rule, theirs=rule.theirs.replace(_PLACE, str(part)))

    return tuple(
        named(entry)
        if isinstance(entry, Rule)
        else Either(tuple(tuple(named(rule) for rule in option) for option in entry.options))
        for entry in rules
    )


def _instances(
    rules: Rules,
    theirs: str,
    ours: str,
    place: Place,
    tensors: Mapping[str, Tensor],
    present: set[str] | None,
) -> Iterator[Binding]:
    """The bindings of `rules` under two prefixes, for those of our tensors that there are."""
    for entry in rules:
        chosen = (entry,) if isinstance(entry, Rule) else _choose(entry, theirs, present)
        for rule in chosen:
            if rule.only not in (None, place.mixer.kind):
                continue
            found = [tensors[ours + name] for name in rule.names if ours + name in tensors]
            if len(found) == len(rule.names):
                yield from _bind_rule(rule, theirs, found, place)


def _choose(either: Either, theirs: str, present: set[str] | None) -> tuple[Rule, ...]:
    """The layout of which the checkpoint holds a tensor; the first layout if it holds none."""
    held = present or set()
    for option in either.options:
        if any(theirs + rule.theirs.replace(_EXPERT, "0") in held for rule in option):
            return option
    return either.options[0]


def _bind_rule(rule: Rule, prefix: str, tensors: list[Tensor], place: Place) -> Iterator[Binding]:
    if _EXPERT not in rule.theirs:
        yield _binding(rule, prefix + rule.theirs, tensors, place)
        return
    for expert in range(tensors[0].shape[0]):
        name = prefix + rule.theirs.replace(_EXPERT, str(expert))
        yield _binding(rule, name, [t[expert] for t in tensors], place)


def _binding(rule: Rule, name: str, tensors: list[Tensor], place: Place) -> Binding:
    viewed = tensors[0] if rule.view is None else rule.view(place, *tensors)
    parts = tuple(viewed) if isinstance(viewed, (list, tuple)) else (viewed,)
    return Binding(name, parts, rule.dim, rule.flatten)


def _check_covered(bindings: list[Binding], tensors: Mapping[str, Tensor]) -> None:
    """Compare counts of elements: views of meta tensors have no addresses that could be compared."""
    bound = sum(part.numel() for binding in bindings for part in binding.parts)
    wanted = sum(tensor.numel() for tensor in tensors.values())
    if bound != wanted:
        raise CheckpointError(
            f"the family's weight rules cover {bound} of the model's {wanted} numbers, expected each once: a"
            " rule is missing or doubled"
        )
