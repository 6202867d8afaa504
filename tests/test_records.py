"""Values as strict JSON."""

import json
import math
from dataclasses import dataclass

import numpy as np
import torch

from moeworks.records import as_record, json_text


@dataclass(frozen=True)
class Parts:
    first: int
    others: tuple[float, ...]

    @property
    def total(self) -> float:
        return self.first + sum(self.others)


@dataclass(frozen=True)
class Whole:
    parts: Parts
    by_name: dict[str, Parts]
    nothing: None = None


def test_records_are_plain_and_have_their_totals():
    parts = Parts(1, (2.0, 3.5))
    plain = {"first": 1, "others": [2.0, 3.5], "total": 6.5}
    record = as_record(Whole(parts, {"a": parts}))
    assert record == {"parts": plain, "by_name": {"a": plain}, "nothing": None}
    assert json.loads(json_text(record)) == record


def test_total_is_taken_from_properties_only():
    @dataclass(frozen=True)
    class Counts:
        values: tuple[int, ...]

        def total(self) -> int:
            return sum(self.values)

    assert as_record(Counts((1, 2))) == {"values": [1, 2]}


def test_arrays_tensors_and_their_scalars_are_plain():
    value = {
        "f": np.array([[1.5, np.nan], [np.inf, 2]], np.float32), "i": np.arange(3), "b": np.bool_(True),
        "s": np.float64("nan"), "t": torch.tensor([1.0, -math.inf]), 3: np.int16(4),
    }  # fmt: skip
    assert as_record(value) == {
        "f": [[1.5, None], [None, 2.0]], "i": [0, 1, 2], "b": True, "s": None, "t": [1.0, None], "3": 4,
    }  # fmt: skip
    assert type(as_record(value)["b"]) is bool


def test_what_json_has_no_word_for_is_null_at_any_depth():
    text = json_text({"a": (math.nan, [{"b": -math.inf}])}, indent=None)
    assert text == '{"a": [null, [{"b": null}]]}'


def test_digits_round_numbers_that_are_not_integers():
    assert as_record([0.123456789, 123456789, np.array([1 / 3])], digits=3) == [0.123, 123456789, [0.333]]
