"""results.json and its figures."""

import json
from dataclasses import replace

import numpy as np
import pytest
from lab_records import record, results

from moeworks.errors import DataError
from moeworks.labs.experiments import LABS
from moeworks.labs.figures import Film, LineFigure, series
from moeworks.labs.results import Results
from moeworks.labs.summary import has_results, read_summary, summarise, write_summary
from moeworks.report.lab_page import write_lab_page


@pytest.mark.parametrize("name", LABS)
def test_there_and_back(tmp_path, name: str) -> None:
    summary = summarise(LABS[name], results(LABS[name]), {"seeds": "4"}, quick=False)
    assert write_summary(tmp_path, summary) == tmp_path / "results.json"
    assert read_summary(tmp_path) == summary


def test_quick_results_stand_beside_full_ones(tmp_path) -> None:
    lab = LABS["shared"]
    quick, full = (summarise(lab, results(lab), {}, quick=quick) for quick in (True, False))
    write_summary(tmp_path, quick)
    assert read_summary(tmp_path).quick
    write_summary(tmp_path, full)
    write_summary(tmp_path, quick)
    assert not read_summary(tmp_path).quick


def test_no_results(tmp_path) -> None:
    with pytest.raises(DataError, match=r"run the lab first: moeworks lab run shared"):
        read_summary(tmp_path / "shared")


@pytest.mark.parametrize("content", ["{", "[]", "[" * 100_000, json.dumps({"format": 1})])
def test_bad_results(tmp_path, content: str) -> None:
    (tmp_path / "results.json").write_text(content)
    with pytest.raises(DataError, match="not the results of a lab"):
        read_summary(tmp_path)


def test_rows() -> None:
    lab = LABS["dense"]
    records = [record(arm.name, 0, 2.0, flops=1000 + 10 * n) for n, arm in enumerate(lab.arms)]
    summary = summarise(lab, Results(records, [a.name for a in lab.arms], lab.baseline), {}, quick=True)
    assert summary.rows[0].difference is None and summary.rows[0].flops_to_baseline == 1.0
    assert summary.rows[2].flops_to_baseline == pytest.approx(1.02)
    assert summary.rows[2].cpu_seconds == 1.5
    compute = next(f for f in summary.figures if isinstance(f, LineFigure) and f.key == "loss_flops")
    assert compute.series[0].x[0] == 5 * 32 * 1000  # tokens of the first point times FLOPs


def test_film_is_relative_load() -> None:
    lab = LABS["balance"]
    summary = summarise(lab, results(lab), {}, quick=False)
    film = next(figure for figure in summary.figures if isinstance(figure, Film))
    assert film.names == ("none", "switch-0.01", "bias")
    assert film.frames == ("step 5", "step 10", "step 15", "step 20")
    load = np.array(film.load)
    assert load.shape == (3, 4, 2, 4)
    np.testing.assert_allclose(load.mean(axis=-1), 1, atol=0.01)


def test_gaps() -> None:
    assert series("x", [1, 2], np.array([np.nan, 2.0])).y == (None, 2.0)


@pytest.mark.parametrize("key", ["../../pwn", '"><script>', "A b"])
def test_keys_of_figures_are_names(tmp_path, key) -> None:
    """They become names of files and of elements of a page."""
    summary = summarise(LABS["balance"], results(LABS["balance"]), {}, quick=False)
    figure = replace(summary.figures[0], key=key)
    write_summary(tmp_path, replace(summary, figures=(figure,)))
    with pytest.raises(DataError, match=r"figures\.key"):
        read_summary(tmp_path)


def test_a_run_of_other_settings_has_a_file_of_its_own(tmp_path):
    from_lab = tmp_path / "results.json"
    from_lab.write_text("the lab's own")
    summary = summarise(LABS["shared"], results(LABS["shared"]), {}, quick=False)
    (tmp_path / "report.html").write_text("the lab's own")
    own = replace(summary, other="-5-steps-1-seeds")
    assert write_summary(tmp_path, own).name == "results-5-steps-1-seeds.json"
    assert write_lab_page(tmp_path, own).name == "report-5-steps-1-seeds.html"
    assert from_lab.read_text() == (tmp_path / "report.html").read_text() == "the lab's own"


def test_results_of_other_settings_are_not_those_of_the_lab(tmp_path):
    summary = summarise(LABS["shared"], results(LABS["shared"]), {}, quick=False)
    write_summary(tmp_path, replace(summary, other="-5-steps-1-seeds"))
    assert not has_results(tmp_path)
    with pytest.raises(DataError, match="no results; run the lab first"):
        read_summary(tmp_path)


def test_results_of_another_version(tmp_path):
    summary = summarise(LABS["shared"], results(LABS["shared"]), {}, quick=False)
    write_summary(tmp_path, replace(summary, format=2))
    with pytest.raises(DataError, match="format = 2: must be 1"):
        read_summary(tmp_path)
