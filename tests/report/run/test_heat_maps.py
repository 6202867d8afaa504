"""Heat maps hold the counts of the files, relative to the fair share."""

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from moeworks.report.run import heat_maps
from moeworks.report.run.run_data import RoutingRecord, RunData, read_run

RunMaker = Callable[..., Path]


@pytest.fixture(scope="module")
def run(moe_run: Path) -> RunData:
    return read_run(moe_run)


def with_routing(run: RunData, count: int) -> RunData:
    """The run with `count` routing lines, where line n has n assignments per expert but 2 n for expert 0."""
    records = [RoutingRecord(10 * n, n * np.array([[2, 1, 1, 1]] * 4)) for n in range(1, count + 1)]
    return replace(run, routing=tuple(records))


def test_load_figure_equals_the_file(run: RunData, moe_run: Path) -> None:
    lines = [json.loads(line) for line in (moe_run / "metrics.jsonl").read_text().splitlines()]
    counts = [np.array(line["tokens_per_expert"]) for line in lines if line["kind"] == "routing"]
    figure = heat_maps.draw_load(run, heat_maps.load_windows(run))
    assert len(figure["frames"]) == len(counts) == 30
    for frame, count in zip(figure["frames"], counts, strict=True):
        expected = count / (count.sum(axis=1, keepdims=True) / 32)
        np.testing.assert_allclose(frame["data"][0]["z"], expected, atol=0.0051)
    assert figure["data"][0]["z"] == figure["frames"][-1]["data"][0]["z"]


def test_load_figure_is_one_that_plotly_accepts_and_has_words(run: RunData) -> None:
    figure = heat_maps.draw_load(run, heat_maps.load_windows(run))
    go.Figure(figure)
    trace = figure["data"][0]
    assert trace["x"] == [str(i) for i in range(32)]
    assert trace["y"] == ["layer 0", "layer 1", "layer 2", "layer 3"]
    assert "times its fair share" in trace["hovertemplate"]
    assert (trace["zmin"], trace["zmax"]) == (0, 3.0)
    assert figure["frames"][0]["name"] == "steps 1 to 10"


@pytest.mark.parametrize(("count", "frames"), [(1, 1), (59, 59), (60, 60), (61, 60), (1000, 60)])
def test_windows_are_few_and_cover_every_step(run: RunData, count: int, frames: int) -> None:
    long = with_routing(run, count)
    windows = heat_maps.load_windows(long)
    assert len(windows) == frames
    assert windows[0].first_step == 1
    assert windows[-1].last_step == 10 * count
    assert all(b.first_step == a.last_step + 1 for a, b in pairwise(windows))
    total = sum(window.tokens_per_expert for window in windows)
    assert np.array_equal(total, sum(record.tokens_per_expert for record in long.routing))


def test_windows_add_counts_and_do_not_average_loads(run: RunData) -> None:
    records = (RoutingRecord(1, np.array([[30, 10]])), RoutingRecord(2, np.array([[0, 200]])))
    (window,) = heat_maps.load_windows(replace(run, routing=records), limit=1)
    assert window.load.tolist() == [[0.25, 1.75]]


def test_huge_models_get_fewer_frames(run: RunData) -> None:
    records = [RoutingRecord(n, np.ones((61, 256), dtype=np.int64)) for n in range(1, 101)]
    windows = heat_maps.load_windows(replace(run, routing=tuple(records)))
    assert len(windows) == heat_maps.MAX_CELLS // (61 * 256) == 12


def test_no_routing_means_no_windows(run: RunData) -> None:
    assert heat_maps.load_windows(replace(run, routing=())) == []


@given(arrays(np.int64, (3, 5), elements=st.integers(0, 10**6)))
def test_relative_load_has_mean_one(counts: np.ndarray) -> None:
    load = heat_maps.relative_load(counts)
    for row, total in zip(load, counts.sum(axis=1), strict=True):
        assert np.isnan(row).all() if total == 0 else row.mean() == pytest.approx(1.0)


def test_a_layer_without_tokens_is_a_gap(run: RunData) -> None:
    record = RoutingRecord(10, np.array([[0, 0], [1, 3], [1, 1], [1, 1]]))
    short = replace(run, routing=(record,))
    figure = heat_maps.draw_load(short, heat_maps.load_windows(short))
    assert figure["data"][0]["z"] == [[None, None], [0.5, 1.5], [1.0, 1.0], [1.0, 1.0]]


def test_domain_figure_equals_the_file(run: RunData, moe_run: Path) -> None:
    raw = json.loads((moe_run / "summary.json").read_text())["domain_tokens_per_expert"]
    domains = heat_maps.drawn_domains(run)
    assert run.summary is not None
    shares = heat_maps.domain_shares(run.summary.domain_tokens_per_expert, domains)
    figure = heat_maps.draw_domains(run, domains, shares)
    go.Figure(figure)
    assert [frame["name"] for frame in figure["frames"]] == ["layer 0", "layer 1", "layer 2", "layer 3"]
    for layer, frame in enumerate(figure["frames"]):
        for name, row in zip(figure["data"][0]["y"], frame["data"][0]["z"], strict=True):
            counts = np.array(raw[name][layer])
            np.testing.assert_allclose(row, 100 * counts / counts.sum(), atol=0.0051)


def test_the_uniform_baseline_is_stated_and_neutral(run: RunData) -> None:
    domains = heat_maps.drawn_domains(run)
    assert run.summary is not None
    shares = heat_maps.domain_shares(run.summary.domain_tokens_per_expert, domains)
    np.testing.assert_allclose(shares.sum(axis=-1), 1.0)
    trace = heat_maps.draw_domains(run, domains, shares)["data"][0]
    assert trace["zmax"] == pytest.approx(3 * 100 / 32)
    assert "spread evenly it would be 3.1 %" in trace["hovertemplate"]
    assert trace["colorbar"]["tickvals"][1] == pytest.approx(100 / 32)


def test_the_largest_domains_are_drawn(make_run: RunMaker) -> None:
    run = read_run(make_run(domains=tuple(f"d{i:02}" for i in range(50)), lines=5))
    assert run.summary is not None
    assert len(heat_maps.drawn_domains(run)) == heat_maps.MAX_DOMAINS
    counts = {
        "small": np.full((4, 32), 1),
        "big": np.full((4, 32), 9),
        "none": np.zeros((4, 32), dtype=np.int64),
    }
    run = replace(run, summary=replace(run.summary, domain_tokens_per_expert=counts))
    assert heat_maps.drawn_domains(run) == ["big", "small"]


def test_domain_names_are_no_markup(run: RunData) -> None:
    name = "<b>bold</b> & <a href='https://example.com'>"
    figure = heat_maps.draw_domains(run, [name], np.full((4, 1, 32), 1 / 32))
    assert figure["data"][0]["y"] == ["&lt;b&gt;bold&lt;/b&gt; &amp; &lt;a href='https://example.com'&gt;"]
