import numpy as np
import pytest
from traces import random_block, real_trace

from moeworks.trace import TraceHeader, write_trace
from moeworks.trace.sizes import bytes_per_assignment, packed_bytes, uniform_entropy_bytes


@pytest.mark.parametrize(("experts", "limit"), [(8, 0.5), (64, 0.85), (256, 1.1), (512, 1.3)])
def test_random_ids_at_k_8_stay_under_two_bytes_and_near_the_bound(tmp_path, experts, limit):
    """Routing without any pattern is the worst case; 2 bytes is what was asked for."""
    header = TraceHeader(num_experts=experts, top_k=8, layers=(0, 1))
    write_trace(tmp_path / "t.parquet", header, random_block(header, 20_000))
    size = bytes_per_assignment(tmp_path / "t.parquet", "ids")
    assert uniform_entropy_bytes(header) * 0.9 < size < limit < 2
    assert uniform_entropy_bytes(header) <= packed_bytes(header) <= 2


def test_the_real_trace(tmp_path):
    trace = real_trace()
    path = tmp_path / "t.parquet"
    write_trace(path, trace.header, *trace.blocks())
    assert bytes_per_assignment(path, "ids") < packed_bytes(trace.header)
    whole = bytes_per_assignment(path, "ids") + bytes_per_assignment(path, "weights")
    assert whole * np.prod([trace.num_tokens, 26, 6]) <= path.stat().st_size


def test_bounds_by_hand():
    header = TraceHeader(num_experts=4, top_k=2, layers=(0,))
    assert packed_bytes(header) == 2 / 8
    assert uniform_entropy_bytes(header) == pytest.approx(np.log2(4 * 3) / 2 / 8)
    assert packed_bytes(TraceHeader(num_experts=65_536, top_k=8, layers=(0,))) == 2
