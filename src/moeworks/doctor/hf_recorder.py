"""Recording what a transformers model routes, by forward hooks: one Routing per MoE layer and forward pass.

    with TransformersRecorder(model) as recorder:
        model(**batch)
        model.generate(**batch, max_new_tokens=20)
    for routed in recorder.passes:
        balance_losses(routed.routings, balance)

The hooks look and change nothing: outputs stay as they are, bit for bit, and the hooks are gone after the
`with`. What runs outside a forward pass of the whole model, e.g. a layer that is computed again in the
backward pass, is not recorded. The families' ways are in hf_routing.py; nothing imports transformers.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from moeworks.doctor.hf_routing import Block, Choice, find_blocks, to_routing
from moeworks.errors import ConfigError
from moeworks.ops.routing import Routing


@dataclass(frozen=True, eq=False)
class RoutedPass:
    """One forward pass of one stack of layers over T = B * L tokens, the rows of each Routing."""

    stack: str
    """Path of the module that owns the layers, e.g. "model", or "encoder" and "decoder"."""
    layers: tuple[int, ...]
    """The MoE layers that ran, by their index in the stack, dense ones counted; ascending. Where a stack runs
    a layer again in the same pass, its n-th time (from 0) counts as index + n * (layers of the stack)."""
    routings: tuple[Routing, ...]
    """One per entry of `layers`; valid_T is there where the model was given an attention mask."""
    shape: tuple[int, int] | None
    """B and L; None for a stack that reads neither tokens nor embeddings of them, such as a vision tower."""
    token_ids_BL: Tensor | None
    """int64; None where the model was given embeddings only."""
    positions_BL: Tensor | None
    """int64: valid tokens before each one, those in the cache counted."""
    phase: Literal["prefill", "decode", "train"]
    """train: the stack is in training mode; decode: its cache held tokens before; else prefill."""
    attention_routings: tuple[Routing, ...] = ()
    """Of mixtures of attention heads (JetMoE)."""


@dataclass
class _Open:
    """A pass that has begun."""

    arguments: dict[str, Any]
    seen: dict[str, list[tuple[Any, ...]]] = field(default_factory=dict)
    chosen: list[tuple[Block, Choice]] = field(default_factory=list)


class TransformersRecorder:
    """Watches a transformers model; a context manager that can be entered again.

    Args:
        model: any model of transformers with MoE layers, or the part of one that is called.
        on_pass: is given each pass when it is over; None keeps all in `passes`.
        detach: give tensors without their graph; False lets a loss on a Routing reach the router.

    Raises ConfigError for a model without MoE layers, for one whose choices hooks cannot see, and, during a
    forward pass, for what would make the record untrue: an attention mask that is not [batch, length], or
    layers that route only some of the tokens.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        on_pass: Callable[[RoutedPass], None] | None = None,
        detach: bool = True,
    ) -> None:
        self.blocks = find_blocks(model)
        self.passes: list[RoutedPass] = []
        self._model = model
        self._on_pass = on_pass or self.passes.append
        self._detach = detach
        self._handles: list[RemovableHandle] = []
        self._outer: dict[str, Any] | None = None
        self._open: dict[str, _Open] = {}

    def __enter__(self) -> "TransformersRecorder":
        self._hook_calls(self._model, self._enter_model, self._leave_model)
        for stack in dict.fromkeys(block.stack for block in self.blocks):
            owner = self._model.get_submodule(stack)
            self._hook_calls(owner, _partial(self._begin, stack), _partial(self._end, stack))
        for block in self.blocks:
            for child, side in block.reading.watched:
                self._watch(block, child, side)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles, self._outer, self._open = [], None, {}

    # Calls of the model and of its stacks.

    def _hook_calls(self, module: nn.Module, before: Callable[..., None], after: Callable[..., None]) -> None:
        self._handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
        self._handles.append(module.register_forward_hook(after, with_kwargs=True))

    def _enter_model(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        self._outer, self._open = _arguments(module, args, kwargs), {}

    def _leave_model(self, *_: Any) -> None:
        self._outer = None

    def _begin(self, stack: str, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        arguments = _arguments(module, args, kwargs)
        # How much the cache holds has to be asked before the pass fills it.
        arguments["past"] = _cached(arguments)
        self._open[stack] = _Open(arguments)

    def _end(self, stack: str, module: nn.Module, *_: Any) -> None:
        opened = self._open.pop(stack, None)
        if opened is None:
            return
        unseen = sorted(set(opened.seen) - {block.path for block, _ in opened.chosen})
        if unseen:
            raise ConfigError(
                f"{unseen[0]}: its router ran and its experts were not called as a module, so that what they"
                " were given cannot be seen"
            )
        if opened.chosen:
            self._on_pass(_finish(stack, module, opened, self._outer or {}, self._detach))

    # What a block shows.

    def _watch(self, block: Block, child: str, side: str) -> None:
        module = block.module.get_submodule(child)
        last = (child, side) == block.reading.watched[-1]

        def keep(values: tuple[Any, ...]) -> None:
            opened = self._open.get(block.stack)
            if opened is None:
                if self._outer is not None:
                    raise ConfigError(f"{block.path} runs outside a call of {block.stack!r}, which owns it")
                return
            first = (child, side) == block.reading.watched[0]
            seen = opened.seen.setdefault(block.path, [])
            if first:
                seen.clear()
            seen.append(values)
            if last:
                opened.chosen.append((block, block.reading.read(block.module, list(seen))))

        def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            keep((*args, *kwargs.values()))

        def after(_: nn.Module, __: Any, output: Any) -> None:
            keep(tuple(output) if isinstance(output, (tuple, list)) else (output,))

        if side == "in":
            self._handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
        else:
            self._handles.append(module.register_forward_hook(after))


def _partial(function: Callable[..., None], stack: str) -> Callable[..., None]:
    def call(*args: Any) -> None:
        function(stack, *args)

    return call


def _arguments(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    """What a module was called with, by name; positions that its signature does not name are left out."""
    try:
        bound = inspect.signature(module.forward).bind_partial(*args, **kwargs).arguments
    except TypeError:
        return dict(kwargs)
    return {**bound, **bound.get("kwargs", {}), **kwargs}


def _cached(arguments: dict[str, Any]) -> int:
    """Tokens that the cache holds."""
    cache = arguments.get("cache", arguments.get("past_key_values"))
    return int(cache.get_seq_length()) if hasattr(cache, "get_seq_length") else 0


def _finish(stack: str, owner: nn.Module, opened: _Open, outer: dict[str, Any], detach: bool) -> RoutedPass:
    own, past = opened.arguments, opened.arguments["past"]
    tokens, shape = own.get("input_ids"), None
    if tokens is None and own.get("inputs_embeds") is not None:
        shape = tuple(own["inputs_embeds"].shape[:2])
        given = outer.get("input_ids")
        tokens = given if given is not None and tuple(given.shape) == shape else None
    elif tokens is not None:
        shape = tuple(tokens.shape)
    valid_BL = positions_BL = sequences_T = None
    if shape is not None:
        mask = _mask(own, outer, past + shape[1])
        valid_BL = None if mask is None else mask[:, -shape[1] :].bool()
        device = opened.chosen[0][1].ids_TK.device
        positions_BL = _positions(mask, past, shape, device)
        sequences_T = torch.arange(shape[0], device=device).repeat_interleave(shape[1])
        _check_rows(opened, shape)
    valid_T = None if valid_BL is None else valid_BL.reshape(-1)
    visits: dict[str, int] = {}
    numbered: dict[int, Routing] = {}
    attention = []
    for block, choice in opened.chosen:
        routing = to_routing(choice, valid_T, sequences_T)
        if detach:
            routing = routing.with_tensors(tuple(t.detach() for t in routing.tensors()))
        if block.attention:
            attention.append(routing)
            continue
        visit = visits[block.path] = visits.get(block.path, -1) + 1
        numbered[block.layer + visit * block.depth] = routing
    phase = "train" if owner.training else "decode" if past else "prefill"
    layers = tuple(sorted(numbered))
    routings = tuple(numbered[layer] for layer in layers)
    return RoutedPass(stack, layers, routings, shape, tokens, positions_BL, phase, tuple(attention))


def _mask(own: dict[str, Any], outer: dict[str, Any], length: int) -> Tensor | None:
    """The attention mask [B, length] of a stack, its own or else that of the whole model."""
    mask = own.get("attention_mask")
    if mask is None:
        return None
    for given in (mask, outer.get("attention_mask")):
        if isinstance(given, Tensor) and given.dim() == 2 and given.shape[1] == length:
            return given
    if "attention_mask" in outer and outer["attention_mask"] is None:
        return None
    raise ConfigError("attention_mask: must be [batch, length] with 0 for padding, to tell what is padding")


def _positions(mask: Tensor | None, past: int, shape: tuple[int, ...], device: torch.device) -> Tensor:
    if mask is None:
        return (torch.arange(shape[1], device=device) + past).expand(shape)
    return (mask.long().cumsum(dim=1) - 1).clamp(min=0)[:, -shape[1] :]


def _check_rows(opened: _Open, shape: tuple[int, ...]) -> None:
    for block, choice in opened.chosen:
        rows = choice.ids_TK.shape[0]
        if rows != shape[0] * shape[1]:
            raise ConfigError(
                f"{block.path}: routes {rows} rows, and the pass has {shape[0]} x {shape[1]} tokens; a record"
                " of some of them (images among text) would be taken for one of others"
            )
