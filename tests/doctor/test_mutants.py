"""The doctor finds planted versions of the known pitfalls."""

import mutants_training  # noqa: F401  (its mutants join the table)
import pytest
from mutants import MUTANTS

from moeworks.doctor.catalogue import INVARIANTS
from moeworks.doctor.verdict import examine, select


@pytest.mark.parametrize("name", MUTANTS)
def test_the_doctor_finds(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mutant = MUTANTS[name]
    chosen = select(INVARIANTS, [mutant.check])
    sound = examine(mutant.subject(), chosen).findings[0]
    assert sound.verdict == "pass", sound.message
    mutant.plant(monkeypatch)
    found = examine(mutant.subject(), chosen).findings[0]
    assert found.verdict == "fail", found.message
    assert mutant.pitfall in found.pitfalls


def test_at_least_25_pitfalls_are_planted() -> None:
    assert len({mutant.pitfall for mutant in MUTANTS.values()}) >= 35
