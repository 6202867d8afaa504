"""Curves hold the numbers of the files."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moeworks.report.lines import describe_figure
from moeworks.report.run import curves
from moeworks.report.run.run_data import RunData, read_run

DRAWERS = [
    curves.draw_loss, curves.draw_validation, curves.draw_learning_rate, curves.draw_grad_norm,
    curves.draw_speed, curves.draw_balance, curves.draw_max_vio, curves.draw_dead_experts,
    curves.draw_load_entropy, curves.draw_dropped,
]  # fmt: skip


@pytest.fixture(scope="module")
def run(moe_run: Path) -> RunData:
    return read_run(moe_run)


@pytest.fixture(scope="module")
def lines(moe_run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (moe_run / "metrics.jsonl").read_text().splitlines()]


def values(lines: list[dict[str, Any]], kind: str, field: str) -> list[Any]:
    return [line[field] for line in lines if line["kind"] == kind]


@pytest.mark.parametrize("draw", DRAWERS)
def test_every_figure_is_one_that_plotly_accepts(
    run: RunData, draw: Callable[[RunData], dict[str, Any]]
) -> None:
    go.Figure(draw(run))


@pytest.mark.parametrize(
    ("draw", "kind", "field"),
    [
        (curves.draw_loss, "train", "loss"),
        (curves.draw_learning_rate, "train", "learning_rate"),
        (curves.draw_grad_norm, "train", "grad_norm"),
        (curves.draw_speed, "train", "tokens_per_second"),
        (curves.draw_validation, "eval", "bits_per_byte"),
    ],
)
def test_single_curves_equal_the_file(
    run: RunData,
    lines: list[dict[str, Any]],
    draw: Callable[[RunData], dict[str, Any]],
    kind: str,
    field: str,
) -> None:
    (line,) = draw(run)["data"]
    assert line["x"] == values(lines, kind, "step")
    assert line["y"] == pytest.approx(values(lines, kind, field), rel=1e-4)


@pytest.mark.parametrize(
    ("draw", "field"),
    [
        (curves.draw_max_vio, "max_vio"),
        (curves.draw_dead_experts, "dead_experts"),
        (curves.draw_load_entropy, "load_entropy"),
        (curves.draw_dropped, "dropped"),
    ],
)
def test_layer_curves_equal_the_file(
    run: RunData, lines: list[dict[str, Any]], draw: Callable[[RunData], dict[str, Any]], field: str
) -> None:
    traces = draw(run)["data"]
    assert [trace["name"] for trace in traces] == ["layer 0", "layer 1", "layer 2", "layer 3"]
    for trace, expected in zip(traces, zip(*values(lines, "train", field), strict=True), strict=True):
        assert trace["y"] == pytest.approx(expected, rel=1e-4)


def test_balance_losses_and_z_loss_have_their_own_axes(run: RunData, lines: list[dict[str, Any]]) -> None:
    batch, z = curves.draw_balance(run)["data"]
    logged = values(lines, "train", "balance")
    assert batch["y"] == pytest.approx([entry["global_batch"] for entry in logged], rel=1e-4)
    assert z["y"] == pytest.approx([entry["z"] for entry in logged], rel=1e-4)
    assert (batch["name"], batch.get("yaxis")) == ("global batch", None)
    assert (z["name"], z["yaxis"]) == ("router z-loss (right)", "y2")


def test_a_balance_loss_without_a_name_of_ours_and_with_gaps_is_drawn(run: RunData) -> None:
    first, second = run.train[:2]
    records = (replace(first, balance={"my_own": 1.5}), replace(second, balance={}))
    (line,) = curves.draw_balance(replace(run, train=records))["data"]
    assert (line["name"], line["y"]) == ("my own", [1.5, None])


def test_values_that_json_cannot_hold_become_gaps(run: RunData) -> None:
    broken = (*run.train[:2], replace(run.train[2], loss=float("nan")))
    figure = curves.draw_loss(replace(run, train=broken))
    assert figure["data"][0]["y"][-1] is None
    assert describe_figure(figure).endswith(f"to {run.train[1].loss:.4g} at step 20")


def test_a_single_point_has_a_marker_and_a_tick(run: RunData) -> None:
    figure = curves.draw_loss(replace(run, train=run.train[:1]))
    assert figure["data"][0]["mode"] == "lines+markers"
    assert figure["layout"]["xaxis"]["tickvals"] == [10]


def test_the_axis_of_dead_experts_fits(run: RunData) -> None:
    assert curves.draw_dead_experts(run)["layout"]["yaxis"]["range"] == [0, 1.0]
    worse = (replace(run.train[0], dead_experts=(3.0, 0.0, 5.0, 2.0)),)
    figure = curves.draw_dead_experts(replace(run, train=worse))
    assert figure["layout"]["yaxis"]["range"] == [0, 11.0]
    assert [trace["stackgroup"] for trace in figure["data"]] == ["dead"] * 4


@given(st.integers(1, 500), st.integers(2, 60))
def test_thinning_keeps_the_ends_and_the_order(count: int, limit: int) -> None:
    kept = curves.thin(range(count), limit)
    assert len(kept) == min(count, limit)
    assert (kept[0], kept[-1]) == (0, count - 1)
    assert kept == sorted(set(kept))


def test_the_text_alternative_says_where_lines_start_and_end(run: RunData) -> None:
    text = describe_figure(curves.draw_max_vio(run))
    assert text.count("; ") == 3
    first, last = run.train[0].max_vio[0], run.train[-1].max_vio[0]
    assert text.startswith(f"layer 0: from {first:.4g} at step 10 to {last:.4g} at step 300; layer 1:")


def test_many_lines_have_no_legend_and_a_short_description(make_run: Callable[..., Path]) -> None:
    figure = curves.draw_max_vio(read_run(make_run(layers=20, experts=4, lines=2)))
    assert figure["layout"]["showlegend"] is False
    assert describe_figure(figure).endswith("; and 8 more lines")
