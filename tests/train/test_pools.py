"""A run whose domains have pools of experts: where its tokens' types come from, and what follows of them."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_run import BYTES, gradients_of, random_batch, split_rows, tiny_config, tiny_trainer

from moeworks.checkpoint import read_checkpoint, write_checkpoint
from moeworks.config import AlarmConfig, ModelConfig
from moeworks.config.generate import SamplingConfig
from moeworks.data.validation import ValidationSet
from moeworks.errors import ConfigError
from moeworks.evaluate.bits_per_byte import evaluate
from moeworks.generate.loop import generate
from moeworks.generate.prefix import PrefixCache
from moeworks.generate.speculative import generate_ahead
from moeworks.models.decoder import moe_modules
from moeworks.parallel.world import World
from moeworks.train.alarms import ENOUGH, AlarmState, Figures, alarm_records, read_figures
from moeworks.train.step import accumulate_gradients, routers_of
from moeworks.train.trainer import build_model

POOLS = ("poems=0-2", "notes=2-3")
ROUTER = dict(num_experts=4, top_k=2, pools=POOLS)


@pytest.fixture
def config(texts):
    return tiny_config(texts, router=ROUTER)


def test_tokens_have_the_experts_of_their_domain(config, corpus):
    trainer = tiny_trainer(config, corpus)
    assert corpus.domains == ("notes", "poems")
    for batch in trainer._batches():
        assert torch.equal(batch.token_types_BL, 1 - batch.domain_ids_BL)
    losses = trainer.step().losses
    by_domain = losses.watched.domain_counts
    assert by_domain[0, :, :2].sum() == 0
    assert by_domain[1, :, 3].sum() == 0
    assert (by_domain.sum(dim=(1, 2)) > 0).all()
    assert losses.watched.logit_size_l.isfinite().all()
    evaluation = evaluate(trainer.model, ValidationSet(corpus.validation, 16, 4), corpus.domains)
    experts = evaluation.domain_experts()
    assert all(layer[:2] == [0, 0] for layer in experts["notes"])
    assert all(layer[3] == 0 for layer in experts["poems"])


def test_a_restored_run_goes_on_exactly(config, corpus, tmp_path: Path):
    trainer = tiny_trainer(config, corpus)
    trainer.step()
    tensors, state = trainer.state()
    assert state["config"]["model"]["router"]["pools"] == list(POOLS)
    other = tiny_trainer(config, corpus)
    other.restore(read_checkpoint(write_checkpoint(tmp_path / "step-00000001", tensors, state)))
    trainer.step(), other.step()
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(value, other.model.state_dict()[name]), name


def test_pools_that_are_not_for_the_corpus(texts, corpus):
    for pools, message in (
        (("poems=0-2", "note=2-3"), r"domain of the data = 'notes': .*did you mean 'note'"),
        (("poems=0-2", "notes=2-3", "songs=0-3"), r"router.pools = 'songs=0-3': no document of the data"),
    ):
        with pytest.raises(ConfigError, match=message):
            tiny_trainer(tiny_config(texts, router=ROUTER | dict(pools=pools)), corpus)
    tiny_trainer(tiny_config(texts, router=ROUTER | dict(pools=("poems=0-2", "*=2-3"))), corpus).step()


def test_a_step_is_the_same_however_it_is_cut(config):
    model = build_model(config, torch.device("cpu"))
    batch = replace(random_batch(), token_types_BL=torch.randint(2, (4, 12)))
    found = []
    for parts in (1, 4):
        model.zero_grad()
        losses = accumulate_gradients(model, split_rows(batch, parts), config, World(), routers_of(model))
        found.append((losses, gradients_of(model)))
    (whole, want), (cut, got) = found
    for name, value in want.items():
        torch.testing.assert_close(got[name], value, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(cut.balance, whole.balance)
    for one, other in zip(cut.statistics, whole.statistics, strict=True):
        assert torch.equal(one["tokens_per_expert"], other["tokens_per_expert"])
        assert one["tokens_per_expert"].shape == (2, 4)


def some_model(config, **options):
    torch.manual_seed(1)
    model = build_model(replace(config, model=replace(config.model, **options)), torch.device("cpu"))
    return model.eval()


def test_a_model_writes_with_the_experts_of_one_type(config):
    model, prompt = some_model(config), [5, 6, 7, 8]
    with pytest.raises(ConfigError, match=r"token_types = None: the model has 2 pools of experts"):
        list(generate(model, prompt, 3))
    written = {}
    for kind in (0, 1):
        model.token_type = kind
        written[kind] = list(generate(model, prompt, 8, seed=3))
        prefix = PrefixCache(model)
        assert list(generate(model, prompt, 8, seed=3, prefix=prefix)) == written[kind]
        types = torch.full((1, 4), kind)
        (first, *_) = model(torch.tensor([prompt]), token_types_BL=types).routings
        assert set(first.expert_ids_TK.flatten().tolist()) <= set(model.config.router.pool_experts[kind])
        read = prefix.read(prompt, 10, 4).routings[0]
        assert read.token_types_T.tolist() == [kind] * 4
    assert written[0] != written[1]


def test_drafts_keep_to_the_pool_too(config):
    model = some_model(config, num_mtp_layers=1)
    model.token_type = 1
    prompt = [5, 6, 7, 8]
    plain = list(generate(model, prompt, 8, sampling=SamplingConfig(temperature=0.0)))
    assert list(generate_ahead(model, prompt, 8)) == plain


def test_alarms_judge_a_pool_by_itself(config):
    """A domain whose pool is its top_k experts is not starved, a rare one has no dead experts."""
    config = replace(config, alarms=AlarmConfig(grace_steps=0, patience=1))
    many, few = 40 * ENOUGH, 2 * ENOUGH
    fair = torch.tensor([[[0, 0, few, few]] * 2, [[many, many, many, 0]] * 2], dtype=torch.int64)

    def readings(by_domain):
        given = Figures(by_domain.sum(0), torch.ones(2), None, by_domain)
        return read_figures(given, config, ("notes", "poems"))

    assert readings(fair)
    assert all(reading.badness < 1 for reading in readings(fair))
    collapsed = fair.clone()
    collapsed[1] = torch.tensor([3 * many // 2, 3 * many // 2, 0, 0])
    bad = {(r.alarm, r.domain) for r in readings(collapsed) if r.badness >= 1}
    assert bad == {("route_collapse", "")}
    dead = torch.tensor([[[0, 0, 2 * few, 0]] * 2, [[many, many, many, 0]] * 2], dtype=torch.int64)
    assert ("dying_experts", "") in {(r.alarm, r.domain) for r in readings(dead) if r.badness >= 1}
    given = Figures(collapsed.sum(0), torch.ones(2), None, collapsed)
    _, (record,) = alarm_records(AlarmState(), given, config, ("notes", "poems"), 5)
    assert "0% of the choice that its pool of experts offers" in record["text"]
    unwatched = Figures(fair.sum(0), torch.ones(2), None, None)
    assert {r.alarm for r in read_figures(unwatched, config, ("notes", "poems"))} == {"exploding_logits"}


def test_mtp_layers_get_the_types_of_the_tokens_that_they_read(config):
    model = some_model(config, num_mtp_layers=1)
    types = torch.tensor([[0, 0, 1, 1, 0]])
    output = model(torch.arange(5)[None], token_types_BL=types, ahead=True)
    assert output.routings[-1].token_types_T.tolist() == [0, 1, 1, 0]
    assert isinstance(model.config, ModelConfig) and model.config.vocab_size == BYTES
    assert all(moe.router.pools_PE.shape == (2, 4) for moe in moe_modules(model))
