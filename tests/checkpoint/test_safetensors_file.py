"""The safetensors reader: what it reads, and every way in which a file can be wrong."""

import json
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from moeworks.checkpoint.safetensors_file import DTYPES, SafetensorsFile
from moeworks.errors import CheckpointError

TENSORS = {
    "a": torch.arange(12, dtype=torch.float32).view(3, 4),
    "b": torch.randn(5).bfloat16(),
    "empty": torch.empty(0, 3),
    "scalar": torch.tensor(2.5),
    "bytes": torch.arange(7, dtype=torch.uint8),
}


@pytest.fixture
def path(tmp_path) -> Path:
    save_file(TENSORS, tmp_path / "x.safetensors", metadata={"format": "pt"})
    return tmp_path / "x.safetensors"


def rewrite(path: Path, header: object, data: bytes = b"", *, length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def test_reads_what_safetensors_wrote(path):
    file = SafetensorsFile(path)
    want = load_file(path)
    assert file.tensors.keys() == want.keys()
    for name, tensor in want.items():
        assert torch.equal(file.tensor(name), tensor)
        assert file.tensors[name].shape == tuple(tensor.shape)


def test_reads_into_a_given_place_and_again_after_its_pages_were_released(path):
    file = SafetensorsFile(path)
    out = torch.zeros(2, 3, 4)
    file.read_into("a", out[1])
    assert torch.equal(out[1], TENSORS["a"]) and not out[0].any()
    file.release("a")
    assert torch.equal(file.tensor("a"), TENSORS["a"])


def test_large_tensors_survive_the_release_of_their_neighbours(tmp_path):
    tensors = {name: torch.randn(5000) for name in "abc"}
    save_file(tensors, tmp_path / "x.safetensors")
    file = SafetensorsFile(tmp_path / "x.safetensors")
    for name, tensor in tensors.items():
        assert torch.equal(file.tensor(name), tensor)
        file.release(name)
    assert all(torch.equal(file.tensor(name), tensor) for name, tensor in tensors.items())


def test_writing_to_a_read_tensor_changes_no_file(path):
    before = path.read_bytes()
    SafetensorsFile(path).tensor("a").zero_()
    assert path.read_bytes() == before


@pytest.mark.parametrize("kind", DTYPES)
def test_every_dtype(tmp_path, kind):
    size = DTYPES[kind].itemsize
    entry = {"dtype": kind, "shape": [2], "data_offsets": [0, 2 * size]}
    file = SafetensorsFile(rewrite(tmp_path / "x", {"t": entry}, bytes(2 * size)))
    assert file.tensor("t").dtype == DTYPES[kind] and file.tensor("t").shape == (2,)


F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"{", "header is not valid JSON"),
        (b"[1]", "header is not an object"),
        (b"[" * 5000, "header is not valid JSON"),
        ({"t": 3}, "t: its entry in the header is not valid"),
        ({"t": {"dtype": "F32", "shape": [2]}}, "t: its entry"),
        ({"t": {**F32, "data_offsets": [0]}}, "t: its entry"),
        ({"t": {**F32, "dtype": "F99"}}, "t: unknown dtype 'F99'"),
        ({"t": {**F32, "dtype": "F64"}}, r"t: F64 \[2\] takes 16 bytes, the header gives it 8"),
        ({"t": {**F32, "shape": [-2]}}, "not of natural numbers"),
        ({"t": {**F32, "shape": [2.0]}}, "not of natural numbers"),
        ({"t": {**F32, "shape": [True, 2]}}, "not of natural numbers"),
        ({"t": {**F32, "shape": [2**62, 2**62]}}, "takes .* bytes, the header gives it 8"),
        ({"t": {**F32, "data_offsets": [4, 12]}}, "truncated: t ends at byte"),
        ({"t": {**F32, "data_offsets": [8, 0]}}, "takes 8 bytes"),
        ({"t": F32, "u": {**F32, "shape": [1], "data_offsets": [4, 8]}}, "u overlaps t"),
    ],
)
def test_a_wrong_header_is_an_error_that_says_what(tmp_path, header, message):
    with pytest.raises(CheckpointError, match=message):
        SafetensorsFile(rewrite(tmp_path / "x.safetensors", header, bytes(8)))


@pytest.mark.parametrize("length", [10**6, 2**63, 2**64 - 1])
def test_a_header_longer_than_the_file(tmp_path, length):
    with pytest.raises(CheckpointError, match="truncated, or no safetensors file"):
        SafetensorsFile(rewrite(tmp_path / "x.safetensors", {"t": F32}, bytes(8), length=length))


@pytest.mark.parametrize("content", [b"", b"abc", b"PK\x03\x04" + bytes(50), bytes(200)])
def test_what_is_no_safetensors_file(tmp_path, content):
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(CheckpointError):
        SafetensorsFile(tmp_path / "x")


def test_a_missing_file(tmp_path):
    with pytest.raises(CheckpointError, match="cannot be read"):
        SafetensorsFile(tmp_path / "none.safetensors")


def test_every_truncation_is_noticed(path, tmp_path):
    content = path.read_bytes()
    for size in range(len(content)):
        (tmp_path / "cut").write_bytes(content[:size])
        with pytest.raises(CheckpointError):
            SafetensorsFile(tmp_path / "cut")


@settings(max_examples=200)
@given(st.binary(max_size=200), st.integers(0, 400))
def test_no_content_does_anything_but_raise_a_checkpoint_error(tmp_path_factory, content, at):
    """A fuzz of the header: any bytes put anywhere into a good file."""
    folder = tmp_path_factory.mktemp("fuzz")
    save_file(TENSORS, folder / "x.safetensors")
    good = (folder / "x.safetensors").read_bytes()
    (folder / "x.safetensors").write_bytes(good[:at] + content + good[at + len(content) :])
    try:
        file = SafetensorsFile(folder / "x.safetensors")
    except CheckpointError:
        return
    for name in file.tensors:
        file.tensor(name).sum()
