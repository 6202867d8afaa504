"""From the passes of a transformers model to a trace on disk.

with record_transformers(model, "trace.parquet", tokenizer=tokenizer) as recorder:
    model(**batch)
    recorder.domain = "poems"
    model.generate(**inputs, max_new_tokens=50)
"""

import hashlib
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from moeworks.doctor.hf_recorder import RoutedPass, TransformersRecorder
from moeworks.errors import ConfigError, check
from moeworks.trace.block import PHASES, LayerColumns, TokenColumns, TraceBlock, token_columns
from moeworks.trace.header import LAYER_FIELDS, LayerField, TraceHeader
from moeworks.trace.record import record
from moeworks.trace.write import TraceWriter


def engine_name() -> str:
    """What a header says of the program that computed the routing."""
    return f"transformers {metadata.version('transformers')}"


def routed_header(routed: RoutedPass, fields: Sequence[LayerField], **identity: Any) -> TraceHeader:
    """The header of a trace of passes like `routed`; `identity` are TraceHeader's other fields.

    Raises ConfigError when its layers differ in their number of experts or in top_k.
    """
    for name in ("num_experts", "top_k"):
        values = sorted({getattr(routing, name) for routing in routed.routings})
        check(len(values) == 1, name, values, "differs between layers; a trace has one for all of them")
    first = routed.routings[0]
    return TraceHeader(
        num_experts=first.num_experts,
        top_k=first.top_k,
        layers=routed.layers,
        fields=tuple(name for name in LAYER_FIELDS if name in fields),
        **identity,
    )


@contextmanager
def record_transformers(
    model: nn.Module,
    path: str | Path,
    *,
    tokenizer: Any = None,
    fields: Sequence[LayerField] = ("weights", "entropy", "margin"),
    stack: str | None = None,
    name: str | None = None,
) -> Generator["TransformersTrace"]:
    """Record every forward pass of `model` inside the `with` as a trace, generation included.

    Args:
        model: a transformers model with MoE layers; its outputs stay what they are.
        path: the trace, which appears whole when the `with` ends well, and not at all otherwise.
        tokenizer: the model's fast tokenizer, which then names the token ids in the header.
        fields: columns beside the expert ids (docs/trace-format.md).
        stack: which layers, by the path of their owner, where a pass runs several: "encoder" or "decoder".
        name: of the model, for the header; None is what transformers calls it.

    Each row of a batch is a sequence, and a document. A pass with a cache that holds tokens goes on with the
    rows of the one before; beam search, which exchanges rows, is not to be recorded. Raises ConfigError for
    what TransformersRecorder refuses, and at the end when no pass was seen.
    """
    kept = TransformersTrace(Path(path), model, tokenizer, fields, stack, name)
    recorder = TransformersRecorder(model, on_pass=kept._add)
    stacks = sorted({block.stack for block in recorder.blocks})
    check(stack is None or stack in stacks, "stack", stack, f"must be one of {stacks}")
    with ExitStack() as writing:
        kept._opened = writing.enter_context
        with recorder:
            yield kept
        kept._finish()


class TransformersTrace:
    """The trace that is being recorded. Set `domain` to label the texts of the passes that follow."""

    def __init__(
        self,
        path: Path,
        model: nn.Module,
        tokenizer: Any,
        fields: Sequence[LayerField],
        stack: str | None,
        name: str | None,
    ) -> None:
        self.domain = ""
        self._path, self._stack, self._fields = path, stack, fields
        config = getattr(model, "config", None)
        backend = getattr(tokenizer, "backend_tokenizer", None)
        self._identity = dict(
            model=name or getattr(config, "_name_or_path", "") or type(model).__name__,
            engine=engine_name(),
            tokenizer_fingerprint=None
            if backend is None
            else hashlib.sha256(backend.to_str().encode()).hexdigest(),
        )
        self._opened: Callable[[TraceWriter], TraceWriter]
        self._writer: TraceWriter | None = None
        self._first: str | None = None
        self._held: list[TraceBlock] = []
        self._rows = self._next = 0

    @property
    def num_tokens(self) -> int:
        """Tokens recorded so far, padding left out."""
        written = 0 if self._writer is None else self._writer.num_tokens
        return written + sum(len(block.tokens) for block in self._held)

    def _add(self, routed: RoutedPass) -> None:
        if not self._wanted(routed):
            return
        if self._writer is None:
            header = routed_header(routed, self._fields, **self._identity)
            self._writer = self._opened(TraceWriter(self._path, header))
        header = self._writer.header
        same = routed.layers == header.layers
        check(same, "layers", routed.layers, f"ran in this pass, and {header.layers} in those before")
        block = record(routed.routings, self._tokens(routed), header)
        if block.tokens.phase.size and PHASES[block.tokens.phase[0]] != "decode":
            self._flush()
        self._held.append(block)

    def _wanted(self, routed: RoutedPass) -> bool:
        """Whether the pass is of the stack to record. Raises ConfigError when that is not clear."""
        if self._stack is not None:
            return routed.stack == self._stack
        first = self._first = routed.stack if self._first is None else self._first
        if routed.stack != first:
            raise ConfigError(f"stack: both {first!r} and {routed.stack!r} ran; say which one to record")
        return True

    def _tokens(self, routed: RoutedPass) -> TokenColumns:
        if routed.shape is None or routed.positions_BL is None:
            raise ConfigError(f"{routed.stack or 'the model'}: reads no tokens, so there is no trace of it")
        rows, length = routed.shape
        if routed.phase == "decode" and self._rows:
            check(rows == self._rows, "batch", rows, f"goes on with a cache of {self._rows} rows")
        else:
            self._next, self._rows = self._next + self._rows, rows
        ids = routed.token_ids_BL
        sequence = np.repeat(np.arange(rows) + self._next, length)
        return token_columns(
            rows * length,
            token_id=None if ids is None else ids.reshape(-1).cpu().numpy(),
            position=routed.positions_BL.reshape(-1).cpu().numpy(),
            sequence=sequence,
            document=sequence,
            phase=np.full(rows * length, PHASES.index(routed.phase)),
            domains=(self.domain,),
        )

    def _flush(self) -> None:
        """Write what is held: the passes of one batch, sorted into its sequences."""
        if self._held and self._writer is not None:
            self._writer.append(in_sequences(self._held))
            self._held = []

    def _finish(self) -> None:
        if self._writer is None:
            raise ConfigError(f"{self._path}: nothing was recorded, for the model did not run")
        self._flush()


def in_sequences(blocks: Sequence[TraceBlock]) -> TraceBlock:
    """Blocks of the same sequences as one, the tokens of each sequence following each other."""
    if len(blocks) == 1:
        return blocks[0]
    order = np.argsort(np.concatenate([block.tokens.sequence for block in blocks]), kind="stable")
    columns = {
        name: np.concatenate([getattr(block.tokens, name) for block in blocks])[order]
        for name in vars(blocks[0].tokens)
        if name != "domains"
    }
    tokens = replace(blocks[0].tokens, **columns)  # pyrefly: ignore[bad-argument-type]
    layers = tuple(_joined(layers, order) for layers in zip(*(block.layers for block in blocks), strict=True))
    return TraceBlock(tokens, layers)


def _joined(parts: Sequence[LayerColumns], order: np.ndarray) -> LayerColumns:
    present = {name for name, value in vars(parts[0]).items() if value is not None}
    return LayerColumns(
        **{name: np.concatenate([getattr(p, name) for p in parts])[order] for name in present}
    )
