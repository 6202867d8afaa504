"""Keys, files, and the order of cells."""

import json
from dataclasses import replace
from typing import Any

import pytest

from moeworks.errors import DataError
from moeworks.labs.cells import Cell, HeldOutSize, lab_cells, read_cell, write_cell
from moeworks.labs.experiments import LABS


def cells(lab: str = "shared", **changes: Any) -> list[Cell]:
    given: dict[str, Any] = dict(
        data=("stdlib:",), steps=5, seeds=2, held_out=HeldOutSize(), corpus="c", environment={"torch": "1"}
    )
    given |= changes
    return lab_cells(LABS[lab], given.pop("data"), **given)


def test_seed_by_seed_and_paired() -> None:
    made = cells(seeds=3)
    arms = [arm.name for arm in LABS["shared"].arms]
    assert [(cell.seed, cell.arm) for cell in made] == [(seed, arm) for seed in range(3) for arm in arms]
    assert all(cell.config.train.seed == cell.seed for cell in made)


@pytest.mark.parametrize(
    "change",
    [
        dict(steps=6),
        dict(corpus="another"),
        dict(environment={"torch": "2"}),
        dict(held_out=HeldOutSize(documents=5)),
    ],
)
def test_key_depends_on_all_that_decides(change: dict[str, Any]) -> None:
    before, after = ({cell.key for cell in made} for made in (cells(), cells(**change)))
    assert len(before) == 6
    assert not before & after


def test_key_depends_on_router_and_probes() -> None:
    cell = cells()[0]
    others = [replace(cell, router_in_bfloat16=True), replace(cell, probes=("signal",))]
    assert cell.key not in [other.key for other in others]
    # The seed is part of the config; the field alone is a name.
    assert replace(cell, seed=9).key == cell.key


def test_key_does_not_depend_on_places() -> None:
    assert [cell.key for cell in cells()] == [
        cell.key for cell in cells(data=("elsewhere/",), cache_dir="/somewhere")
    ]


def test_file_name_is_plain(tmp_path) -> None:
    made = [cell for name in LABS for cell in cells(name)]
    for cell in made:
        assert cell.path(tmp_path).name.strip("abcdefghijklmnopqrstuvwxyz0123456789-.") == ""
    assert len({(cell.lab, cell.path(tmp_path)) for cell in made}) == len(made)


def test_files(tmp_path) -> None:
    path = tmp_path / "cells" / "x.json"
    assert read_cell(path) is None
    write_cell(path, {"format": 1, "a": [1.5]})
    assert read_cell(path) == {"format": 1, "a": [1.5]}
    assert [file.name for file in path.parent.iterdir()] == ["x.json"]


@pytest.mark.parametrize("content", ["{", "[]", json.dumps({"format": 0}), ""])
def test_bad_files(tmp_path, content: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(content)
    with pytest.raises(DataError, match="remove it, and it is measured again"):
        read_cell(path)


def test_nothing_that_json_cannot_hold(tmp_path) -> None:
    with pytest.raises(ValueError):
        write_cell(tmp_path / "x.json", {"format": 1, "loss": float("nan")})
    assert not (tmp_path / "x.json").exists()


def test_work_grows_with_steps() -> None:
    assert cells(steps=10)[0].work == 2 * cells(steps=5)[0].work
