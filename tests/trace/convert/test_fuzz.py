"""Whatever a dump holds, its reader gives a valid trace, or says what is wrong with the file."""

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

from moeworks.errors import DataError
from moeworks.trace import RoutingTrace, read_counts
from moeworks.trace.convert.arrays import from_arrays
from moeworks.trace.convert.sglang import EXTEND, from_sglang, read_sglang_counts
from moeworks.trace.convert.vllm import from_vllm

IDS = np.array([[[0, 1]], [[2, 3]], [[1, 3]]], np.uint8)
EXPERTS = 4


def written(save: Callable[[io.BytesIO], None]) -> bytes:
    buffer = io.BytesIO()
    save(buffer)
    return buffer.getvalue()


NPY = written(lambda file: np.save(file, IDS))
NPZ = written(lambda file: np.savez(file, a_ids=IDS, a_w=IDS / 8, a_seqlens=[1, 2]))
DEFLATED = written(lambda file: np.savez_compressed(file, a_ids=IDS, a_seqlens=[3]))
RESPONSE = {
    "prompt_token_ids": [5, 6],
    "choices": [{"token_ids": [7, 8], "routed_experts": base64.b64encode(NPY).decode()}],
}
JSON = json.dumps(RESPONSE).encode()
PASS = dict(
    forward_mode=EXTEND,
    input_ids=[1, 2, 3],
    positions=[0, 1, 2],
    extend_seq_lens=[3],
    topk_ids_of_layer=torch.tensor(IDS.astype(np.int32)).transpose(0, 1).contiguous(),
)
SGLANG = written(
    lambda file: torch.save(
        dict(records=[PASS], last_physical_to_logical_map=torch.tensor([[0, 1, 2, 3]])), file
    )
)
COUNTS = written(lambda file: torch.save(dict(logical_count=torch.arange(8).reshape(1, 2, 4)), file))


def valid(trace: RoutingTrace) -> None:
    for layer in trace.header.layers:
        assert trace.ids(layer).shape == (trace.num_tokens, trace.header.top_k)


READERS = {
    "arrays.npz": (NPZ, lambda path: valid(from_arrays(path, num_experts=EXPERTS))),
    "deflated.npz": (DEFLATED, lambda path: valid(from_arrays(path, num_experts=EXPERTS))),
    "vllm.npy": (NPY, lambda path: valid(from_vllm(path, num_experts=EXPERTS))),
    "vllm.json": (JSON, lambda path: valid(from_vllm(path, num_experts=EXPERTS))),
    "vllm.jsonl": (JSON + b"\n" + JSON, lambda path: valid(from_vllm(path, num_experts=EXPERTS))),
    "sglang.pt": (SGLANG, lambda path: valid(from_sglang(path))),
    "counts.pt": (COUNTS, read_sglang_counts),
    "counts.npy": (NPY, read_counts),
    "counts.npz": (NPZ, read_counts),
    "counts.json": (b'{"a": [[1, 2], [3, 4]]}', read_counts),
}


def read(name: str, content: bytes, folder: Path) -> None:
    path = folder / name
    path.write_bytes(content)
    try:
        READERS[name][1](path)
    except DataError as error:
        assert str(path) in str(error)


@pytest.mark.parametrize("name", READERS)
def test_the_files_that_are_altered_below_are_good(tmp_path, name):
    if name != "counts.npz":  # its weights are no counts
        (tmp_path / name).write_bytes(READERS[name][0])
        READERS[name][1](tmp_path / name)


@pytest.mark.parametrize("name", READERS)
@settings(max_examples=60)
@given(data=st.data())
def test_altered_bytes(tmp_path_factory, name, data):
    content = bytearray(READERS[name][0])
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    stop = data.draw(st.just(len(content)) | st.integers(0, len(content)))
    read(name, bytes(content[:stop]), tmp_path_factory.mktemp("fuzz"))


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
    max_leaves=5,
)
ENCODED = (
    st.sampled_from([(0, 10**9, 1), (1, 1, 0), (0, 0, 0), (2, 1, 5), (2, 3), (1, 1, 1), ()])
    .flatmap(
        lambda shape: st.sampled_from(["u1", "i8", "f4", "O"]).map(
            lambda kind: (
                written(
                    lambda file: np.lib.format.write_array_header_1_0(
                        file, {"descr": np.dtype(kind).str, "fortran_order": False, "shape": shape}
                    )
                )
                + bytes(int(np.prod(shape)) * np.dtype(kind).itemsize)
            )
        )
    )
    .map(lambda content: base64.b64encode(content).decode())
)


@pytest.mark.parametrize("suffix", ["json", "jsonl"])
@settings(max_examples=100)
@given(
    response=VALUES
    | st.fixed_dictionaries(
        {"choices": VALUES | st.lists(VALUES | st.fixed_dictionaries(
            {"routed_experts": VALUES | ENCODED | st.just(RESPONSE["choices"][0]["routed_experts"])},
            optional={"token_ids": VALUES | st.lists(st.integers(-1, 2**40)), "prompt_token_ids": VALUES},
        ), max_size=2)},
        optional={"prompt_token_ids": VALUES | st.lists(st.integers(0, 9))},
    )
)  # fmt: skip
def test_responses_with_other_values(tmp_path_factory, suffix, response):
    read(f"vllm.{suffix}", json.dumps(response).encode(), tmp_path_factory.mktemp("fuzz"))


@settings(max_examples=60)
@given(VALUES)
def test_counts_with_other_values(tmp_path_factory, value):
    read("counts.json", json.dumps(value).encode(), tmp_path_factory.mktemp("fuzz"))


SIDES = st.integers(0, 3)


@settings(max_examples=100)
@given(data=st.data())
def test_recorder_files_with_other_values(tmp_path_factory, data):
    tensor = st.tuples(SIDES, SIDES, SIDES).map(lambda shape: torch.zeros(shape, dtype=torch.int32))
    other = VALUES.filter(lambda value: value == value) | tensor
    record = dict(PASS)
    for name in data.draw(st.lists(st.sampled_from(sorted(PASS)), max_size=2)):
        record[name] = data.draw(other)
    logical = data.draw(other | st.just(torch.tensor([[0, 1, 2, 3]])))
    content = dict(records=[record], last_physical_to_logical_map=logical)
    read("sglang.pt", written(lambda file: torch.save(content, file)), tmp_path_factory.mktemp("fuzz"))
