"""The native top-k beside the argmax passes of the reference, bit for bit."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from isa import EVERY_ISA, using_isa
from native_cases import computing, needs_native

from moeworks.ops.native import top_k as native
from moeworks.ops.scoring import reference_top_k, stable_top_k

pytestmark = needs_native

VALUES = st.sampled_from(
    [0.0, -0.0, 1.0, -1.0, 2.5, math.inf, -math.inf, math.nan, 3e38, -3.4028234663852886e38]
)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), width=st.integers(1, 70), dtype=st.sampled_from([torch.float32, torch.float64]))
def test_it_is_the_reference_on_ties_infinities_and_nan(data, width, dtype):
    rows = data.draw(st.lists(st.lists(VALUES, min_size=width, max_size=width), min_size=1, max_size=4))
    k = data.draw(st.integers(1, width))
    values = torch.tensor(rows, dtype=torch.float64).to(dtype)
    ids = native.top_k(values, k)
    assert torch.equal(ids, reference_top_k(values, k))
    assert all(len(set(row)) == k for row in ids.tolist())


@pytest.mark.parametrize("isa", EVERY_ISA)
@pytest.mark.parametrize("width", [1, 3, 4, 8, 15, 16, 17, 64, 255, 256])
def test_every_instruction_set_and_odd_widths(isa: str, width: int) -> None:
    values = torch.randn(300, width).round(decimals=1)
    with using_isa(isa):
        for k in {1, min(8, width), width}:
            assert torch.equal(native.top_k(values, k), reference_top_k(values, k))


def test_strided_rows_no_rows_and_no_slots() -> None:
    values = torch.randn(7, 20)
    assert torch.equal(stable_top_k(values.t(), 3), reference_top_k(values.t(), 3))
    assert stable_top_k(values[:0], 3).shape == (0, 3)
    assert stable_top_k(values.bfloat16(), 3).shape == (7, 3)


def test_threads_change_nothing() -> None:
    values = torch.randn(3000, 33)
    want = native.top_k(values, 4)
    with computing(threads=3):
        assert torch.equal(native.top_k(values, 4), want)


def test_too_many_are_refused() -> None:
    with pytest.raises(Exception, match="K must not exceed E"):
        native.top_k(torch.zeros(2, 3), 4)


def test_the_operator_is_well_formed() -> None:
    torch.library.opcheck(native.top_k, (torch.randn(5, 6), 2))
