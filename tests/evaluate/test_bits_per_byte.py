"""Bits per byte against a loop over documents, per domain, and where each domain's tokens went."""

import math
from pathlib import Path

import pytest
import torch
from random_layers import randomise_
from tiny_run import BYTES, all_state, differing, tiny_config, tiny_corpus, tiny_trainer, write_texts
from torch import Tensor

from moeworks.config import CapacityConfig, LayerPatternConfig
from moeworks.data.shards import PreparedCorpus
from moeworks.data.store import TokenStore
from moeworks.data.validation import ValidationSet
from moeworks.errors import ConfigError, NotFiniteError
from moeworks.evaluate.bits_per_byte import Evaluation, evaluate
from moeworks.models.decoder import Decoder, moe_modules
from moeworks.parallel.world import World


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_texts(tmp_path_factory.mktemp("evaluate") / "texts")


@pytest.fixture(scope="module")
def corpus(texts: Path) -> PreparedCorpus:
    return tiny_corpus(tiny_config(texts))


@pytest.fixture
def model(texts: Path) -> Decoder:
    torch.manual_seed(0)
    return randomise_(Decoder(tiny_config(texts).model).double(), std=0.3)


def documents(store: TokenStore) -> list[tuple[Tensor, int, int]]:
    """Each document's tokens, its end-of-text token in front, with its domain and its bytes."""
    starts = store.document_starts
    tokens = torch.from_numpy(store.tokens.astype("int64"))
    return [
        (tokens[starts[i] : starts[i + 1]], int(store.document_domains[i]), int(store.document_bytes[i]))
        for i in range(store.num_documents)
    ]


@torch.no_grad()
def straight(model: Decoder, store: TokenStore, seq_len: int) -> tuple[list[float], Tensor]:
    """Nats per domain, and assignments [domain, layer, expert], one chunk of a document at a time."""
    model.eval()
    nats = [0.0] * store.num_domains
    counts = torch.zeros(store.num_domains, len(moe_modules(model)), 4, dtype=torch.int64)
    for tokens, domain, _ in documents(store):
        for start in range(0, len(tokens) - 1, seq_len):
            chunk = tokens[start : start + seq_len + 1]
            output = model(chunk[None, :-1])
            log_probs = output.logits_BLV[0].log_softmax(dim=-1)
            nats[domain] -= sum(float(row[target]) for row, target in zip(log_probs, chunk[1:], strict=True))
            for layer, routing in enumerate(output.routings):
                for expert in routing.expert_ids_TK.flatten().tolist():
                    counts[domain, layer, expert] += 1
    return nats, counts


# The numbers.


@pytest.mark.parametrize(("seq_len", "batch_size"), [(16, 3), (16, 100), (64, 5)])
def test_it_is_the_sum_over_documents_one_by_one(model, corpus, seq_len, batch_size):
    """Batching, padding and the order of rows have no influence."""
    found = evaluate(model, ValidationSet(corpus.validation, seq_len, batch_size), corpus.domains)
    nats, counts = straight(model, corpus.validation, seq_len)
    assert found.nats_M == pytest.approx(nats, rel=1e-10)
    assert found.tokens_per_expert_MlE == counts.tolist()
    total = sum(size for _, _, size in documents(corpus.validation))
    assert found.bits_per_byte == pytest.approx(sum(nats) / math.log(2) / total, rel=1e-10)


def test_a_model_that_knows_nothing_needs_the_bits_of_its_vocabulary(model, corpus):
    """With bytes as tokens: log2(264) bits a byte, in every domain."""
    model.embed.weight.data.zero_()
    found = evaluate(model, ValidationSet(corpus.validation, 16, 4), corpus.domains)
    assert found.loss == pytest.approx(math.log(BYTES))
    assert found.bits_per_byte == pytest.approx(math.log2(BYTES))
    for figures in found.record()["domains"].values():
        assert figures["bits_per_byte"] == pytest.approx(math.log2(BYTES))
        assert figures["bytes"] == figures["tokens"]


def test_every_token_is_counted_once_in_every_layer(model, corpus):
    found = evaluate(model, ValidationSet(corpus.validation, 16, 4), corpus.domains)
    for tokens, layers in zip(found.tokens_M, found.tokens_per_expert_MlE, strict=True):
        assert [sum(row) for row in layers] == [2 * tokens] * 2
    assert sum(found.tokens_M) == sum(len(tokens) - 1 for tokens, _, _ in documents(corpus.validation))


def test_record_leaves_out_domains_without_text(corpus, model):
    validation = ValidationSet(corpus.validation, 16, 4)
    found = evaluate(model, validation, (*corpus.domains, "empty")[: len(corpus.domains)])
    named = Evaluation(
        domains=("a", "b"),
        nats_M=[math.log(2) * 30, 0.0],
        tokens_M=[10, 0],
        bytes_M=[15, 0],
        tokens_per_expert_MlE=[[[20, 0]], [[0, 0]]],
    )
    assert set(found.record()["domains"]) == set(corpus.domains)
    assert named.record() == {
        "loss": pytest.approx(3 * math.log(2)),
        "bits_per_byte": pytest.approx(2.0),
        "domains": {"a": {"bits_per_byte": pytest.approx(2.0), "bytes": 15, "tokens": 10}},
    }
    assert named.domain_experts() == {"a": [[20, 0]]}


def test_dense_model_has_no_layers_to_count(texts, corpus):
    config = tiny_config(texts, model=dict(pattern=LayerPatternConfig(explicit=())))
    model = Decoder(config.model)
    found = evaluate(model, ValidationSet(corpus.validation, 16, 4), corpus.domains)
    assert found.tokens_per_expert_MlE == [[] for _ in corpus.domains]
    assert found.bits_per_byte > 0


def test_zero_computation_experts_are_counted_too(texts, corpus):
    config = tiny_config(texts, router=dict(num_experts=3, num_identity_experts=1, num_zero_experts=2))
    found = evaluate(Decoder(config.model), ValidationSet(corpus.validation, 16, 4), corpus.domains)
    assert {len(row) for layers in found.tokens_per_expert_MlE for row in layers} == {6}


# What it leaves alone.


@pytest.mark.parametrize("training", [True, False])
def test_model_and_random_state_are_as_before(texts, corpus, training):
    config = tiny_config(
        texts,
        router=dict(noisy_top_k=True, input_jitter=0.2),
        model=dict(capacity=CapacityConfig(capacity_factor=0.5)),
    )
    trainer = tiny_trainer(config, corpus)
    trainer.step()
    trainer.model.train(training)
    before, random_state = all_state(trainer), torch.get_rng_state()
    evaluate(trainer.model, ValidationSet(corpus.validation, 16, 4), corpus.domains)
    assert differing(all_state(trainer), before) == []
    assert torch.equal(torch.get_rng_state(), random_state)
    assert {module.training for module in trainer.model.modules()} == {training}


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_is_as_before_when_a_batch_raises(model, corpus, training):
    model.train(training)
    model.embed.weight.data.fill_(torch.nan)
    with pytest.raises(
        NotFiniteError, match=r"the validation loss is not finite: first at token 0 .* of embed"
    ):
        evaluate(model, ValidationSet(corpus.validation, 16, 4), corpus.domains)
    assert {module.training for module in model.modules()} == {training}
    with pytest.raises(ConfigError, match="positions"):
        evaluate(model, ValidationSet(corpus.validation, 1000, 4), corpus.domains)
    assert {module.training for module in model.modules()} == {training}


def test_a_loss_that_is_not_finite_ends_all_ranks(model, corpus, monkeypatch):
    """A rank whose own batches are finite learns it from the sum."""
    monkeypatch.setattr(
        World, "sum_", lambda self, tensor: tensor.fill_(torch.nan) if tensor.is_floating_point() else None
    )
    with pytest.raises(NotFiniteError, match="on another process"):
        evaluate(model, ValidationSet(corpus.validation, 16, 4), corpus.domains, World(rank=0, size=2))


def test_it_repeats_and_draws_nothing_and_drops_nothing(texts, corpus):
    """Training alone jitters, adds noise and drops (pitfall 35): evaluation is the dropless model."""
    noisy = tiny_config(
        texts,
        router=dict(noisy_top_k=True, input_jitter=0.2),
        model=dict(capacity=CapacityConfig(capacity_factor=0.25)),
    )
    torch.manual_seed(0)
    model = Decoder(noisy.model)
    validation = ValidationSet(corpus.validation, 16, 4)
    assert evaluate(model, validation, corpus.domains) == evaluate(model, validation, corpus.domains)
    plain = Decoder(tiny_config(texts).model)
    plain.load_state_dict(model.state_dict(), strict=False)
    assert evaluate(plain, validation, corpus.domains) == evaluate(model, validation, corpus.domains)


def test_ranks_share_the_batches_out(model, corpus, monkeypatch):
    """Each of two ranks adds its part; here the sums over ranks are taken by hand."""
    monkeypatch.setattr(World, "sum_", lambda self, tensor: tensor)
    validation = ValidationSet(corpus.validation, 16, 3)
    parts = [evaluate(model, validation, corpus.domains, World(rank=r, size=2)) for r in (0, 1)]
    whole = evaluate(model, validation, corpus.domains)
    assert [sum(t) for t in zip(*(p.tokens_M for p in parts), strict=True)] == whole.tokens_M
    nats = [sum(n) for n in zip(*(p.nats_M for p in parts), strict=True)]
    assert nats == pytest.approx(whole.nats_M, rel=1e-12)
    assert all(sum(part.tokens_M) > 0 for part in parts)
