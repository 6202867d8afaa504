"""Medians, ratios of neighbours, and the tables made of them."""

import json
from pathlib import Path

import pytest

from suite import results, tables
from suite.registry import Arm, Case, Operation, Sampler, Settings
from suite.runner import Measured
from suite.workers import Ready

OPERATION = Operation(
    name="pretended",
    summary="Pretended work",
    unit="ms",
    reference="base",
    cases=lambda settings: [],
    arms=lambda case, settings: [],
)


def measured(name: str, *samples: float, ready: Ready | None = None, **fields: bool) -> Measured:
    arm = Arm(name=name, build=lambda: Sampler(lambda: 0.0), ours=name == "ours")
    return Measured(arm, ready or Ready(), list(samples), **fields)


def record_of(*entries: Measured, cases: int = 1) -> dict:
    record = results.run_record(Settings())
    record["operations"].append(results.operation_record(OPERATION, Settings(), 3))
    for number in range(cases):
        case = Case(f"case {number}", {"T": 4})
        record["operations"][0]["cases"].append(results.case_record(OPERATION, case, list(entries)))
    return record


def test_ratio_is_of_the_same_rounds() -> None:
    # The machine halves its speed after the first round; each round's ratio is 2.
    assert results.ratio([2.0, 4.0, 4.0], [1.0, 2.0, 2.0]) == {"median": 2.0, "quartiles": [2.0, 2.0]}
    assert results.ratio([6.0], [1.0, 2.0, 9.0]) == {"median": 3.0, "quartiles": [3.0, 3.0]}
    assert results.ratio([1.0], []) is None


def test_record_holds_every_sample_and_where_it_was_taken(tmp_path: Path) -> None:
    record = record_of(measured("base", 1.0, 2.0, 4.0), measured("ours", 2.0, 2.0, 2.0))
    assert "secret" not in json.dumps(results.run_record(Settings(data="/home/secret")))
    results.write_json(tmp_path / "new" / "out.json", record)
    read = json.loads((tmp_path / "new" / "out.json").read_text())
    assert read["format"] == results.FORMAT and read["settings"]["threads"] == 2
    assert {"cpu", "cores", "memory_gb", "torch", "python", "versions", "commit", "date"} <= read[
        "machine"
    ].keys()
    ours = read["operations"][0]["cases"][0]["arms"][1]
    assert ours["samples"] == [2.0, 2.0, 2.0] and ours["median"] == 2.0
    assert ours["ratio"] == {"median": 1.0, "quartiles": [0.75, 1.5]}


def test_markdown_has_a_cell_for_each_case_and_arm_and_notes_what_is_missing() -> None:
    entries = (
        measured("base", 1.0, 2.0, 4.0),
        measured("ours", 2.0, 2.0, 2.0, agrees=False),
        measured("peer", ready=Ready(refused="peer is not installed")),
        measured("slow", 250.0, slow=True),
    )
    text = tables.markdown(record_of(*entries))
    assert "| | case 0 |\n|---|---|\n| base | 2 |\n" in text
    assert "| ours | 2 (**1.00**, 0.75–1.50) [1] |\n| peer | – [2] |" in text
    assert "| slow | 250 (**125.00**, 125.00–125.00) [3] |" in text
    assert "1. DIFFERS from the others in its results\n2. peer is not installed\n3. slow: one sample" in text
    many = tables.markdown(record_of(*entries, cases=5))
    assert "| | base | ours | peer | slow |" in many and "| case 4 | 2 |" in many


@pytest.mark.parametrize(
    ("value", "text"), [(None, "–"), (0.1234, "0.123"), (12.34, "12.3"), (12_345.6, "12,346")]
)
def test_numbers_have_three_digits(value: float | None, text: str) -> None:
    assert tables._number(value) == text
