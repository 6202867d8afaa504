"""Files of one model: found by their names, and errors that name what is missing or wrong."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from moeworks.errors import CheckpointError
from moeworks.gguf_file import GgufFile, gguf_parts

gguf = pytest.importorskip("gguf")


def write(path: Path, count: int = 6, *, split: int = 0) -> None:
    """`count` tensors t0, t1 … whose values are their numbers, at most `split` of them in a file."""
    writer = gguf.GGUFWriter(path, "llama", split_max_tensors=split)
    writer.add_block_count(3)
    for number in range(count):
        writer.add_tensor(f"t{number}", np.full((2, 3), number, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture
def parts(tmp_path) -> list[Path]:
    write(tmp_path / "m.gguf", split=2)
    return sorted(tmp_path.glob("m-*"))


def test_a_file_by_itself(tmp_path):
    write(tmp_path / "m.gguf")
    file = GgufFile(tmp_path / "m.gguf")
    assert file.metadata == {"general.architecture": "llama", "llama.block_count": 3}
    assert (len(file.names), file.shape("t4"), file.stored) == (6, (2, 3), "F32")
    assert (file.values("t4") == 4).all()


def test_parts_are_one_file_whichever_is_named(parts):
    assert [gguf_parts(part) for part in parts] == [parts] * 3
    for part in parts:
        file = GgufFile(part)
        assert file.metadata == {"general.architecture": "llama", "llama.block_count": 3}
        assert file.names == {f"t{number}" for number in range(6)}
        assert (file.values("t5") == 5).all()


def test_missing_parts_are_named(parts):
    parts[1].unlink()
    with pytest.raises(CheckpointError, match=r"one of 3 files .*missing beside it: m-00002-of-00003.gguf$"):
        GgufFile(parts[0])
    many = parts[0].with_name("m-00001-of-99999.gguf")
    with pytest.raises(CheckpointError, match=r"m-00003-of-99999.gguf and 99996 more"):
        GgufFile(many)
    with pytest.raises(CheckpointError, match="there is no part 4 of 3"):
        GgufFile(parts[0].with_name("m-00004-of-00003.gguf"))


def test_a_part_under_a_name_of_its_own(parts, tmp_path):
    shutil.copy(parts[1], tmp_path / "lone.gguf")
    with pytest.raises(CheckpointError, match=r"part 2 of 3; name the parts NAME-00001-of-00003.gguf"):
        GgufFile(tmp_path / "lone.gguf")


def test_parts_that_do_not_belong_together(parts):
    shutil.copy(parts[1], parts[2])
    with pytest.raises(CheckpointError, match="says that it is part 2 of 3, its name says 3 of 3"):
        GgufFile(parts[0])


def test_truncated_files(parts, tmp_path):
    content = parts[0].read_bytes()
    for size in (0, 3, 20, 100, len(content) // 2, len(content) - 9):  # 8 bytes fill up the last tensor
        parts[0].write_bytes(content[:size])
        with pytest.raises(CheckpointError, match=r"m-00001-of-00003\.gguf"):
            GgufFile(parts[2])
