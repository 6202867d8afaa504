"""Which figures a run gets."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from moeworks.report.run.heat_maps import load_windows
from moeworks.report.run.panels import (
    balance_panels,
    domain_panel,
    engine_panels,
    learning_panels,
    load_panel,
)
from moeworks.report.run.run_data import RunData, read_run

RunMaker = Callable[..., Path]


@pytest.fixture(scope="module")
def run(moe_run: Path) -> RunData:
    return read_run(moe_run)


def test_a_finished_run_gets_every_figure(run: RunData) -> None:
    keys = [panel.key for panel in learning_panels(run) + balance_panels(run) + engine_panels(run)]
    assert keys == [
        "loss", "validation", "max_vio", "dead", "balance", "entropy", "learning_rate", "grad_norm", "speed",
    ]  # fmt: skip


def test_every_figure_has_words(run: RunData) -> None:
    domain = domain_panel(run)
    assert domain is not None
    panels = [
        *learning_panels(run),
        *balance_panels(run),
        *engine_panels(run),
        load_panel(run, load_windows(run)),
        domain,
    ]
    assert all(panel.title and panel.caption.endswith(".") and len(panel.alt) > 40 for panel in panels)
    assert len({panel.key for panel in panels}) == len(panels)


def test_dropped_assignments_are_drawn_where_there_are_any(run: RunData) -> None:
    last = replace(run.train[-1], dropped=(0.0, 0.1, 0.0, 0.0))
    panels = balance_panels(replace(run, train=(*run.train[:-1], last)))
    assert panels[-1].key == "dropped"


def test_balance_losses_are_left_out_where_none_is_logged(run: RunData) -> None:
    records = tuple(replace(record, balance={}) for record in run.train)
    assert "balance" not in [panel.key for panel in balance_panels(replace(run, train=records))]


def test_a_caption_says_when_no_expert_was_dead(run: RunData) -> None:
    def caption(run: RunData) -> str:
        return next(panel.caption for panel in balance_panels(run) if panel.key == "dead")

    assert caption(run).endswith("There was none at any logged step.")
    dead = (replace(run.train[0], dead_experts=(0.0, 1.0, 0.0, 0.0)),)
    assert "none" not in caption(replace(run, train=dead))


def test_a_dense_run_gets_no_balance_and_no_domain_figures(make_run: RunMaker) -> None:
    dense = read_run(make_run(dense=True))
    assert balance_panels(dense) == []
    assert domain_panel(dense) is None
    assert [panel.key for panel in learning_panels(dense)] == ["loss", "validation"]


def test_a_run_without_lines_gets_no_figures(run: RunData) -> None:
    empty = replace(run, train=(), routing=(), evals=(), summary=None)
    assert learning_panels(empty) + balance_panels(empty) + engine_panels(empty) == []


def test_the_load_figure_in_words(run: RunData) -> None:
    windows = load_windows(run)
    alt = load_panel(run, windows).alt
    low, high = windows[-1].load.min(), windows[-1].load.max()
    assert f"between {low:.2f} and {high:.2f} times the fair share, and 1 are nearly unused" in alt
    assert "slider" in load_panel(run, windows).caption
    assert "slider" not in load_panel(run, windows[:1]).caption


def test_the_domain_caption_states_the_baseline_and_what_is_left_out(
    make_run: RunMaker, run: RunData
) -> None:
    few = domain_panel(run)
    assert few is not None
    assert few.caption.endswith("The even share is 3.1 %.")
    many = domain_panel(read_run(make_run(domains=tuple(f"d{i:02}" for i in range(50)), lines=5)))
    assert many is not None
    assert "The 40 largest domains of 50 are drawn." in many.caption


def test_many_layers_are_explained_by_colour(make_run: RunMaker) -> None:
    deep = read_run(make_run(layers=20, experts=4, lines=2))
    assert "from the first layer (blue) to the last (pink)" in balance_panels(deep)[0].caption
