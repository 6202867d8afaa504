import json
from dataclasses import dataclass

from moeworks.cli.output import as_record, console, facts, grid, print_json


@dataclass(frozen=True)
class Parts:
    first: int
    others: tuple[float, ...]

    @property
    def total(self) -> float:
        return self.first + sum(self.others)


@dataclass(frozen=True)
class Whole:
    parts: Parts
    by_name: dict[str, Parts]
    nothing: None = None


def test_records_are_plain_and_have_their_totals(capsys):
    parts = Parts(1, (2.0, 3.5))
    plain = {"first": 1, "others": [2.0, 3.5], "total": 6.5}
    record = as_record(Whole(parts, {"a": parts}))
    assert record == {"parts": plain, "by_name": {"a": plain}, "nothing": None}
    print_json(record)
    assert json.loads(capsys.readouterr().out) == record


def test_tables_are_not_squeezed_into_a_pipe(capsys):
    out = console()
    out.print(facts("Title", [("name", "12 GB", "x" * 100)]))
    out.print(grid("Other", ["a", "b"], [["row", "7"]]))
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert lines[:2] == ["Title", "name  12 GB  " + "x" * 100]
    assert [line.split() for line in lines[2:]] == [["Other"], ["a", "b"], ["row", "7"]]
