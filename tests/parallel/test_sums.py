"""Records of tensors: what is summed, and what keeps its shape."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from moeworks.parallel.sums import leaves, summed, with_leaves
from moeworks.parallel.world import World


@dataclass(frozen=True)
class Inner:
    counts: Tensor
    absent: Tensor | None = None


@dataclass(frozen=True)
class Outer:
    loss: Tensor
    named: dict[str, Tensor]
    layers: tuple[Inner, ...]


def record(scale: int) -> Outer:
    counts = torch.tensor([[1, 2], [3, 4]]) * scale
    return Outer(torch.tensor(0.5 * scale), {"z": torch.tensor(2.0 * scale)}, (Inner(counts), Inner(counts)))


def test_the_sum_of_records_is_a_record_of_sums() -> None:
    found = summed([record(1), record(10)], World())
    assert float(found.loss) == 5.5
    assert float(found.named["z"]) == 22.0
    assert found.layers[1].counts.tolist() == [[11, 22], [33, 44]]
    assert found.layers[1].counts.dtype == torch.int64
    assert found.layers[0].absent is None


def test_leaves_go_back_where_they_came_from() -> None:
    whole = record(3)
    again = with_leaves(whole, leaves(whole))
    for left, right in zip(leaves(again), leaves(whole), strict=True):
        assert left is right


def test_records_that_are_not_alike_are_refused() -> None:
    other = Outer(torch.tensor(1.0), {}, ())
    with pytest.raises(ValueError, match="argument"):
        summed([record(1), other], World())


class Doubling(World):
    """Two ranks with equal values."""

    messages = 0

    def sum_(self, tensor: Tensor) -> Tensor:
        type(self).messages += 1
        return tensor.mul_(2)


def test_all_tensors_of_a_record_travel_in_one_message() -> None:
    found = summed([record(1)], Doubling(size=2))
    assert Doubling.messages == 1
    assert float(found.loss) == 1.0
    assert found.layers[0].counts.tolist() == [[2, 4], [6, 8]]


def test_large_counts_are_exact() -> None:
    counts = torch.tensor([2**40 + 1])
    assert summed([counts], Doubling(size=2)).tolist() == [2**41 + 2]
