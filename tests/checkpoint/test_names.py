"""Names of checkpoints and their order."""

from pathlib import Path

import pytest

from moeworks.checkpoint import checkpoint_dir, list_checkpoints, step_of
from moeworks.errors import CheckpointError


@pytest.mark.parametrize(
    ("step", "name"),
    [(0, "step-00000000"), (400, "step-00000400"), (123_456_789, "step-123456789")],
)
def test_name_and_step_are_inverse(step: int, name: str) -> None:
    path = checkpoint_dir(Path("run"), step)
    assert path == Path("run") / name
    assert step_of(path) == step


@pytest.mark.parametrize("name", ["step-", "step-12a", "best", ".step-00000400.tmp-7", "step-00000400.old"])
def test_other_names_have_no_step(name: str) -> None:
    with pytest.raises(CheckpointError, match="step-NUMBER"):
        step_of(Path("run") / name)


def test_list_is_numeric_and_holds_only_checkpoints(tmp_path: Path) -> None:
    for name in ("step-123456789", "step-00000400", "step-99999999", ".step-00000500.tmp-1", "notes"):
        (tmp_path / name).mkdir()
    (tmp_path / "step-00000007").write_text("a file, not a checkpoint")
    found = [path.name for path in list_checkpoints(tmp_path)]
    assert found == ["step-00000400", "step-99999999", "step-123456789"]


def test_list_of_a_missing_directory_is_empty(tmp_path: Path) -> None:
    assert list_checkpoints(tmp_path / "nowhere") == []
