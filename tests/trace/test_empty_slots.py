"""Tokens with fewer experts than slots: on disk, in older readers, and in what is wrong with a trace."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from moeworks.config import RouterConfig
from moeworks.errors import ConfigError, DataError
from moeworks.ops.routing import RoutingContext
from moeworks.ops.scoring import routing_of, score_logits
from moeworks.trace import RoutingTrace, TraceBlock, TraceHeader, token_columns, validate_trace, write_trace
from moeworks.trace.block import LayerColumns, id_dtype
from moeworks.trace.counts import count_experts
from moeworks.trace.header import decode_header
from moeworks.trace.record import record

HEADER = TraceHeader(
    num_experts=4, top_k=3, layers=(0,), fields=("weights", "kept", "margin"), empty_slots=True
)
IDS = [[2, 0, 4], [4, 4, 4], [1, 2, 3], [3, 4, 4]]


def routing():
    config = RouterConfig(num_experts=4, top_k=3)
    logits = torch.tensor([[1.0, 0, 2, -1], [0, 0, 0, 0], [0, 3, 2, 1], [0, 0, 0, 1]])
    return routing_of(score_logits(logits, config), torch.tensor(IDS), RoutingContext(), variable=True)


def block() -> TraceBlock:
    return record([routing()], token_columns(4), HEADER)


def test_through_a_file_and_back(tmp_path):
    path = tmp_path / "trace.parquet"
    write_trace(path, HEADER, block())
    trace = RoutingTrace.open(path)
    assert trace.header == HEADER
    layer = trace.layer(0)
    assert layer.ids.tolist() == IDS
    assert layer.kept.tolist() == [[i < 4 for i in row] for row in IDS]
    assert (layer.weights[layer.ids == 4] == 0).all()
    assert layer.margin.tolist() == [1.0, np.inf, 1.0, 1.0]
    assert count_experts(trace).counts[0].tolist() == [[1, 1, 2, 2]]
    assert validate_trace(trace) == []


def test_readers_of_version_1_refuse_them_and_read_all_others():
    encoded = json.loads(HEADER.encode())
    assert (encoded["version"], encoded["empty_slots"]) == (2, True)
    plain = json.loads(replace(HEADER, empty_slots=False).encode())
    assert plain["version"] == 1
    assert "empty_slots" not in plain
    for wrong in (plain | {"version": 2}, encoded | {"version": 1}):
        with pytest.raises(DataError, match="damaged: version"):
            decode_header({b"moeworks.trace": json.dumps(wrong).encode()}, "x")


def test_ids_of_256_experts_and_empty_slots_take_two_bytes():
    assert [id_dtype(n) for n in (256, 257)] == [np.uint8, np.uint16]
    assert TraceHeader(num_experts=256, top_k=1, layers=(0,), empty_slots=True).num_ids == 257
    with pytest.raises(ConfigError, match=r"must lie in 1 \.\. 65535"):
        TraceHeader(num_experts=65_536, top_k=1, layers=(0,), empty_slots=True)


def test_a_header_must_say_that_slots_may_be_empty():
    with pytest.raises(ConfigError, match="may have empty slots"):
        record([routing()], token_columns(4), replace(HEADER, empty_slots=False))


@pytest.mark.parametrize(
    ("ids", "weights", "kind"),
    [
        ([[2, 4, 0], [1, 0, 4]], None, "gap"),
        ([[2, 2, 4], [1, 0, 4]], None, "duplicate"),
        ([[2, 5, 4], [1, 0, 4]], None, "out-of-range"),
        ([[2, 0, 4], [1, 0, 4]], [[0.5, 0.4, 0.1], [0.5, 0.5, 0]], "weights"),
    ],
)
def test_what_is_wrong(ids, weights, kind):
    header = replace(HEADER, fields=() if weights is None else ("weights",))
    half = None if weights is None else np.array(weights, np.float16)
    layer = LayerColumns(np.array(ids, np.uint8), half)
    trace = RoutingTrace.from_blocks(header, [TraceBlock(token_columns(2), (layer,))])
    assert [finding.kind for finding in validate_trace(trace)] == [kind]
