"""What cells measure: points, load, probes, the bfloat16 router, and divergence."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from tiny_run import tiny_config, tiny_corpus, tiny_trainer, write_texts

from moeworks.analyse.load import max_vio
from moeworks.config import RunConfig
from moeworks.data.shards import PreparedCorpus
from moeworks.data.validation import ValidationSet
from moeworks.errors import ConfigError
from moeworks.evaluate.bits_per_byte import evaluate
from moeworks.labs.bfloat16_router import BFloat16Router, use_bfloat16_routers
from moeworks.labs.cells import Cell, HeldOutSize
from moeworks.labs.held_out import HeldOut
from moeworks.labs.meter import Meter, points
from moeworks.labs.probes import Bench, batch_dependence, held_out_trace, knowledge, signal
from moeworks.labs.train_cell import run_cell
from moeworks.models.decoder import moe_modules

EVERYTHING = HeldOutSize(documents=10_000, tokens=10_000)


@pytest.fixture
def setup(tmp_path):
    def make(**groups: Any) -> tuple[RunConfig, PreparedCorpus]:
        given: dict[str, Any] = dict(
            router=dict(selection_bias=False), balance=dict(bias_rule="none"), train=dict(precision="float32")
        )
        for name, values in groups.items():
            given[name] = given.get(name, {}) | values
        config = tiny_config(write_texts(tmp_path / "texts"), **given)
        return config, tiny_corpus(config)

    return make


def cell(config: RunConfig, **changes: Any) -> Cell:
    given: dict[str, Any] = dict(
        lab="x", arm="a", seed=0, config=config, router_in_bfloat16=False, probes=(), held_out=EVERYTHING,
        corpus="c", environment={},
    )  # fmt: skip
    return Cell(**given | changes)


@pytest.mark.parametrize("steps", [1, 2, 7, 24, 400])
def test_points(steps: int) -> None:
    found = points(steps)
    assert max(found) == steps and min(found) >= 1
    assert len(found) <= 24


def test_held_out_nats_are_those_of_the_evaluation(setup) -> None:
    config, corpus = setup()
    trainer = tiny_trainer(config, corpus)
    held_out = HeldOut.of(corpus, EVERYTHING, 16, 4)
    whole = evaluate(trainer.model, ValidationSet(corpus.validation, 16, 4), corpus.domains)
    assert held_out.document_nats(trainer.model).sum() == pytest.approx(sum(whole.nats_M), rel=1e-6)
    assert held_out.bytes_N.sum() == sum(whole.bytes_M)


def test_held_out_documents_are_cut(setup) -> None:
    config, corpus = setup()
    trainer = tiny_trainer(config, corpus)
    cut = HeldOut.of(corpus, HeldOutSize(documents=3, tokens=20), 16, 4)
    assert cut.bytes_N.tolist() == [20, 20, 20]  # tokens are bytes here
    assert cut.document_nats(trainer.model).shape == (3,)


def test_record_of_a_cell(setup) -> None:
    config, corpus = setup(train=dict(steps=5))
    heard: list[float] = []
    record = run_cell(cell(config, probes=("signal", "knowledge", "batch_dependence")), corpus, heard.append)
    assert heard[-1] == 1.0
    assert record["diverged"] is None
    assert len(record["documents"]["nats"]) == corpus.validation.num_documents
    assert record["count"]["tokens"] == 5 * 8 * 16
    assert [point["step"] for point in record["curve"]] == [1, 2, 3, 4, 5]
    assert record["load"][-1]["step"] == 5
    counts = np.array(record["load"][0]["counts"])
    assert counts.shape == (2, 4)
    assert counts.sum() == 2 * 8 * 16 * 2  # layers, sequences, tokens, experts a token
    np.testing.assert_allclose(record["load"][0]["max_vio"], max_vio(counts))
    assert {"knows_token", "knows_domain", "batch_argmax_change", "cpu_seconds"} <= record["metrics"].keys()
    assert {"signal_to_noise", "max_vio", "early_max_vio"} <= record["layers"].keys()
    assert len(record["layers"]["signal_to_noise"]) == 2


def test_dense_cell(setup) -> None:
    config, corpus = setup(train=dict(steps=2))
    pattern = replace(config.model.pattern, explicit=())
    balance = replace(config.balance, global_batch_coef=0.0, sequence_coef=0.0, z_coef=0.0)
    config = replace(config, model=replace(config.model, pattern=pattern), balance=balance)
    record = run_cell(cell(config), corpus)
    assert record["load"] == [] and record["layers"] == {}
    assert record["documents"] is not None


def test_divergence_is_a_result(setup, monkeypatch) -> None:
    config, corpus = setup(train=dict(steps=4), optimizer=dict(lr=1e30, clip_norm=0.0, warmup_steps=0))
    record = run_cell(cell(config, probes=("signal",)), corpus)
    assert record["diverged"]["step"] <= 4
    assert "not finite" in record["diverged"]["message"]
    assert record["documents"] is None
    assert record["metrics"]["diverged"] == 1.0


def test_meter_keeps_single_steps_apart(setup) -> None:
    config, corpus = setup()
    trainer = tiny_trainer(config, corpus)
    meter = Meter(2)
    counts = []
    for _ in range(4):
        step = trainer.step()
        meter.add(step)
        counts.append(step.losses.counts_lE.numpy())
    meter.point(4, 100, 1.0)
    single = np.mean([max_vio(c) for c in counts], axis=0)
    np.testing.assert_allclose(meter.load[0]["max_vio"], single)
    assert np.array_equal(meter.load[0]["counts"], np.sum(counts, axis=0))
    np.testing.assert_allclose(meter.late()["max_vio"], max_vio(counts[-1]))
    np.testing.assert_allclose(meter.early_max_vio(), np.mean([max_vio(c) for c in counts[:2]], axis=0))


def test_signal_leaves_training_as_it_was(setup) -> None:
    config, corpus = setup()
    one, two = (tiny_trainer(config, corpus) for _ in range(2))
    one.step(), two.step()
    found = signal(one)
    assert set(found) == {"signal_to_noise", "router_entropy", "margin", "top_directions"}
    assert all(len(values) == 2 and np.isfinite(values).all() for values in found.values())
    assert all(0 <= value <= 1 for value in found["router_entropy"] + found["top_directions"])
    assert torch.equal(one.step().losses.loss, two.step().losses.loss)


def test_trace_counts_every_held_out_token(setup) -> None:
    config, corpus = setup()
    trainer = tiny_trainer(config, corpus)
    held_out = HeldOut.of(corpus, EVERYTHING, 16, 4)
    trace = held_out_trace(trainer.model, held_out)
    assert trace.num_tokens == held_out.bytes_N.sum()
    assert set(np.unique(trace.tokens.document)) == set(range(len(held_out.bytes_N)))


def test_knowledge_of_a_router_that_knows_the_token_alone(setup, monkeypatch) -> None:
    """Experts that follow from the token id: it tells everything, and the domain nothing beyond it."""
    config, corpus = setup(router=dict(top_k=1, renormalize=False), model=dict(num_layers=1))
    trainer = tiny_trainer(config, corpus)
    model = trainer.model
    with torch.no_grad():
        model.layers[0].attention.o_proj.weight.zero_()
    bench = Bench(trainer, HeldOut.of(corpus, EVERYTHING, 16, 4), [])
    found = knowledge(bench).metrics
    assert found["knows_token"] == pytest.approx(1.0, abs=1e-6)
    assert found["knows_domain_given_token"] == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize(("capacity", "changes"), [(None, False), (0.5, True)])
def test_batch_dependence(setup, capacity: float | None, changes: bool) -> None:
    config, corpus = setup()
    limit = replace(config.model.capacity, capacity_factor=capacity, eval_capacity_factor=capacity)
    config = replace(config, model=replace(config.model, capacity=limit))
    trainer = tiny_trainer(config, corpus)
    found = batch_dependence(Bench(trainer, HeldOut.of(corpus, EVERYTHING, 16, 4), [])).metrics
    assert (found["batch_logit_change"] > 1e-3) is changes
    trainer.loader = None  # the rows are held-out ones, not those of training
    again = batch_dependence(Bench(trainer, HeldOut.of(corpus, EVERYTHING, 16, 4), [])).metrics
    assert again == found
    if not changes:
        assert found["batch_argmax_change"] == 0.0
        assert found["batch_logit_change"] < 1e-5


def test_bfloat16_router_rounds_and_learns(setup) -> None:
    config, corpus = setup()
    exact, rounded = (tiny_trainer(config, corpus) for _ in range(2))
    use_bfloat16_routers(rounded.model)
    routers = [moe.router for moe in moe_modules(rounded.model)]
    assert all(isinstance(router, BFloat16Router) for router in routers)
    before = [router.weight.detach().clone() for router in routers]
    x = torch.randn(50, 16)
    one, two = moe_modules(exact.model)[0].router(x), routers[0](x)
    assert two.router_logits_TE.dtype == torch.float32
    assert torch.equal(two.router_probs_TE, two.router_probs_TE.bfloat16().float())
    torch.testing.assert_close(one.router_logits_TE, two.router_logits_TE, rtol=0.02, atol=0.02)
    rounded.step()
    assert all(not torch.equal(a, r.weight) for a, r in zip(before, routers, strict=True))
    assert rounded.model.state_dict().keys() == exact.model.state_dict().keys()


def test_bfloat16_router_refuses_others(setup) -> None:
    config, corpus = setup(router=dict(selection_bias=True))
    with pytest.raises(ConfigError, match="must be plain and linear"):
        use_bfloat16_routers(tiny_trainer(config, corpus).model)


def test_record_has_no_number_that_json_cannot_hold(setup) -> None:
    config, corpus = setup(train=dict(steps=2))

    def numbers(value: Any) -> list[float]:
        if isinstance(value, dict):
            return [n for item in value.values() for n in numbers(item)]
        if isinstance(value, (list, tuple)):
            return [n for item in value for n in numbers(item)]
        return [value] if isinstance(value, float) else []

    found = numbers(run_cell(cell(config, probes=("signal", "knowledge")), corpus))
    assert found and all(math.isfinite(number) for number in found)
