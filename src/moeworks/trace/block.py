"""Columns of a trace as numpy arrays: T tokens, K experts each, E in all."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from moeworks.errors import ConfigError, DataError, check
from moeworks.trace.header import LAYER_FIELDS, TraceHeader

PHASES = ("prefill", "decode", "train")
"""What `TokenColumns.phase` counts through."""


@dataclass(frozen=True, eq=False)
class TokenColumns:
    """One value per token, [T] each. Tokens of a sequence follow each other, positions ascending."""

    token_id: np.ndarray
    """int32, -1 where it is not known."""
    position: np.ndarray
    """int32, as the model saw it: 0 at the start of its context."""
    sequence: np.ndarray
    """int32, one number per context that the model had."""
    document: np.ndarray
    """int32, the text that the token comes from; a document may fill several sequences."""
    domain: np.ndarray
    """int32 index into `domains`."""
    phase: np.ndarray
    """int8 index into PHASES."""
    valid: np.ndarray
    """bool, False for padding and filler, whose routing means nothing."""
    domains: tuple[str, ...] = ("",)
    """Names of the domains."""

    def __len__(self) -> int:
        return len(self.token_id)

    def take(self, rows: np.ndarray | slice) -> "TokenColumns":
        """The tokens of `rows`: indices, a mask or a slice."""
        columns = (f.name for f in fields(self) if f.name != "domains")
        return replace(self, **{name: getattr(self, name)[rows] for name in columns})


@dataclass(frozen=True, eq=False)
class LayerColumns:
    """The routing of one layer."""

    ids: np.ndarray
    """uint8 or uint16 [T, K], best first; the id E in slots that are empty, which come last."""
    weights: np.ndarray | None = None
    """float16 [T, K], as they enter the mix."""
    kept: np.ndarray | None = None
    """bool [T, K], False where capacity dropped the assignment, and in empty slots."""
    entropy: np.ndarray | None = None
    """float16 [T], nats of the router's probabilities, normalised over experts."""
    margin: np.ndarray | None = None
    """float16 [T], the least logit of a chosen expert minus the greatest of the others.

    Negative where a bias or groups overruled the logits; inf for K = E.
    """
    logits: np.ndarray | None = None
    """float16 [T, E], the router's logits."""

    def take(self, rows: np.ndarray | slice) -> "LayerColumns":
        """The tokens of `rows`."""
        present = {f.name: getattr(self, f.name) for f in fields(self)}
        return LayerColumns(**{name: value[rows] for name, value in present.items() if value is not None})


@dataclass(frozen=True, eq=False)
class TraceBlock:
    """Some tokens and the routing of all layers."""

    tokens: TokenColumns
    layers: tuple[LayerColumns, ...]


def token_columns(
    count: int,
    *,
    token_id: np.ndarray | Sequence[int] | None = None,
    position: np.ndarray | Sequence[int] | None = None,
    sequence: np.ndarray | Sequence[int] | None = None,
    document: np.ndarray | Sequence[int] | None = None,
    domain: np.ndarray | Sequence[int] | None = None,
    phase: np.ndarray | Sequence[int] | None = None,
    valid: np.ndarray | Sequence[bool] | None = None,
    domains: Sequence[str] = ("",),
) -> TokenColumns:
    """TokenColumns of `count` tokens in the dtypes of the format, with defaults for what is not given.

    Without `sequence` all tokens are one; without `position` they are numbered inside each sequence; without
    `document` each sequence is one. Raises ConfigError for values that a column cannot hold.
    """
    sequence_T = np.zeros(count, np.int32)
    if sequence is not None:
        sequence_T = whole_numbers(sequence, "tokens.sequence", np.int32)
    defaults: Mapping[str, np.ndarray] = {
        "token_id": np.full(count, -1),
        "position": _places(sequence_T),
        "document": sequence_T,
        "domain": np.zeros(count, np.int32),
        "phase": np.zeros(count, np.int8),
        "valid": np.ones(count, np.bool_),
    }
    given = dict(
        token_id=token_id, position=position, document=document, domain=domain, phase=phase, valid=valid
    )
    columns = {
        name: whole_numbers(
            defaults[name] if value is None else value, f"tokens.{name}", _DTYPES.get(name, np.int32)
        )
        for name, value in given.items()
    }
    for name, column in {"sequence": sequence_T, **columns}.items():
        check(column.shape == (count,), f"tokens.{name}", column.shape, f"must have the shape ({count},)")
    for name, labels in (("domain", domains), ("phase", PHASES)):
        codes = columns[name]
        good = not count or bool(codes.min() >= 0 and codes.max() < len(labels))
        check(good, f"tokens.{name}", _extremes(codes), f"must be indices into {len(labels)} labels")
    return TokenColumns(sequence=sequence_T, domains=tuple(domains), **columns)


_DTYPES: Mapping[str, type[np.generic]] = {"phase": np.int8, "valid": np.bool_}


def whole_numbers(values: Any, field: str, dtype: Any) -> np.ndarray:
    """`values` as an array of integers or booleans of `dtype`, each of them what it was.

    Raises ConfigError, naming `field`, for numbers with a fraction and for those that `dtype` cannot hold.
    """
    wanted = np.dtype(dtype)
    array = _array(values, field)
    if array.dtype == wanted:
        return array
    if not array.size:
        return array.astype(wanted)
    whole = array.dtype.kind in "iub" or (array.dtype.kind == "f" and bool((array == np.floor(array)).all()))
    check(whole, field, f"{array.dtype} {array.shape}", "must be whole numbers")
    least, most = (0, 1) if wanted.kind == "b" else (np.iinfo(wanted).min, np.iinfo(wanted).max)
    fits = bool(least <= array.min() and array.max() <= most)
    check(fits, field, _extremes(array), f"must lie between {least} and {most}")
    return array.astype(wanted)


def small_ids(ids: np.ndarray, computed: np.ndarray, num_experts: int, source: str) -> np.ndarray:
    """Expert ids [T, ...] of a dump in the format's dtype; tokens that were not `computed` have id 0.

    Raises DataError, naming `source`, for ids that are no integers, or that are neither an expert's nor the
    -1 that marks a token that was not computed.
    """
    if ids.dtype.kind not in "iu":
        raise DataError(f"{source}: its ids are {ids.dtype}; they must be integers")
    for bad in (ids[ids < -1], ids[ids >= num_experts]):
        if bad.size:
            raise DataError(
                f"{source}: has the id {int(bad[0])}, and num_experts is {num_experts}: ids lie between 0 and"
                f" {num_experts - 1}, or are -1 in tokens that were not computed"
            )
    kept = np.where(computed.reshape(-1, *[1] * (ids.ndim - 1)), ids, 0)
    return kept.astype(id_dtype(num_experts))


def half_floats(values: Any) -> np.ndarray:
    """`values` as float16; finite numbers beyond its range become its largest number."""
    array = np.asarray(values)
    if array.dtype == np.float16:
        return array
    limit = np.finfo(np.float16).max
    return np.where(np.isfinite(array), np.clip(array, -limit, limit), array).astype(np.float16)


def _array(values: Any, field: str) -> np.ndarray:
    try:
        return np.asarray(values)
    except (ValueError, TypeError, OverflowError) as error:
        raise ConfigError(f"{field}: is no array of numbers: {error}") from error


def _extremes(array: np.ndarray) -> str:
    return f"{array.min()} .. {array.max()}" if array.size else "nothing"


def _places(sequence: np.ndarray) -> np.ndarray:
    """The number of each token inside its run of equal sequence numbers."""
    if not len(sequence):
        return np.zeros(0, np.int32)
    starts = np.flatnonzero(np.r_[True, sequence[1:] != sequence[:-1]])
    return np.arange(len(sequence)) - np.repeat(starts, np.diff(np.r_[starts, len(sequence)]))


def id_dtype(num_ids: int) -> np.dtype:
    """uint8 for up to 256 different ids, uint16 beyond."""
    return np.dtype(np.uint8 if num_ids <= 256 else np.uint16)


def filled_slots(ids: np.ndarray, num_experts: int) -> np.ndarray:
    """bool, True where `ids` holds an expert and False where it marks an empty slot."""
    return ids != num_experts


def count_filled(ids: np.ndarray, num_experts: int) -> np.ndarray:
    """int64 [T]: experts of each token of ids [T, K]."""
    if not len(ids) or ids.max() < num_experts:  # far quicker than short sums, and the usual case
        return np.full(len(ids), ids.shape[1], np.int64)
    return filled_slots(ids, num_experts).sum(axis=1)


def check_block(block: TraceBlock, header: TraceHeader) -> None:
    """Raise ConfigError when the shapes or fields of `block` are not those that `header` names."""
    count, experts = len(block.tokens), header.num_experts
    check(len(block.layers) == len(header.layers), "layers", len(block.layers), f"not {len(header.layers)}")
    wanted = {"ids": (count, header.top_k), "weights": (count, header.top_k), "kept": (count, header.top_k)}
    wanted |= {"entropy": (count,), "margin": (count,), "logits": (count, experts)}
    for number, layer in zip(header.layers, block.layers, strict=True):
        present = tuple(name for name in LAYER_FIELDS if getattr(layer, name) is not None)
        check(present == header.fields, f"fields of layer {number}", present, f"must be {header.fields}")
        for name in ("ids", *present):
            shape = getattr(layer, name).shape
            check(shape == wanted[name], f"layer {number} {name}", shape, f"must be {wanted[name]}")
