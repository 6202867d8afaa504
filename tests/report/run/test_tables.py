"""Tables show the numbers of the run."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from moeworks.analyse.verdicts.words import short_number
from moeworks.config.count import count_parameters
from moeworks.report.run import tables
from moeworks.report.run.heat_maps import LoadWindow, load_windows
from moeworks.report.run.run_data import RunData, read_run

RunMaker = Callable[..., Path]


@pytest.fixture(scope="module")
def run(moe_run: Path) -> RunData:
    return read_run(moe_run)


def rows(html: str) -> list[list[str]]:
    """Text of the cells of a table's body."""
    body = html.partition("<tbody>")[2]
    return [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in re.findall(r"<tr>(.*?)</tr>", body)]


def tiles(html: str) -> dict[str, str]:
    return dict(re.findall(r"<dt>(.*?)</dt><dd><b>(.*?)</b>", html))


def test_headline_of_a_finished_run(run: RunData) -> None:
    assert run.summary is not None
    assert tiles(tables.headline(run)) == {
        "bits per byte": f"{run.summary.eval.bits_per_byte:.3f}",
        "parameters": "10.1 M",
        "active parameters": "1.13 M",
        "tokens seen": "2.46 M",
        "time": "5 min 0 s",
        "tokens per second": "8.19 k",
    }


def test_every_headline_number_is_explained(run: RunData) -> None:
    sentences = re.findall(r"<span>(.*?)</span>", tables.headline(run))
    assert len(sentences) == 6
    assert all(sentence.endswith(".") for sentence in sentences)


def test_headline_of_an_unfinished_run_counts_the_config(make_run: RunMaker) -> None:
    run = read_run(make_run(lines=12, finished=False))
    values, counted = tiles(tables.headline(run)), count_parameters(run.config.model)
    assert values["parameters"] == short_number(counted.total)
    assert values["active parameters"] == short_number(counted.active)
    assert values["time"] == "2 min 0 s"
    assert "bits per byte at step 100" in values


def test_headline_of_a_run_without_lines(run: RunData) -> None:
    empty = replace(run, train=(), routing=(), evals=(), summary=None)
    assert set(tiles(tables.headline(empty))) == {"parameters", "active parameters"}


def test_a_dense_model_has_no_active_parameters(make_run: RunMaker) -> None:
    assert "active parameters" not in tiles(tables.headline(read_run(make_run(dense=True))))


def test_load_table(run: RunData) -> None:
    counts = np.array([[10, 30], [20, 20], [1, 39], [0, 0]])
    html = tables.load_table(run, LoadWindow(1, 10, counts)).html()
    assert rows(html) == [
        ["layer 0", "1 (1.50)", "0 (0.50)", "0", "0.50"],
        ["layer 1", "0 (1.00)", "0 (1.00)", "0", "0.00"],
        ["layer 2", "1 (1.95)", "0 (0.05)", "1", "0.95"],
        ["layer 3", "no tokens", "", "", ""],
    ]


def test_load_table_agrees_with_the_logged_max_vio(run: RunData) -> None:
    table = rows(tables.load_table(run, load_windows(run)[-1]).html())
    assert [row[-1] for row in table] == [f"{value:.2f}" for value in run.train[-1].max_vio]


def test_domain_table_is_sorted_by_difficulty(run: RunData) -> None:
    assert run.summary is not None
    table = rows(tables.domain_table(run).html())
    assert [row[0] for row in table] == list(run.summary.eval.domains)
    first = run.summary.eval.domains["asyncio"]
    assert table[0][1:] == [f"{first.bits_per_byte:.3f}", f"{first.bytes:,}", f"{first.tokens:,}"]
    assert [float(row[1]) for row in table] == sorted(float(row[1]) for row in table)


def test_favourites_are_the_largest_shares(run: RunData) -> None:
    assert run.summary is not None
    counts = np.array([[10, 50, 0, 40], [25, 25, 25, 25], [0, 0, 0, 7], [1, 2, 3, 4]])
    summary = replace(run.summary, domain_tokens_per_expert={"<i>": counts})
    html = tables.favourite_tables(replace(run, summary=summary))
    assert html.count('<div class="by-layer" hidden>') == 3
    assert "each would have 25.0 %" in html
    found = [rows(part) for part in html.split('class="by-layer"')[1:]]
    assert found[0] == [["&lt;i&gt;", "1 (50.0 %)", "3 (40.0 %)", "0 (10.0 %)"]]
    assert found[1] == [["&lt;i&gt;", "0 (25.0 %)", "1 (25.0 %)", "2 (25.0 %)"]]


@pytest.mark.parametrize("text", ["def f(): pass", "f(): pass"])
def test_the_prompt_of_the_sample_stands_out_once(run: RunData, text: str) -> None:
    assert run.summary is not None
    html = tables.sample(replace(run.summary, sample_prompt="def ", sample_text=text))
    assert html == '<pre class="sample"><mark>def </mark>f(): pass</pre>'


def test_config_table_shows_and_explains_every_field(run: RunData) -> None:
    table = {row[0]: row[1:] for row in rows(tables.config_table(run))}
    assert table["model.router.num_experts"] == ["32", "Routed experts that have weights (E)."]
    assert table["train.steps"][0] == "300"
    assert all(doc for _, doc in table.values())


def test_machine_line(run: RunData) -> None:
    assert tables.machine_line(run) == "cpu Example CPU · threads 2 · torch 2.13.0 · python 3.11"
    assert tables.machine_line(replace(run, summary=None)) == ""
