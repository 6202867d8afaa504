from dataclasses import fields

import torch

from moeworks.data import Batch


def test_moving_a_batch_moves_every_tensor_and_keeps_its_type() -> None:
    numbers = torch.arange(6).reshape(2, 3)
    batch = Batch(numbers, numbers + 1, numbers * 0, numbers * 0 + 2, numbers > 2)
    moved = batch.to("meta")
    for item in fields(Batch):
        before, after = getattr(batch, item.name), getattr(moved, item.name)
        assert (after.device.type, after.dtype, after.shape) == ("meta", before.dtype, before.shape)
    assert torch.equal(batch.to("cpu").targets_BL, numbers + 1)
