"""Other engines' dumps in and out; what comes back is what went in."""

import base64
import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from traces import random_trace, real_trace, trace_of

from moeworks.errors import ConfigError, DataError
from moeworks.trace import RoutingTrace
from moeworks.trace.convert.arrays import from_arrays, to_arrays
from moeworks.trace.convert.sglang import (
    DECODE,
    DRAFT_EXTEND,
    EXTEND,
    from_sglang,
    read_sglang_counts,
    to_sglang,
)
from moeworks.trace.convert.vllm import from_vllm, to_vllm

WAYS: dict[str, Callable[[RoutingTrace, Path], RoutingTrace]] = {}


def way(function):
    WAYS[function.__name__] = function
    return function


@way
def sglang(trace, folder):
    to_sglang(trace, folder / "t.pt")
    return from_sglang(folder / "t.pt")


@way
def vllm(trace, folder):
    to_vllm(trace, folder / "t.jsonl")
    return from_vllm(folder / "t.jsonl", num_experts=trace.header.num_experts)


@way
def arrays(trace, folder):
    to_arrays(trace, folder / "t.npz")
    return from_arrays(folder / "t.npz", num_experts=trace.header.num_experts, layers=trace.header.layers)


def agree(left: RoutingTrace, right: RoutingTrace, names: tuple[str, ...]) -> None:
    assert left.header.layers == right.header.layers
    assert left.header.top_k == right.header.top_k
    for layer in left.header.layers:
        assert np.array_equal(left.ids(layer), right.ids(layer))
    for name in names:
        assert np.array_equal(getattr(left.tokens, name), getattr(right.tokens, name)), name


@pytest.mark.parametrize("name", WAYS)
@settings(max_examples=20)
@given(seed=st.integers(0, 99))
def test_there_and_back(tmp_path_factory, name, seed):
    trace = random_trace(seed, domains=("all",))
    names = ("position",) if name == "arrays" else ("position", "token_id", "phase")
    back = WAYS[name](trace, tmp_path_factory.mktemp("way"))
    agree(back, trace, names)
    runs = [np.diff(t.tokens.sequence) != 0 for t in (back, trace)]
    assert np.array_equal(*runs)


@pytest.mark.parametrize("name", WAYS)
def test_the_real_trace_there_and_back(tmp_path, name):
    trace = real_trace()
    trace = trace.where(trace.tokens.sequence < 20)
    agree(WAYS[name](trace, tmp_path), trace, ("position",))


def test_arrays_keep_weights_domains_and_lengths(tmp_path):
    trace = random_trace(3)
    order = np.argsort(trace.tokens.domain, kind="stable")
    back = arrays(trace, tmp_path)
    assert np.array_equal(back.weights(1), trace.weights(1)[order])
    assert np.array_equal(back.tokens.domain, trace.tokens.domain[order])
    assert np.array_equal(back.tokens.position, trace.tokens.position[order])


# SGLang.


def sglang_file(path: Path, records: list[dict], physical: list[list[int]]) -> Path:
    """As the recorder writes it: int32 ids, 8 slots, -1 where nothing was written."""
    for number, record in enumerate(records):
        ids = torch.tensor(record.pop("ids"), dtype=torch.int32)
        topk = torch.full((*ids.shape[:2], 8), -1, dtype=torch.int32)
        topk[:, :, : ids.shape[2]] = ids
        record.update(topk_ids_of_layer=topk, rank=0, forward_pass_id=number, misc_objects=[])
    torch.save(dict(records=records, last_physical_to_logical_map=torch.tensor(physical)), path)
    return path


def a_pass(mode: int, ids: list, tokens: list[int], positions: list[int], lengths=None) -> dict:
    return dict(forward_mode=mode, ids=ids, input_ids=tokens, positions=positions, extend_seq_lens=lengths)


def test_sglang_physical_experts_dense_layers_and_requests(tmp_path):
    """Layer 0 is dense; physical 4 and 5 are replicas of 1 and 3; two requests are extended, then decoded."""
    dense = [[-1, -1]] * 5
    prefill = [[0, 4], [1, 2], [5, 0], [3, 2], [2, 1]]
    decode = [[4, 5], [0, 1]]
    passes = [
        a_pass(EXTEND, [dense, prefill], [10, 11, 12, 20, 21], [0, 1, 2, 0, 1], [3, 2]),
        a_pass(DECODE, [dense[:2], decode], [13, 22], [3, 2]),
    ]
    trace = from_sglang(sglang_file(tmp_path / "a.pt", passes, [[0, 1, 2, 3, 1, 3]] * 2))
    assert (trace.header.layers, trace.header.num_experts, trace.header.top_k) == ((1,), 4, 2)
    assert trace.ids(1).tolist() == [[0, 1], [1, 2], [3, 0], [3, 2], [2, 1], [1, 3], [0, 1]]
    assert trace.tokens.sequence.tolist() == [0, 0, 0, 1, 1, 0, 1]
    assert trace.tokens.phase.tolist() == [0, 0, 0, 0, 0, 1, 1]
    assert trace.tokens.token_id.tolist() == [10, 11, 12, 20, 21, 13, 22]


def test_sglang_draft_passes_and_unwritten_tokens_are_left_out(tmp_path):
    passes = [
        a_pass(EXTEND, [[[0, 1], [-1, -1]]], [1, 2], [0, 1], [2]),
        a_pass(DRAFT_EXTEND, [[[3, 3]]], [9], [2], [1]),
    ]
    trace = from_sglang(sglang_file(tmp_path / "a.pt", passes, [[0, 1, 2, 3]]))
    assert trace.ids(0).tolist() == [[0, 1]]


def test_sglang_ambiguous_decode_begins_a_sequence(tmp_path):
    """Two requests end at the same position: the file does not tell whose token it is."""
    passes = [
        a_pass(EXTEND, [[[0, 1]] * 4], [1, 2, 3, 4], [0, 1, 0, 1], [2, 2]),
        a_pass(DECODE, [[[2, 3]]], [5], [2]),
    ]
    trace = from_sglang(sglang_file(tmp_path / "a.pt", passes, [[0, 1, 2, 3]]))
    assert trace.tokens.sequence.tolist() == [0, 0, 1, 1, 2]


def test_sglang_counts(tmp_path):
    counts = torch.arange(12).reshape(2, 2, 3)
    torch.save(dict(rank=0, logical_count=counts, average_utilization_rate_over_window=None), tmp_path / "c")
    read = read_sglang_counts(tmp_path / "c")
    assert read.groups == ("step 0", "step 1")
    assert read.counts.tolist() == counts.tolist()
    with pytest.raises(DataError, match="not a file of SGLang's recorder with 'records'; it holds: rank"):
        from_sglang(tmp_path / "c")


def test_sglang_files_without_routing(tmp_path):
    torch.save(dict(records=[], last_physical_to_logical_map=torch.zeros(1, 4)), tmp_path / "a")
    with pytest.raises(DataError, match="no forward pass with tokens"):
        from_sglang(tmp_path / "a")
    torch.save(dict(records=[dict(rank=0)], last_physical_to_logical_map=torch.zeros(1, 4)), tmp_path / "a")
    with pytest.raises(DataError, match="per_pass"):
        from_sglang(tmp_path / "a")
    passes = [a_pass(EXTEND, [[[-1, -1]]], [1], [0], [1])]
    with pytest.raises(DataError, match="no layer has an expert"):
        from_sglang(sglang_file(tmp_path / "a", passes, [[0]]))


def test_sglang_has_room_for_8():
    with pytest.raises(ConfigError, match="top_k = 9"):
        to_sglang(trace_of(np.arange(9).reshape(1, 1, 9), 9), "unused")


# vLLM.


def encoded(ids) -> str:
    buffer = io.BytesIO()
    np.save(buffer, np.asarray(ids, np.uint8))
    return base64.b64encode(buffer.getvalue()).decode()


ROUTED = [[[0, 0], [1, 2]], [[0, 0], [3, 0]], [[0, 0], [2, 1]]]
"""Three forwarded tokens, layer 0 dense."""


def test_vllm_response(tmp_path):
    """The last sampled token has no routing; prompt and output are told apart."""
    choice = dict(token_ids=[7, 8], routed_experts=encoded(ROUTED))
    aborted = dict(token_ids=[], routed_experts=None)
    (tmp_path / "r.json").write_text(json.dumps(dict(prompt_token_ids=[5, 6], choices=[choice, aborted])))
    trace = from_vllm(tmp_path / "r.json", num_experts=4)
    assert trace.header.layers == (1,)
    assert trace.ids(1).tolist() == [[1, 2], [3, 0], [2, 1]]
    assert trace.tokens.token_id.tolist() == [5, 6, 7]
    assert trace.tokens.phase.tolist() == [0, 0, 1]


def test_vllm_array_and_response_without_token_ids(tmp_path):
    np.save(tmp_path / "r.npy", np.array(ROUTED, np.int32))
    (tmp_path / "r.jsonl").write_text(json.dumps(dict(choices=[dict(routed_experts=encoded(ROUTED))])))
    for name in ("r.npy", "r.jsonl"):
        trace = from_vllm(tmp_path / name, num_experts=4, layers=[0, 1])
        assert trace.ids(0).tolist() == [[0, 0]] * 3
        assert trace.tokens.token_id.tolist() == [-1] * 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read as a response"),
        ("[]", "no choice in it has routed_experts"),
        ('{"choices": [{"routed_experts": "!!"}]}', "cannot be read as a response"),
        (json.dumps(dict(choices=[dict(routed_experts=encoded([1]))])), r"uint8 \(1,\), not ids"),
        (json.dumps(dict(choices=[dict(routed_experts=encoded(ROUTED))])).replace("4", "4"), "the id 3"),
        (
            json.dumps(
                dict(prompt_token_ids=[1], choices=[dict(token_ids=[2], routed_experts=encoded(ROUTED))])
            ),
            "routing of 3 tokens beside 2 token ids",
        ),
    ],
)
def test_vllm_bad_responses(tmp_path, content, message):
    (tmp_path / "r.json").write_text(content)
    with pytest.raises(DataError, match=message):
        from_vllm(tmp_path / "r.json", num_experts=3)


# Arrays.


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (dict(a=np.zeros(2)), "no array that ends in _ids; it has: a"),
        (dict(a_ids=np.zeros((2, 2))), r"ids must be \[T, layers, K\]"),
        (dict(a_ids=np.zeros((2, 1, 1)), a_seqlens=np.array([1])), "do not add up"),
    ],
)
def test_bad_arrays(tmp_path, arrays, message):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(DataError, match=message):
        from_arrays(tmp_path / "a.npz", num_experts=4)


@pytest.mark.parametrize("bad", [300, 64, -2])
@pytest.mark.parametrize("kind", ["arrays", "vllm"])
def test_ids_that_are_no_experts_are_refused(tmp_path, bad, kind):
    ids = np.array([[[1, bad]], [[2, 3]]])
    np.savez(tmp_path / "a.npz", a_ids=ids)
    np.save(tmp_path / "a.npy", ids)
    with pytest.raises(DataError, match=f"has the id {bad}, and num_experts is 64"):
        if kind == "arrays":
            from_arrays(tmp_path / "a.npz", num_experts=64)
        else:
            from_vllm(tmp_path / "a.npy", num_experts=64)


def test_ids_with_a_fraction_are_refused(tmp_path):
    np.savez(tmp_path / "a.npz", a_ids=np.array([[[1, 2.9]]]))
    with pytest.raises(DataError, match="its ids are float64"):
        from_arrays(tmp_path / "a.npz", num_experts=64)


def test_filler_of_tokens_never_computed_stays_invalid(tmp_path):
    """At 256 experts a cast -1 would be expert 255."""
    ids = np.array([[[1, 255]], [[-1, -1]], [[2, 3]]], np.int32)
    np.savez(tmp_path / "a.npz", a_ids=ids)
    np.save(tmp_path / "a.npy", ids)
    for trace in (
        from_arrays(tmp_path / "a.npz", num_experts=256),
        from_vllm(tmp_path / "a.npy", num_experts=256),
    ):
        assert trace.ids(0).tolist() == [[1, 255], [2, 3]]


@pytest.mark.parametrize(
    "content",
    [
        dict(records=5, last_physical_to_logical_map=torch.zeros(1, 4, dtype=torch.int64)),
        dict(records=[5], last_physical_to_logical_map=torch.zeros(1, 4, dtype=torch.int64)),
        dict(
            records=[dict(topk_ids_of_layer=5, input_ids=[1], positions=[0], forward_mode=EXTEND)],
            last_physical_to_logical_map=torch.zeros(1, 4, dtype=torch.int64),
        ),
        dict(records=[], last_physical_to_logical_map=None),
    ],
)
def test_hostile_sglang_dumps(tmp_path, content):
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(DataError):
        from_sglang(tmp_path / "a.pt")


def test_sglang_lists_that_hold_a_list_many_times(tmp_path):
    """A list of a list of ... twice each: a few bytes that would become 2^40 numbers."""
    vast: list = [0, 1]
    for _ in range(40):
        vast = [vast, vast]
    passes = [a_pass(EXTEND, [[[0, 1]]], vast, [0])]
    with pytest.raises(DataError, match="lists of ints"):
        from_sglang(sglang_file(tmp_path / "a.pt", passes, [[0, 1]]))


def test_sglang_passes_that_share_a_tensor(tmp_path):
    one = a_pass(EXTEND, [[[0, 1]]], [1], [0], [1])
    sglang_file(tmp_path / "a.pt", [one], [[0, 1]])
    content = dict(records=[one] * 1000, last_physical_to_logical_map=torch.tensor([[0, 1]]))
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(DataError, match="share one tensor"):
        from_sglang(tmp_path / "a.pt")
