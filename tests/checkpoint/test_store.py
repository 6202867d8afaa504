"""Writing, verifying and reading one checkpoint."""

import errno
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from moeworks.checkpoint import list_checkpoints, read_checkpoint, verify_checkpoint, write_checkpoint
from moeworks.errors import CheckpointError

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
DTYPES = (*FLOATS, torch.int64, torch.int32, torch.uint8, torch.bool)


def _bits(tensor: torch.Tensor) -> bytes:
    return tensor.clone(memory_format=torch.contiguous_format).reshape(-1).view(torch.uint8).numpy().tobytes()


def _assert_same(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal down to the bits, NaNs and signed zeros included."""
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    assert _bits(found) == _bits(expected)


@st.composite
def tensors(draw: st.DrawFn) -> torch.Tensor:
    """Random bits of any dtype; 0-d, empty, contiguous or transposed or strided."""
    dtype = draw(st.sampled_from(DTYPES))
    shape = draw(st.lists(st.integers(0, 4), max_size=3))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    size = torch.empty((), dtype=dtype).element_size()
    if dtype == torch.bool:
        tensor = torch.randint(0, 2, shape, generator=generator).bool()
    else:
        raw = torch.randint(0, 256, (*shape, size), dtype=torch.uint8, generator=generator)
        tensor = raw.view(dtype).reshape(shape)
    if tensor.ndim >= 2 and draw(st.booleans()):
        tensor = tensor.transpose(0, 1)
    if tensor.ndim >= 1 and draw(st.booleans()):
        tensor = tensor[::2]
    return tensor


def _write_small(directory: Path, value: float = 1.0) -> Path:
    named = {"weight": torch.full((8, 4), value), "bias": torch.zeros(4)}
    return write_checkpoint(directory, {"model": named, "rng": {"cpu": torch.get_rng_state()}}, {"step": 3})


@settings(max_examples=60, deadline=None)
@given(named=st.dictionaries(st.text("ab./é", min_size=1, max_size=6), tensors(), max_size=4))
def test_what_is_written_is_read(named: dict[str, torch.Tensor]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = write_checkpoint(Path(folder) / "step-00000001", {"model": named}, {})
        found = read_checkpoint(path).tensors
        assert found.keys() == {"model"}
        assert found["model"].keys() == named.keys()
        for name, tensor in named.items():
            _assert_same(found["model"][name], tensor)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None)
@given(state=st.dictionaries(st.text(), json_values, max_size=4))
def test_state_is_read_as_written(state: dict) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = write_checkpoint(Path(folder) / "step-00000001", {}, state)
        assert read_checkpoint(path).state == state


def test_the_directory_holds_one_file_per_stem_and_its_description(tmp_path: Path) -> None:
    path = _write_small(tmp_path / "deep" / "step-00000003")
    names = sorted(p.name for p in path.iterdir())
    assert names == ["checkpoint.json", "model.safetensors", "rng.safetensors"]
    manifest = json.loads((path / "checkpoint.json").read_text())
    assert (manifest["format"], manifest["version"]) == ("moeworks-checkpoint", 1)
    assert manifest["state"] == {"step": 3}
    assert manifest["files"]["model.safetensors"]["size"] == (path / "model.safetensors").stat().st_size
    assert len({p.stat().st_mode for p in path.iterdir()}) == 1


def test_tensors_that_share_memory_come_back_equal_and_apart(tmp_path: Path) -> None:
    table = torch.arange(12.0).reshape(3, 4)
    named = {
        "embed": table,
        "lm_head": table,
        "row": table[1],
        "turned": table.T,
        "param": nn.Parameter(table),
    }
    path = write_checkpoint(tmp_path / "step-00000001", {"model": named}, {})
    found = read_checkpoint(path).tensors["model"]
    for name, tensor in named.items():
        _assert_same(found[name], tensor.detach())
    found["embed"].zero_()
    _assert_same(found["lm_head"], table)


def test_writing_to_a_tensor_that_was_read_leaves_the_file_alone(tmp_path: Path) -> None:
    path = _write_small(tmp_path / "step-00000003")
    read_checkpoint(path).tensors["model"]["weight"].fill_(7)
    assert read_checkpoint(path).tensors["model"]["weight"].eq(1).all()


def test_tuples_and_integer_keys_become_plain_json(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "step-00000001", {}, {"shape": (1, 2), "steps": {10: "a", 9: "b"}})
    assert read_checkpoint(path).state == {"shape": [1, 2], "steps": {"10": "a", "9": "b"}}


@pytest.mark.parametrize("value", [float("inf"), float("nan"), torch.zeros(1)])
def test_a_state_that_is_not_json_is_refused_before_anything_is_written(
    tmp_path: Path, value: object
) -> None:
    with pytest.raises(CheckpointError, match="the state is not JSON"):
        write_checkpoint(tmp_path / "step-00000001", {}, {"loss": value})
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_is_no_checkpoint_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="step-NUMBER"):
        write_checkpoint(tmp_path / "latest", {}, {})


def test_the_same_step_can_be_written_again(tmp_path: Path) -> None:
    path = tmp_path / "step-00000003"
    write_checkpoint(path, {"model": {}, "gone": {}}, {})
    _write_small(path, value=2.0)
    checkpoint = read_checkpoint(path)
    assert checkpoint.tensors.keys() == {"model", "rng"}
    assert checkpoint.tensors["model"]["weight"].eq(2).all()
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000003"]


def _truncate(path: Path) -> None:
    file = path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])


def _flip_byte(path: Path) -> None:
    file = path / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)


def _name_in_manifest(path: Path, change: Callable[[dict], None]) -> None:
    """Rewrite the description with a checksum that fits, as anyone can."""
    file = path / "checkpoint.json"
    manifest = json.loads(file.read_text())
    del manifest["sha256"]
    change(manifest)
    canonical = json.dumps(manifest, sort_keys=True, separators=(",", ":"))
    manifest["sha256"] = hashlib.sha256(canonical.encode()).hexdigest()
    file.write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"../outside.safetensors": {"size": 1, "sha256": ""}}, r"files names '\.\./outside\.safetensors'"),
        ({"/etc/passwd": {"size": 1, "sha256": ""}}, "files names '/etc/passwd'"),
        ({"model.bin": {"size": 1, "sha256": ""}}, "files names 'model.bin'"),
        ({"model.safetensors": 3}, r"files\['model.safetensors'\]: expected an object with"),
        (["model.safetensors"], "expected an object `files`"),
    ],
)
def test_a_description_that_leads_out_of_its_directory_is_refused(
    tmp_path: Path, files: object, message: str
) -> None:
    path = _write_small(tmp_path / "step-00000003")
    (tmp_path / "outside.safetensors").write_bytes(b"x")
    _name_in_manifest(path, lambda manifest: manifest.update(files=files))
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(path)


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_files_are_as_readable_as_the_umask_says(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        path = _write_small(tmp_path / "step-00000003")
    finally:
        os.umask(before)
    assert {file.stat().st_mode & 0o777 for file in path.iterdir()} == {0o666 & ~mask}


def _edit(old: str, new: str) -> Callable[[Path], None]:
    def edit(path: Path) -> None:
        file = path / "checkpoint.json"
        text = file.read_text()
        assert old in text
        file.write_text(text.replace(old, new))

    return edit


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (_truncate, r"model\.safetensors is truncated or altered: expected \d+ bytes, found \d+"),
    "flipped": (_flip_byte, r"model\.safetensors was altered: its checksum differs"),
    "missing": (lambda path: (path / "rng.safetensors").unlink(), r"rng\.safetensors is missing"),
    "undescribed": (lambda path: (path / "checkpoint.json").unlink(), "not a readable checkpoint"),
    "bad json": (_edit("{", "{{"), r"checkpoint\.json is damaged: not valid JSON"),
    "not text": (
        lambda path: (path / "checkpoint.json").write_bytes(b"\xff\xfe\xff"),
        r"checkpoint\.json is damaged: not valid JSON",
    ),
    "other json": (lambda path: (path / "checkpoint.json").write_text("[1]"), "not the description of"),
    "version": (_edit('"version": 1', '"version": 2'), "format version 2; this moeworks reads version 1"),
    "altered state": (_edit('"step": 3', '"step": 4'), r"checkpoint\.json was altered: its checksum differs"),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("use", [read_checkpoint, verify_checkpoint])
def test_damage_is_named(tmp_path: Path, damage: str, use: Callable[[Path], object]) -> None:
    path = _write_small(tmp_path / "step-00000003")
    verify_checkpoint(path)
    inflict, message = DAMAGES[damage]
    inflict(path)
    with pytest.raises(CheckpointError, match=message):
        use(path)


def test_a_truncated_file_is_named_with_both_sizes(tmp_path: Path) -> None:
    path = _write_small(tmp_path / "step-00000003")
    size = (path / "model.safetensors").stat().st_size
    _truncate(path)
    with pytest.raises(CheckpointError, match=f"expected {size} bytes, found {size - 10}"):
        read_checkpoint(path)


def test_without_verification_only_the_checksums_of_files_are_left_out(tmp_path: Path) -> None:
    path = _write_small(tmp_path / "step-00000003")
    _flip_byte(path)
    assert read_checkpoint(path, verify=False).state == {"step": 3}
    _truncate(path)
    with pytest.raises(CheckpointError, match="truncated"):
        read_checkpoint(path, verify=False)


def test_a_file_that_is_no_safetensors_is_named_even_unverified(tmp_path: Path) -> None:
    path = _write_small(tmp_path / "step-00000003")
    file = path / "model.safetensors"
    file.write_bytes(b"\xff" * file.stat().st_size)
    with pytest.raises(CheckpointError, match=r"cannot read .*model\.safetensors"):
        read_checkpoint(path, verify=False)


def test_a_missing_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="step-00000009 is not a readable checkpoint"):
        read_checkpoint(tmp_path / "step-00000009")


def _no_space(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("where", ["safetensors_file.save_file", "store._write_manifest", "staging.os.fsync"])
@pytest.mark.parametrize("step", [3, 4], ids=["same step", "next step"])
def test_a_full_disk_leaves_the_previous_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, step: int
) -> None:
    first = _write_small(tmp_path / "step-00000003")
    monkeypatch.setattr(f"moeworks.checkpoint.{where}", _no_space)
    with pytest.raises(CheckpointError, match=r"No space left.*previous .* survives: .*step-00000003"):
        _write_small(tmp_path / f"step-0000000{step}", value=2.0)
    assert list(tmp_path.iterdir()) == [first]
    assert read_checkpoint(first).tensors["model"]["weight"].eq(1).all()


def test_a_full_disk_at_the_first_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moeworks.checkpoint.safetensors_file.save_file", _no_space)
    with pytest.raises(CheckpointError, match="there is no earlier checkpoint"):
        _write_small(tmp_path / "step-00000003")
    assert list(tmp_path.iterdir()) == []


WRITE_UNDER_A_LIMIT = """
import resource, sys
from pathlib import Path
import torch
from moeworks.checkpoint import write_checkpoint
from moeworks.errors import CheckpointError

root = Path(sys.argv[1])
write_checkpoint(root / "step-00000001", {"model": {"weight": torch.ones(1000)}}, {})
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    write_checkpoint(root / "step-00000002", {"a": {"x": torch.ones(9)}, "b": {"y": torch.ones(100_000)}}, {})
except CheckpointError as error:
    print(error)
"""


def test_a_file_that_the_system_refuses_to_let_grow(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-c", WRITE_UNDER_A_LIMIT, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert "File too large" in result.stdout
    assert "the previous checkpoint survives" in result.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    verify_checkpoint(*list_checkpoints(tmp_path))
