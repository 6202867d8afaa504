"""Refusals name the file, the field, the value and the rule."""

from pathlib import Path

import numpy as np
import pytest

from moeworks.errors import DataError
from moeworks.report.run.json_fields import Fields, parse_object, read_object


def fields(**values: object) -> Fields:
    return Fields("metrics.jsonl line 7", values)


def test_values_are_returned_as_they_stand() -> None:
    entry = fields(a=3, b=2.5, c=True, d="x", e={"f": {"g": 1}})
    assert entry.count("a") == 3
    assert entry.number("a") == 3.0
    assert entry.number("b") == 2.5
    assert entry.text("d") == "x"
    assert entry.objects("e")["f"].count("g") == 1


def test_nan_is_a_number() -> None:
    assert np.isnan(parse_object(b'{"loss": NaN}', "x").number("loss"))


@pytest.mark.parametrize(
    ("method", "value", "rule"),
    [
        ("number", "3", "loss = '3': must be a number"),
        ("number", None, "loss = None: must be a number"),
        ("number", True, "loss = True: must be a number"),
        ("count", 2.5, "loss = 2.5: must be a whole number"),
        ("count", -1, "loss = -1: must not be negative"),
        ("count", False, "loss = False: must be a whole number"),
        ("text", 1, "loss = 1: must be text"),
        ("object", [], r"loss = \[\]: must be an object"),
    ],
)
def test_a_wrong_type_is_refused(method: str, value: object, rule: str) -> None:
    with pytest.raises(DataError, match=f"^metrics.jsonl line 7: {rule}"):
        getattr(fields(loss=value), method)("loss")


def test_a_missing_field_is_named() -> None:
    with pytest.raises(DataError, match=r"^metrics\.jsonl line 7: the field 'loss' is missing"):
        fields().number("loss")


def test_nested_refusals_name_the_way() -> None:
    with pytest.raises(DataError, match="line 7, domains, email: bytes = -3: must not be negative"):
        fields(domains={"email": {"bytes": -3}}).objects("domains")["email"].count("bytes")


def test_numbers_have_the_asked_length() -> None:
    assert fields(max_vio=[1, 0.5]).numbers("max_vio", 2) == (1.0, 0.5)
    with pytest.raises(DataError, match="max_vio has 1 values: must have 2, one per MoE layer"):
        fields(max_vio=[1]).numbers("max_vio", 2)
    with pytest.raises(DataError, match="max_vio: 1 = None: must be a number"):
        fields(max_vio=[1, None]).numbers("max_vio", 2)


def test_counts_are_a_matrix() -> None:
    counts = fields(n=[[1, 2, 3], [4, 5, 6]]).counts("n", 2)
    assert counts.dtype == np.int64
    assert counts.tolist() == [[1, 2, 3], [4, 5, 6]]


@pytest.mark.parametrize(
    "value",
    [[[1, 2]], [[1, 2], [3]], [1, 2], [[1.5, 2], [3, 4]], [[1, -2], [3, 4]], [["a"], ["b"]], [[], []]],
)
def test_other_matrices_are_refused(value: object) -> None:
    with pytest.raises(DataError, match="n must be 2 equally long lists of counts, one per MoE layer"):
        fields(n=value).counts("n", 2)


def test_broken_json_names_the_place() -> None:
    with pytest.raises(DataError, match=r"^a.jsonl line 3: not valid JSON \(.* at column 7\)"):
        parse_object(b'{"a": ', "a.jsonl line 3")
    with pytest.raises(DataError, match=r"^config\.json line 3: not valid JSON"):
        parse_object(b'{\n"a": 1,\n}\n', "config.json")
    with pytest.raises(DataError, match=r"^a\.json: not UTF-8 text"):
        parse_object(b'{"a": "\xff"}', "a.json")
    with pytest.raises(DataError, match=r"^a\.json: must be a JSON object, not list"):
        parse_object(b"[]", "a.json")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nothing\.json: cannot be read"):
        read_object(tmp_path / "nothing.json")
