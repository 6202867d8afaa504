"""Filling a model from a source: several threads, any dtype, and errors that come through."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_published import LLAMA, write

from moeworks import load
from moeworks.checkpoint.safetensors_file import _PIECE, SafetensorsFile
from moeworks.errors import CheckpointError

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("kind", DTYPES, ids=str)
@pytest.mark.parametrize("wanted", DTYPES, ids=str)
def test_every_dtype_is_converted_as_torch_does(tmp_path, kind, wanted):
    save_file = pytest.importorskip("safetensors.torch").save_file
    torch.manual_seed(0)
    whole = torch.randn(3, _PIECE // 2 + 5).to(kind)
    save_file({"other": whole[0].clone(), "t": whole}, tmp_path / "m.safetensors")
    out = torch.empty(whole.shape, dtype=wanted)
    SafetensorsFile(tmp_path / "m.safetensors").read_into("t", out)
    assert torch.equal(out, whole.to(wanted))


@settings(max_examples=20, deadline=None)
@given(readers=st.integers(1, 8), dtype=st.sampled_from(DTYPES))
def test_any_number_of_readers_fills_the_same_model(tmp_path_factory, readers, dtype):
    folder = tmp_path_factory.mktemp("m") / "m"
    model = write(folder, LLAMA)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("moeworks.checkpoint.bindings._READERS", readers)
        patch.setattr("os.cpu_count", lambda: 8)
        back = load(folder, dtype=dtype)
    for name, tensor in model.state_dict().items():
        assert torch.equal(back.state_dict()[name], tensor.to(dtype)), name


def test_an_error_in_a_reader_comes_through(tmp_path, monkeypatch):
    write(tmp_path / "m", LLAMA)
    monkeypatch.setattr("os.preadv", lambda *args: 0)
    with pytest.raises(CheckpointError, match=r"truncated while .* was being read"):
        load(tmp_path / "m", dtype=torch.float64)
