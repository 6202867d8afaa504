from dataclasses import fields

import torch

from moeworks.data import Batch


def some_batch() -> Batch:
    numbers = torch.arange(6).view(2, 3)
    return Batch(numbers, numbers + 1, numbers * 0, numbers * 0 + 2, numbers > 2)


def test_moving_a_batch_moves_every_tensor_and_keeps_its_type() -> None:
    batch = some_batch().typed((0, 0, 7))
    moved = batch.to("meta")
    assert moved.padded == batch.padded
    for item in (item for item in fields(Batch) if item.name != "padded"):
        before, after = getattr(batch, item.name), getattr(moved, item.name)
        assert after.device.type == "meta"
        assert (after.shape, after.dtype) == (before.shape, before.dtype)
    assert some_batch().to("meta").token_types_BL is None
    assert torch.equal(batch.to("cpu").targets_BL, batch.targets_BL)


def test_types_are_those_of_the_domains() -> None:
    batch = some_batch()
    assert batch.typed(()) is batch
    assert batch.typed((3, 5, 1)).token_types_BL.tolist() == [[1, 1, 1], [1, 1, 1]]
