"""The Arrow schema of a trace, and numpy arrays to Arrow columns and back; see docs/trace-format.md."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from moeworks.errors import DataError
from moeworks.trace.block import (
    PHASES,
    LayerColumns,
    TokenColumns,
    TraceBlock,
    half_floats,
    id_dtype,
    whole_numbers,
)
from moeworks.trace.header import METADATA_KEY, TraceHeader

_LABEL = pa.dictionary(pa.int32(), pa.string())
TOKEN_TYPES: dict[str, pa.DataType] = {
    "token_id": pa.int32(),
    "position": pa.int32(),
    "sequence": pa.int32(),
    "document": pa.int32(),
    "domain": _LABEL,
    "phase": _LABEL,
    "valid": pa.bool_(),
}


def trace_schema(header: TraceHeader) -> pa.Schema:
    """Token columns, then `ids_N`, `weights_N`, ... for each layer N."""
    columns = [pa.field(name, kind, nullable=False) for name, kind in TOKEN_TYPES.items()]
    for layer in header.layers:
        for name in ("ids", *header.fields):
            columns.append(pa.field(f"{name}_{layer}", _layer_type(name, header), nullable=False))
    return pa.schema(columns, metadata={METADATA_KEY: header.encode()})


def _layer_type(name: str, header: TraceHeader) -> pa.DataType:
    half = pa.float16()
    if name in ("entropy", "margin"):
        return half
    if name == "logits":
        return _fixed_list(half, header.num_experts)
    value = {"ids": pa.from_numpy_dtype(id_dtype(header.num_ids)), "kept": pa.bool_()}.get(name, half)
    return _fixed_list(value, header.top_k)


def _fixed_list(value: pa.DataType, size: int) -> pa.DataType:
    return pa.list_(pa.field("element", value, nullable=False), size)


def parquet_options(header: TraceHeader) -> dict[str, Any]:
    """Encodings: dictionaries, which pack ids into ceil(log2 E) bits and suit half floats as well, and zstd.

    Splitting the bytes of half floats (BYTE_STREAM_SPLIT) gives the same size faster, but DuckDB 2.0 cannot
    read that. Least and greatest values are kept of the token columns alone: no query skips pages by those
    of a layer, and finding them takes half of the time of writing half floats.
    """
    coded = [_leaf(name, layer) for layer in header.layers for name in ("ids", *header.fields)]
    dictionary = [
        name for name in (*TOKEN_TYPES, *coded) if name != "valid" and not name.startswith(("logits", "kept"))
    ]
    return dict(compression="zstd", use_dictionary=dictionary, write_statistics=list(TOKEN_TYPES))


def _leaf(field: str, layer: int) -> str:
    nested = "" if field in ("entropy", "margin") else ".list.element"
    return f"{field}_{layer}{nested}"


def to_batch(block: TraceBlock, header: TraceHeader, schema: pa.Schema) -> pa.RecordBatch:
    """The block as Arrow; shapes are those that check_block asks for."""
    tokens = block.tokens
    columns: list[pa.Array] = [
        pa.array(whole_numbers(getattr(tokens, name), f"tokens.{name}", np.int32))
        for name in ("token_id", "position", "sequence", "document")
    ]
    columns.append(_labels(tokens.domain, tokens.domains))
    columns.append(_labels(tokens.phase, PHASES))
    columns.append(pa.array(whole_numbers(tokens.valid, "tokens.valid", np.bool_)))
    for number, layer in zip(header.layers, block.layers, strict=True):
        for name in ("ids", *header.fields):
            kind = _layer_type(name, header)
            columns.append(_to_arrow(getattr(layer, name), kind, f"{name}_{number}"))
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _labels(codes: np.ndarray, names: Sequence[str]) -> pa.Array:
    return pa.DictionaryArray.from_arrays(pa.array(codes, pa.int32()), pa.array(names, pa.string()))


def _to_arrow(values: np.ndarray, kind: pa.DataType, field: str) -> pa.Array:
    leaf = kind.value_type if pa.types.is_fixed_size_list(kind) else kind
    if pa.types.is_floating(leaf):
        stored = half_floats(values)
    else:
        dtype = np.bool_ if pa.types.is_boolean(leaf) else leaf.to_pandas_dtype()
        stored = whole_numbers(values, field, dtype)
    flat = pa.array(np.ascontiguousarray(stored).reshape(-1))
    return flat if leaf is kind else pa.FixedSizeListArray.from_arrays(flat, type=kind)


def to_numpy(column: pa.ChunkedArray) -> np.ndarray:
    """[T] or [T, K] of a column; without a copy where it is one chunk of numbers."""
    array = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):  # combine_chunks of no chunk at all
        array = pa.concat_arrays([*array.chunks, pa.array([], column.type)])
    if pa.types.is_fixed_size_list(array.type):
        width = array.type.list_size
        flat = array.flatten().to_numpy(zero_copy_only=False)
        return flat.reshape(-1, width)
    return array.to_numpy(zero_copy_only=False)


def label_codes(column: pa.ChunkedArray) -> tuple[np.ndarray, tuple[str, ...]]:
    """int32 codes and names of a label column, over all chunks; plain strings do too."""
    if not pa.types.is_dictionary(column.type):
        column = column.dictionary_encode()
    column = column.unify_dictionaries()
    names = tuple(column.chunk(0).dictionary.to_pylist()) if column.num_chunks else ()
    codes = [chunk.indices.to_numpy(zero_copy_only=False) for chunk in column.chunks]
    return np.concatenate([np.zeros(0, np.int32), *codes]).astype(np.int32), names


def check_columns(table: pa.Table, source: str) -> None:
    """Raise DataError, naming `source`, for columns with nulls and for phases that the format does not have.

    Nulls would become NaN where whole numbers are meant, or shift the tokens behind them.
    """
    for name, column in zip(table.column_names, table.columns, strict=True):
        nulls = sum(_nulls(chunk) for chunk in column.chunks)
        if nulls:
            raise DataError(
                f"{source}: column {name} has {nulls:,} nulls; a trace has a value for every token"
            )
    if "phase" in table.column_names:
        unknown = [name for name in label_codes(table["phase"])[1] if name not in PHASES]
        if unknown:
            raise DataError(f"{source}: the phase {unknown[0]!r} is unknown; known: {', '.join(PHASES)}")


def _nulls(array: pa.Array) -> int:
    """Nulls of an array, of the elements of its lists, or of its labels."""
    if pa.types.is_dictionary(array.type):
        return array.null_count + array.dictionary.null_count
    inner = array.flatten().null_count if pa.types.is_fixed_size_list(array.type) else 0
    return array.null_count + inner


def token_columns_of(table: pa.Table) -> TokenColumns:
    """The token columns of a table that has them all."""
    domain, domains = label_codes(table["domain"])
    phase, phases = label_codes(table["phase"])
    known = np.array([PHASES.index(name) if name in PHASES else -1 for name in phases] or [0], np.int8)
    plain = ("token_id", "position", "sequence", "document", "valid")
    return TokenColumns(
        **{name: to_numpy(table[name]) for name in plain},
        domain=domain,
        phase=known[phase],
        domains=domains or ("",),
    )


def layer_columns_of(table: pa.Table, header: TraceHeader, layer: int) -> LayerColumns:
    """The columns of one layer from a table that has them."""
    return LayerColumns(**{f: to_numpy(table[f"{f}_{layer}"]) for f in ("ids", *header.fields)})
