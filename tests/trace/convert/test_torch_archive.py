"""torch.save's files are read without running anything that is in them."""

import contextlib
import os
import pickle
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moeworks.errors import DataError
from moeworks.trace.convert.torch_archive import read_torch_archive

SCALARS = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text()
PLAIN = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(max_size=5), inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
    ),
    max_leaves=12,
)


@given(value=PLAIN)
def test_plain_data(tmp_path_factory, value):
    path = tmp_path_factory.mktemp("torch") / "a.pt"
    torch.save(value, path)
    assert read_torch_archive(path) == value


def test_tensors_views_and_shared_storages(tmp_path):
    base = torch.arange(24, dtype=torch.int32).reshape(4, 6)
    value = OrderedDict(
        base=base,
        view=base[1:3, ::2].T,
        empty=torch.zeros(0, 3),
        half=torch.randn(5).half(),
        flag=torch.tensor([True, False]),
        scalar=torch.tensor(3.5),
    )
    torch.save(value, tmp_path / "a.pt")
    read = read_torch_archive(tmp_path / "a.pt")
    assert list(read) == list(value)
    for name, tensor in value.items():
        assert np.array_equal(read[name], tensor.numpy())
        assert read[name].dtype == tensor.numpy().dtype


class Evil:
    def __reduce__(self):
        return os.system, ("touch evil",)


@pytest.mark.parametrize("value", [Evil(), {"a": [Evil()]}, np.float64(3), {1, 2}, slice(1)])
def test_anything_else_is_refused_and_not_run(tmp_path, monkeypatch, value):
    monkeypatch.chdir(tmp_path)
    torch.save(value, "a.pt")
    with pytest.raises(DataError, match=r"only tensors and plain data|more than plain data"):
        read_torch_archive("a.pt")
    assert os.listdir() == ["a.pt"]


def test_other_files(tmp_path):
    path = tmp_path / "a.pt"
    with pytest.raises(DataError, match=r"cannot be read as a file of torch\.save"):
        read_torch_archive(path)
    path.write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(DataError, match=r"cannot be read as a file of torch\.save"):
        read_torch_archive(path)
    np.savez(tmp_path / "a.npz", a=np.zeros(2))
    with pytest.raises(DataError, match=r"no data.pkl"):
        read_torch_archive(tmp_path / "a.npz")


def test_a_tensor_that_claims_too_much(tmp_path):
    torch.save(torch.zeros(1).expand(1 << 20, 1 << 20), tmp_path / "a.pt")
    with pytest.raises(DataError, match="a tensor of 1099511627776 elements"):
        read_torch_archive(tmp_path / "a.pt")


@settings(max_examples=300)
@given(data=st.data())
def test_altered_bytes_give_an_error_or_plain_data(tmp_path_factory, data):
    """Whatever is in data.pkl, nothing but DataError comes out, and nothing but plain data is returned."""
    folder = tmp_path_factory.mktemp("torch")
    torch.save({"a": [1, 2.5, "x", None], "b": torch.arange(6).reshape(2, 3)}, folder / "a.pt")
    with zipfile.ZipFile(folder / "a.pt") as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    name = next(name for name in files if name.endswith("data.pkl"))
    content = bytearray(files[name])
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    files[name] = bytes(content[: data.draw(st.integers(1, len(content)))])
    with zipfile.ZipFile(folder / "b.pt", "w") as archive:
        for file, part in files.items():
            archive.writestr(file, part)
    with contextlib.suppress(DataError):
        read_torch_archive(folder / "b.pt")


def test_truncated(tmp_path):
    torch.save({"a": torch.zeros(1000)}, tmp_path / "a.pt")
    content = (tmp_path / "a.pt").read_bytes()
    (tmp_path / "b.pt").write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"b\.pt: cannot be read"):
        read_torch_archive(tmp_path / "b.pt")


def stored(path, data_pkl, compression=zipfile.ZIP_STORED, **members):
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("a/data.pkl", data_pkl)
        for name, content in members.items():
            archive.writestr(f"a/data/{name}", content)
    return path


def tensor_pickle(shape, strides, *, copies=1, key=b"X\x01\x00\x00\x000"):
    """A list of `copies` tensors, each a few bytes: views of the storage "0" of 4 bytes."""

    def integers(values):
        return b"(" + b"".join(b"\x8a" + bytes([9]) + v.to_bytes(9, "little") for v in values) + b"t"

    storage = b"(X\x07\x00\x00\x00storagectorch\nByteStorage\n" + key + b"X\x03\x00\x00\x00cpuK\x04tQ"
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n("
    tensor += storage + b"K\x00" + integers(shape) + integers(strides) + b"tR"
    return b"\x80\x02](" + tensor * copies + b"e."


def test_compressed_members_are_refused(tmp_path):
    path = stored(tmp_path / "a.pt", pickle.dumps("x" * 10**6, 2), zipfile.ZIP_DEFLATED)
    with pytest.raises(DataError, match="compressed members"):
        read_torch_archive(path)


def test_members_that_claim_the_same_bytes_are_refused(tmp_path):
    """Many names in the directory for one stretch of the file: 100 bytes each, and a megabyte in memory."""
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
        archive.writestr("a/data.pkl", pickle.dumps(None, 2))
        archive.writestr("a/data/0", bytes(10_000))
        twin = archive.getinfo("a/data/0")
        archive.filelist += [twin] * 50
    with pytest.raises(DataError, match="claim more bytes than the file has"):
        read_torch_archive(tmp_path / "a.pt")


def test_a_storage_is_read_once_and_tensors_are_bounded_together(tmp_path):
    path = stored(tmp_path / "a.pt", tensor_pickle([4], [1], copies=3), **{"0": b"abcd"})
    assert [tensor.tolist() for tensor in read_torch_archive(path)] == [[97, 98, 99, 100]] * 3
    one = 1 << 19  # each of them is allowed alone
    read_torch_archive(stored(path, tensor_pickle([one], [0]), **{"0": b"abcd"}))
    with pytest.raises(DataError, match="a tensor of 524288 elements, too many"):
        read_torch_archive(stored(path, tensor_pickle([one], [0], copies=3), **{"0": b"abcd"}))


def test_an_empty_tensor_with_a_vast_side(tmp_path):
    path = stored(tmp_path / "a.pt", tensor_pickle([0, 1 << 40], [1, 1]), **{"0": b"abcd"})
    with pytest.raises(DataError, match="a tensor of 0 elements, too many"):
        read_torch_archive(path)


LAUGHS = b"\x80\x02" + b")" + b"q\x00h\x00\x86" * 80
"""A tuple that holds itself twice, 80 deep: its text and its hash take 2^80 steps."""


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x02}" + LAUGHS[2:] + b"K\x01s.",  # a key of a dict
        LAUGHS + b")R.",  # what is called
        LAUGHS + b"X\x01\x00\x00\x00a\x93.",  # a module's name
        tensor_pickle([1], [1], key=LAUGHS[2:]),  # the key of a storage
    ],
)
def test_values_whose_text_or_hash_never_ends(tmp_path, content):
    with pytest.raises(DataError):
        read_torch_archive(stored(tmp_path / "a.pt", content, **{"0": b"abcd"}))


def test_many_marks_take_no_quadratic_time(tmp_path):
    """200,000 open marks with a tuple each on top of them; scanned from below this takes minutes."""
    content = b"\x80\x02]" + b"(" * 200_000 + b"(t" * 200_000 + b"t" * 200_000 + b"."
    read_torch_archive(stored(tmp_path / "a.pt", content))
