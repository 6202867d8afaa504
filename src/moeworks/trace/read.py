"""A routing trace, from a file that is read as far as it is asked for, or in memory."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from moeworks.errors import DataError, check
from moeworks.trace.block import LayerColumns, TokenColumns, TraceBlock, check_block
from moeworks.trace.header import TraceHeader, decode_header
from moeworks.trace.schema import (
    TOKEN_TYPES,
    check_columns,
    layer_columns_of,
    to_batch,
    token_columns_of,
    trace_schema,
)


@runtime_checkable
class _Source(Protocol):
    """Where columns come from; row groups count from 0."""

    num_row_groups: int

    def read(self, columns: Sequence[str], row_group: int | None = None) -> pa.Table: ...


class RoutingTrace:
    """Which experts worked on which token, layer by layer.

    Columns are read when they are asked for, one layer at a time, so that memory is that of one layer. By
    default tokens that are not valid are left out; where all are valid, and the file has one row group, the
    arrays are views of what Arrow read.

    >>> from moeworks.trace.block import TraceBlock, token_columns
    >>> header = TraceHeader(num_experts=4, top_k=2, layers=(3,))
    >>> layer = LayerColumns(np.array([[0, 1], [3, 1]], np.uint8))
    >>> trace = RoutingTrace.from_blocks(header, [TraceBlock(token_columns(2), (layer,))])
    >>> trace.num_tokens, trace.ids(3).tolist()
    (2, [[0, 1], [3, 1]])
    """

    def __init__(self, header: TraceHeader, source: _Source, rows: np.ndarray | None) -> None:
        """`rows` are the tokens that take part, ascending indices; None is all."""
        self.header = header
        self._source = source
        self._rows = rows

    @classmethod
    def open(cls, path: str | Path, *, valid_only: bool = True) -> "RoutingTrace":
        """A trace on disk. Raises DataError when it cannot be read, or is none."""
        source = _File(Path(path))
        return cls._of(source.header, source, valid_only)

    @classmethod
    def from_blocks(
        cls, header: TraceHeader, blocks: Sequence[TraceBlock], *, valid_only: bool = True
    ) -> "RoutingTrace":
        """A trace in memory. Raises ConfigError when a block does not fit the header."""
        for block in blocks:
            check_block(block, header)
        schema = trace_schema(header)
        table = pa.Table.from_batches([to_batch(block, header, schema) for block in blocks], schema=schema)
        return cls._of(header, _Memory(table.unify_dictionaries().combine_chunks()), valid_only)

    @classmethod
    def _of(cls, header: TraceHeader, source: _Source, valid_only: bool) -> "RoutingTrace":
        trace = cls(header, source, None)
        if not valid_only:
            return trace
        valid = trace.tokens.valid
        return trace if valid.all() else cls(header, source, np.flatnonzero(valid))

    @property
    def num_tokens(self) -> int:
        """Number of tokens T."""
        return len(self.tokens)

    @property
    def num_layers(self) -> int:
        """How many MoE layers it has."""
        return len(self.header.layers)

    @cached_property
    def tokens(self) -> TokenColumns:
        """The columns of the tokens that take part."""
        columns = token_columns_of(self._source.read(list(TOKEN_TYPES)))
        return columns if self._rows is None else columns.take(self._rows)

    def layer(self, layer: int) -> LayerColumns:
        """All columns of one MoE layer, by its index in the model.

        Raises DataError for ids that are no experts of the model.
        """
        return self._in_range(self.unchecked_layer(layer), layer)

    def unchecked_layer(self, layer: int) -> LayerColumns:
        """All columns of one MoE layer as they stand, whatever its ids are: what a validator looks at."""
        return self._layer(layer, self.header)

    def ids(self, layer: int) -> np.ndarray:
        """uint8 or uint16 [T, K]: the experts of one layer, best first.

        Raises DataError for ids that are no experts of the model.
        """
        return self._in_range(self._layer(layer, replace(self.header, fields=())), layer).ids

    def weights(self, layer: int) -> np.ndarray:
        """float16 [T, K]. Raises DataError when the trace has no weights."""
        self.require("weights")
        weights = self._layer(layer, replace(self.header, fields=("weights",))).weights
        assert weights is not None
        return weights

    def require(self, field: str) -> None:
        """Raise DataError unless the layers have the column `field`."""
        if field not in self.header.fields:
            raise DataError(f"the trace has no {field}; it has: {', '.join(('ids', *self.header.fields))}")

    def require_full_slots(self, purpose: str) -> None:
        """Raise ConfigError where slots may be empty, which `purpose` cannot do with."""
        empty = self.header.empty_slots
        check(not empty, "trace.empty_slots", empty, f"{purpose} needs equally many experts for every token")

    def where(self, mask: np.ndarray) -> "RoutingTrace":
        """The tokens where the bool [T] `mask` is True."""
        chosen = np.flatnonzero(mask)
        return RoutingTrace(self.header, self._source, chosen if self._rows is None else self._rows[chosen])

    def load(self) -> "RoutingTrace":
        """The same trace in memory, without the tokens that do not take part."""
        layers = tuple(self.layer(number) for number in self.header.layers)
        return RoutingTrace.from_blocks(self.header, [TraceBlock(self.tokens, layers)], valid_only=False)

    def blocks(self) -> Iterator[TraceBlock]:
        """The trace a row group at a time, tokens that do not take part left out."""
        start = 0
        for group in range(self._source.num_row_groups):
            table = self._source.read(trace_schema(self.header).names, group)
            layers = tuple(layer_columns_of(table, self.header, number) for number in self.header.layers)
            block = TraceBlock(token_columns_of(table), layers)
            stop = start + len(block.tokens)
            if self._rows is not None:
                low, high = np.searchsorted(self._rows, [start, stop])
                rows = self._rows[low:high] - start
                block = TraceBlock(block.tokens.take(rows), tuple(x.take(rows) for x in block.layers))
            for number, columns in zip(self.header.layers, block.layers, strict=True):
                self._in_range(columns, number)
            yield block
            start = stop

    def _in_range(self, columns: LayerColumns, layer: int) -> LayerColumns:
        if columns.ids.size and columns.ids.max() >= self.header.num_ids:
            raise DataError(
                f"layer {layer} of the trace holds the id {columns.ids.max()}, and there are"
                f" {self.header.num_experts} experts: physical experts, or a -1 that was cast?"
            )
        return columns

    def _layer(self, layer: int, header: TraceHeader) -> LayerColumns:
        check(layer in self.header.layers, "layer", layer, f"must be one of {self.header.layers}")
        names = [f"{name}_{layer}" for name in ("ids", *header.fields)]
        columns = layer_columns_of(self._source.read(names), header, layer)
        return columns if self._rows is None else columns.take(self._rows)


_VALUES_PER_BYTE, _VALUES = 1024, 1 << 24
"""Values of the widest column per byte of a file, and beside that: equal values compress without a limit, and
a few bytes may claim any number of them."""


class _Memory:
    num_row_groups = 1

    def __init__(self, table: pa.Table) -> None:
        self._table = table

    def read(self, columns: Sequence[str], row_group: int | None = None) -> pa.Table:
        return self._table.select(list(columns))


class _File:
    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._file = pq.ParquetFile(path, memory_map=True)
        except (OSError, pa.ArrowException) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise DataError(f"{path}: cannot be read as a trace: {reason}") from error
        self.num_row_groups = self._file.num_row_groups
        schema = self._file.schema_arrow
        self.header = decode_header(schema.metadata, str(path))
        wanted = trace_schema(self.header)
        for field in wanted:
            index = schema.get_field_index(field.name)
            if index < 0 or schema.field(index).type != field.type:
                found = "missing" if index < 0 else f"a {schema.field(index).type}"
                raise DataError(f"{path}: column {field.name} is {found}, it must be {field.type}")

        rows, width = self._file.metadata.num_rows, self.header.top_k
        width = self.header.num_experts if "logits" in self.header.fields else width
        most = _VALUES_PER_BYTE * path.stat().st_size + _VALUES
        if rows * width > most:
            raise DataError(
                f"{path}: claims {rows:,} tokens with {width:,} values each, too many for its size"
            )

    def read(self, columns: Sequence[str], row_group: int | None = None) -> pa.Table:
        try:
            if row_group is None:
                table = self._file.read(list(columns))
            else:
                table = self._file.read_row_group(row_group, list(columns))
            check_columns(table, str(self._path))
        except (OSError, MemoryError, UnicodeDecodeError, pa.ArrowException) as error:
            raise DataError(f"{self._path}: is damaged: {error}") from error
        return table
