"""Records of tensors and their sums over micro-batches and ranks.

A record is a tensor, or a dataclass, mapping, list or tuple of records; None and other values in it belong to
its shape. All tensors of a record travel in one message: a step waits for one latency, not one per figure.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from moeworks.parallel.world import World

Record = TypeVar("Record")


def summed(parts: Sequence[Record], world: World) -> Record:
    """The element-wise sum of `parts`, records of one shape, over this rank's parts and all ranks.

    Integers are exact up to 2^53; floating-point numbers are added over ranks in float64.
    """
    groups = zip(*(leaves(part) for part in parts), strict=True)
    local = [torch.stack(group).sum(dim=0) if len(group) > 1 else group[0] for group in groups]
    return with_leaves(parts[0], iter(world.sum_all(local)))


def leaves(record: Any) -> Iterator[Tensor]:
    """The tensors of a record, in a fixed order."""
    if isinstance(record, Tensor):
        yield record
    else:
        for item in _items(record):
            yield from leaves(item)


def with_leaves(record: Any, tensors: Iterator[Tensor]) -> Any:
    """`record` with its tensors replaced, in the order of `leaves`."""
    if isinstance(record, Tensor):
        return next(tensors)
    if is_dataclass(record) and not isinstance(record, type):
        names = [item.name for item in fields(record)]
        return replace(record, **{name: with_leaves(getattr(record, name), tensors) for name in names})
    if isinstance(record, Mapping):
        return {name: with_leaves(item, tensors) for name, item in record.items()}
    if isinstance(record, list | tuple):
        return type(record)(with_leaves(item, tensors) for item in record)
    return record


def _items(record: Any) -> Iterator[Any]:
    if is_dataclass(record) and not isinstance(record, type):
        yield from (getattr(record, item.name) for item in fields(record))
    elif isinstance(record, Mapping):
        yield from record.values()
    elif isinstance(record, list | tuple):
        yield from record
