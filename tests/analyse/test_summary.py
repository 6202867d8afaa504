"""All tables of one trace at once."""

import dataclasses

import numpy as np
from traces import random_block, random_trace, trace_of

from moeworks.analyse import analyse_trace
from moeworks.analyse.load import load_table
from moeworks.trace import RoutingTrace, TraceHeader, count_experts, write_trace


def arrays(value: object) -> list[np.ndarray]:
    """All arrays in nested dataclasses."""
    if isinstance(value, np.ndarray):
        return [value]
    if dataclasses.is_dataclass(value):
        return [found for part in vars(value).values() for found in arrays(part)]
    return []


def test_on_disk_and_in_memory_are_the_same(tmp_path):
    trace = random_trace(tokens=300)
    write_trace(tmp_path / "t.parquet", trace.header, *trace.blocks())
    lazy, held = analyse_trace(RoutingTrace.open(tmp_path / "t.parquet")), analyse_trace(trace)
    pairs = list(zip(arrays(lazy), arrays(held), strict=True))
    assert len(pairs) > 40
    for left, right in pairs:
        np.testing.assert_array_equal(left, right)
    assert lazy.domains.domains == ("code", "prose")
    assert lazy.load.max_vio.tolist() == load_table(count_experts(trace)).max_vio.tolist()
    assert (lazy.max_vio.low <= lazy.max_vio.high).all()


def test_one_domain_many_experts_and_all_columns():
    header = TraceHeader(
        num_experts=300, top_k=4, layers=(2, 5), fields=("weights", "entropy", "margin"), model="m"
    )
    block = random_block(header, 200, sequence=np.arange(200) // 50)
    found = analyse_trace(RoutingTrace.from_blocks(header, [block]))
    assert found.domains is None
    assert found.information is None
    assert found.coactivation.rate.shape == (2, 300, 300)
    assert found.confidence.margin_quantiles.shape == (2, 5)


def test_tokens_that_are_not_valid_count_nowhere():
    trace = random_trace(tokens=80, layers=2)
    (block,) = trace.blocks()
    padded = np.concatenate([[layer.ids, layer.ids[::-1]] for layer in block.layers])
    ids = np.stack([np.concatenate(padded[:2]), np.concatenate(padded[2:])], axis=1)
    tokens = {
        name: np.concatenate([value, value])
        for name, value in vars(block.tokens).items()
        if name not in ("valid", "domains")
    }
    valid = np.arange(160) < 80
    mixed = trace_of(ids, 8, **tokens, valid=valid, domains=block.tokens.domains)
    plain = trace_of(ids[:80], 8, **{k: v[:80] for k, v in tokens.items()}, domains=block.tokens.domains)
    for left, right in zip(arrays(analyse_trace(mixed)), arrays(analyse_trace(plain)), strict=True):
        np.testing.assert_array_equal(left, right)


def test_a_trace_of_single_tokens():
    """Concurrent decoding records sequences of one token: what needs two that follow each other is absent."""
    found = analyse_trace(trace_of([[[0, 1]], [[2, 3]]], 4, sequence=[0, 1]))
    assert found.repeats is None
    assert np.isnan(found.lags.overlap).all()
    assert found.load.max_vio.tolist() == [0]
