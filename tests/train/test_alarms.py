"""Alarms: each condition in closed form, the hysteresis, and runs that are made to go wrong."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_run import random_batch, tiny_config, tiny_trainer

from moeworks.checkpoint import list_checkpoints, read_checkpoint
from moeworks.config import AlarmConfig, HashChoice, RunConfig
from moeworks.errors import ConfigError
from moeworks.models.decoder import moe_modules
from moeworks.parallel.world import World
from moeworks.train.alarms import ENOUGH, KINDS, AlarmState, Figures, advance, alarm_records, read_figures
from moeworks.train.loop import Callbacks, train
from moeworks.train.metrics import MetricsSink
from moeworks.train.run_dir import RunDir
from moeworks.train.step import Watched, accumulate_gradients
from moeworks.train.trainer import MOST_DOMAINS, Trainer, build_model

E, K = 8, 2
EVEN = [100] * E
COLLAPSED = [400, 400, 0, 0, 0, 0, 0, 0]
"""All tokens to the same two experts: breadth 0."""


@pytest.fixture
def config(texts) -> RunConfig:
    """2 layers of 8 experts top 2, judged from the first line on."""
    return tiny_config(texts, router=dict(num_experts=E, top_k=K), alarms=AlarmConfig(grace_steps=0))


def figures(counts: list[list[int]], **others: Any) -> Figures:
    layers = len(counts)
    values = dict(logit_size_l=torch.ones(layers), bias_spread_l=torch.zeros(layers), domain_counts=None)
    return Figures(counts_lE=torch.tensor(counts), **values | others)


def badness(
    config: RunConfig, given: Figures, domains: tuple[str, ...] = ("a", "b")
) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for reading in read_figures(given, config, domains):
        found.setdefault(reading.alarm, []).append(reading.badness)
    return found


# The conditions.


def test_route_collapse_is_breadth_below_its_threshold(config):
    """Four equal experts of 8 at top 2: (4 - 2) / (8 - 2) = 1/3."""
    four = [200, 200, 200, 200, 0, 0, 0, 0]
    got = badness(config, figures([EVEN, four]))["route_collapse"]
    assert got == pytest.approx([0.1, 0.1 / (1 / 3)])
    assert badness(config, figures([COLLAPSED, EVEN]))["route_collapse"][0] == float("inf")


def test_dying_experts_are_a_share_of_the_layer(config):
    """Mean 100: under 1 assignment is dead; 2 of 8 are 25 % against 10 %."""
    counts = [200, 100, 100, 100, 100, 200, 0, 0]
    assert badness(config, figures([EVEN, counts]))["dying_experts"] == pytest.approx([0.0, 2.5])


def test_loads_of_few_tokens_are_not_judged(config):
    few = [[int(ENOUGH) - 1] * E] * 2
    assert set(badness(config, figures(few))) == {"exploding_logits", "bias_runaway"}
    assert "route_collapse" in badness(config, figures([[int(ENOUGH)] * E] * 2))


def test_a_router_that_scores_nothing_has_no_exploding_logits(config):
    """Its logits are 0 and -10,000 for form's sake."""
    router = replace(config.model.router, choice=HashChoice(), selection_bias=False)
    balance = replace(config.balance, **{n: 0.0 for n in vars(config.balance) if n.endswith("_coef")})
    model, balance = replace(config.model, router=router), replace(balance, bias_rule="none")
    fixed = replace(config, model=model, balance=balance)
    given = figures([EVEN] * 2, logit_size_l=torch.tensor([1e4, 1e4]))
    assert "exploding_logits" not in badness(fixed, given)


def test_logits_and_biases_against_their_thresholds(config):
    given = figures([EVEN] * 2, logit_size_l=torch.tensor([8.0, 64]), bias_spread_l=torch.tensor([0.5, 3]))
    got = badness(config, given)
    assert got["exploding_logits"] == [0.25, 2.0]
    assert got["bias_runaway"] == [0.5, 3.0]
    assert "bias_runaway" not in badness(config, replace(given, bias_spread_l=None))


def test_domain_starvation_is_of_one_domain_in_a_layer_that_is_not_collapsed(config):
    by_domain = torch.tensor([[EVEN, EVEN], [COLLAPSED, COLLAPSED]])
    given = figures([EVEN, COLLAPSED], domain_counts=by_domain)
    readings = [r for r in read_figures(given, config, ("a", "b")) if r.alarm == "domain_starvation"]
    assert [(r.domain, r.layer, r.badness >= 1) for r in readings] == [
        ("a", 0, False), ("a", 1, False), ("b", 0, True), ("b", 1, False),
    ]  # fmt: skip
    few = torch.tensor([[EVEN, EVEN], [[10] * E] * 2])
    judged = read_figures(figures([EVEN] * 2, domain_counts=few), config, ("a", "b"))
    assert {r.domain for r in judged if r.alarm == "domain_starvation"} == {"a"}


@pytest.mark.parametrize("name", KINDS)
def test_each_can_be_switched_off(config, name):
    given = figures([EVEN] * 2, domain_counts=torch.tensor([[EVEN] * 2] * 2))
    assert set(badness(config, given)) == set(KINDS)
    off = replace(config, alarms=replace(config.alarms, **{KINDS[name].threshold: 0}))
    assert set(badness(off, given)) == set(KINDS) - {name}


@pytest.mark.parametrize(
    "field", [dict(patience=0), dict(release=0.0), dict(release=1.1), dict(breadth=1.0),
              dict(dead_share=-0.1), dict(logit_size=float("inf")), dict(bias_spread=-1.0),
              dict(grace_steps=-1)],
)  # fmt: skip
def test_bad_thresholds(field):
    with pytest.raises(ConfigError, match=f"alarms.{next(iter(field))}"):
        AlarmConfig(**field)


# The hysteresis.

LINES = st.lists(
    st.dictionaries(st.sampled_from("abc"), st.sampled_from([0.0, 0.79, 0.9, 1.0, 5.0, float("inf")])),
    max_size=30,
)
SETTINGS = st.builds(AlarmConfig, patience=st.integers(1, 4), release=st.sampled_from([0.5, 0.8, 1.0]))


NOTHING = AlarmState()


def told(lines: list[dict[str, float]], config: AlarmConfig, state: AlarmState = NOTHING):
    """(line, key, "raised" or "ended") in order, and the last state."""
    events = []
    for number, line in enumerate(lines):
        state, raised, ended = advance(state, line, config)
        events += [(number, key, "raised") for key in raised] + [(number, key, "ended") for key in ended]
    return events, state


@given(LINES, SETTINGS)
def test_raised_and_ended_take_turns_and_say_what_was_seen(lines, config):
    events, state = told(lines, config)
    for key in "abc":
        own = [(number, word) for number, name, word in events if name == key]
        assert [word for _, word in own] == (["raised", "ended"] * len(own))[: len(own)]
        assert (key in state.active) == (len(own) % 2 == 1)
        judged = [number for number, line in enumerate(lines) if key in line]
        for number, word in own:
            last = [lines[n][key] for n in judged if n <= number][-config.patience :]
            assert len(last) == config.patience
            assert all(b >= 1 if word == "raised" else b < config.release for b in last)


@given(LINES, SETTINGS, st.integers(0, 30))
def test_a_resume_in_between_changes_nothing(lines, config, cut):
    """Through JSON, as in a checkpoint."""
    events, state = told(lines, config)
    first, middle = told(lines[:cut], config)
    again = AlarmState.from_json(json.loads(json.dumps(middle.to_json())))
    second, end = told(lines[cut:], config, again)
    assert first + [(n + len(lines[:cut]), *rest) for n, *rest in second] == events
    assert end == state


@given(LINES, SETTINGS)
def test_keys_do_not_see_each_other(lines, config):
    events, _ = told(lines, config)
    for key in "abc":
        alone, _ = told([{k: v for k, v in line.items() if k == key} for line in lines], config)
        assert alone == [event for event in events if event[1] == key]


@given(st.floats(0.801, 0.999), st.integers(1, 20))
def test_between_the_thresholds_nothing_moves(value, count):
    for active in (frozenset(), frozenset("a")):
        events, state = told([{"a": value}] * count, AlarmConfig(patience=1), AlarmState(active))
        assert (events, state.active) == ([], active)


# The records.


def test_records_are_told_once_and_layers_share_them(config):
    state, seen = AlarmState(), []
    lines = [[COLLAPSED, COLLAPSED]] * 5 + [[EVEN, COLLAPSED]] * 4 + [[EVEN, EVEN]] * 5
    for step, counts in enumerate(lines, 1):
        state, records = alarm_records(state, figures(counts), config, ("a",), step)
        seen += records
    collapse = [r for r in seen if r["alarm"] == "route_collapse"]
    assert [(r["step"], r["state"], r["layers"]) for r in collapse] == [
        (3, "raised", [0, 1]), (8, "ended", [0]), (12, "ended", [1]),
    ]  # fmt: skip
    first = collapse[0]
    assert (first["values"], first["threshold"], first["domain"]) == ([0.0, 0.0], 0.1, "")
    assert first["text"] == "layer 0 works as if it had 2.0 of 8 experts"
    assert "balance.bias_rate (now 0.01)" in first["knob"]
    assert "cause" not in collapse[1]
    assert json.loads(json.dumps(seen)) == seen


def test_no_news_before_the_grace_is_over_or_of_a_dense_model(config):
    patient = replace(config, alarms=AlarmConfig(grace_steps=5, patience=1))
    bad = figures([COLLAPSED] * 2)
    assert alarm_records(AlarmState(), bad, patient, (), 5) == (AlarmState(), [])
    assert alarm_records(AlarmState(), bad, patient, (), 6)[1] != []
    dense = figures([])
    assert alarm_records(AlarmState(), dense, config, (), 6) == (AlarmState(), [])


# What a step counts for them.


def test_a_step_counts_by_domain_and_measures_logits(texts):
    config = tiny_config(texts, router=dict(num_experts=4))
    torch.manual_seed(0)
    model = build_model(config, torch.device("cpu")).train()
    batch = random_batch()
    batch = replace(batch, domain_ids_BL=torch.arange(12).expand(4, 12) % 3)
    with torch.no_grad():
        routings = model(
            batch.tokens_BL, document_ids_BL=batch.document_ids_BL, valid_BL=batch.valid_BL
        ).routings
    losses = accumulate_gradients(model, [batch], config, World(), watched_domains=3)
    watched: Watched = losses.watched
    assert torch.equal(watched.domain_counts.sum(dim=0), losses.counts_lE)
    valid = batch.valid_BL.flatten()
    for layer, routing in enumerate(routings):
        largest = routing.router_logits_TE[valid].abs().amax(dim=1).mean()
        torch.testing.assert_close(watched.logit_size_l[layer], largest)
        chosen = routing.expert_ids_TK[valid & (batch.domain_ids_BL.flatten() == 1)]
        assert torch.equal(watched.domain_counts[1, layer], torch.bincount(chosen.flatten(), minlength=4))
    off = replace(config, alarms=AlarmConfig(enabled=False))
    assert accumulate_gradients(model, [batch], off, World()).watched is None


# Runs.


def run_to_the_end(config: RunConfig, corpus, root: Path, *, stop: int | None = None) -> list[dict[str, Any]]:
    """Train in `root`, from its latest checkpoint on; the alarm records that are in the file then."""
    run, trainer = RunDir(root), tiny_trainer(config, corpus)
    run.save_config(config)
    if found := list_checkpoints(run.checkpoints):
        trainer.restore(read_checkpoint(found[-1]))
    sink = MetricsSink(run.metrics, [], keep_bytes=trainer.progress.metrics_bytes)

    def on_step(trainer, step):
        if trainer.progress.step == stop:
            raise KeyboardInterrupt

    evaluated = {"loss": 1.0, "bits_per_byte": 1.0, "domains": {}}
    calls = Callbacks(evaluate=lambda model: dict(evaluated), on_step=on_step, on_record=lambda record: None)
    try:
        train(trainer, run, sink, calls)
    except KeyboardInterrupt:
        pass
    finally:
        sink.close()
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    return [line for line in lines if line["kind"] == "alarm"]


def sick(texts, **groups: Any) -> RunConfig:
    """No balancing at all, and a learning rate that is far too large."""
    return tiny_config(
        texts,
        router=dict(num_experts=8, top_k=1, selection_bias=False, renormalize=False),
        balance=dict(global_batch_coef=0.0, sequence_coef=0.0, z_coef=0.0, bias_rule="none"),
        optimizer=dict(name="adamw", lr=0.3, schedule="constant"),
        train=dict(steps=28, eval_every=100, checkpoint_every=4, log_every=4),
        alarms=AlarmConfig(grace_steps=0),
        **groups,
    )


def test_a_run_without_balance_collapses_and_says_so_once(texts, corpus, tmp_path):
    alarms = run_to_the_end(sick(texts), corpus, tmp_path)
    raised = [(r["alarm"], layer) for r in alarms if r["state"] == "raised" for layer in r["layers"]]
    assert {"route_collapse", "dying_experts"} <= {name for name, _ in raised}
    assert len(raised) == len(set(raised))
    assert "global_batch_coef (now 0)" in next(r for r in alarms if r["alarm"] == "route_collapse")["knob"]


def test_router_logits_that_explode(texts, corpus, tmp_path, monkeypatch):
    """From step 5 on the routers' weights are 300 times what they were."""
    config = tiny_config(texts, train=dict(steps=16, eval_every=100), alarms=AlarmConfig(grace_steps=0))

    class Exploding(Trainer):
        def step(self):
            if self.progress.step == 5:
                with torch.no_grad():
                    for moe in moe_modules(self.model):
                        moe.router.weight.mul_(300)
            return super().step()

    monkeypatch.setattr("tiny_run.Trainer", Exploding)
    (raised,) = [r for r in run_to_the_end(config, corpus, tmp_path) if r["alarm"] == "exploding_logits"]
    assert (raised["step"], raised["state"], raised["layers"]) == (10, "raised", [0, 1])  # lines 6, 8, 10
    assert "set balance.z_coef to 1e-3 or more (now 0.01)" in raised["knob"]


def test_a_killed_run_does_not_say_it_again(texts, corpus, tmp_path):
    whole = run_to_the_end(sick(texts), corpus, tmp_path / "a")
    run_to_the_end(sick(texts), corpus, tmp_path / "b", stop=19)
    assert len(whole) > 2
    assert run_to_the_end(sick(texts), corpus, tmp_path / "b") == whole


def test_a_bias_that_runs_away(texts, corpus, tmp_path):
    config = tiny_config(
        texts,
        balance=dict(bias_rate=2.0),
        train=dict(steps=20, eval_every=100),
        alarms=AlarmConfig(grace_steps=0),
    )
    alarms = run_to_the_end(config, corpus, tmp_path)
    assert "bias_runaway" in {r["alarm"] for r in alarms}


@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
def test_a_healthy_run_is_silent(texts, corpus, tmp_path, score):
    config = tiny_config(
        texts, router=dict(score=score), balance=dict(bias_rate=1e-3), optimizer=dict(name="adamw"),
        train=dict(steps=40, eval_every=100), alarms=AlarmConfig(grace_steps=16),
    )  # fmt: skip
    assert run_to_the_end(config, corpus, tmp_path) == []


def test_domains_are_watched_up_to_a_number(texts, corpus):
    trainer = tiny_trainer(tiny_config(texts), corpus)
    assert trainer.watched_domains == len(corpus.domains) == 2
    trainer.corpus = replace(corpus, domains=tuple(map(str, range(MOST_DOMAINS + 1))))
    assert trainer.watched_domains == 0
