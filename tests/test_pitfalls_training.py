"""Bugs that other code bases shipped, at the level of training; each test would fail if one came back here.

The numbers are those of the list that they were collected in; every docstring names where it happened.
"""

import gc
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from random_layers import randomise_
from tiny_run import (
    all_state,
    biases_of,
    differing,
    gradients_of,
    random_batch,
    split_rows,
    tiny_config,
    tiny_corpus,
    tiny_trainer,
    write_texts,
)
from torch import Tensor

from moeworks.checkpoint import checkpoint_dir, read_checkpoint, write_checkpoint
from moeworks.config import BalanceConfig, LayerPatternConfig, RunConfig
from moeworks.data.batches import Batch
from moeworks.data.shards import PreparedCorpus
from moeworks.data.validation import ValidationSet
from moeworks.errors import CheckpointError
from moeworks.evaluate.bits_per_byte import evaluate
from moeworks.models.decoder import Decoder
from moeworks.parallel.world import World
from moeworks.pretrained import load
from moeworks.train.run_dir import RunDir
from moeworks.train.step import StepLosses, accumulate_gradients, routers_of, update_routers
from moeworks.train.trainer import build_model

CLOSE = dict(rtol=1e-10, atol=1e-10)
NO_BALANCE = dict(global_batch_coef=0.0, sequence_coef=0.0, z_coef=0.0)


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_texts(tmp_path_factory.mktemp("pitfalls") / "texts")


@pytest.fixture(scope="module")
def corpus(texts: Path) -> PreparedCorpus:
    return tiny_corpus(tiny_config(texts))


def build(config: RunConfig) -> Decoder:
    torch.manual_seed(0)
    return randomise_(build_model(config, torch.device("cpu")), std=0.3).train()


def step_of(config: RunConfig, batches: list[Batch]) -> tuple[StepLosses, dict[str, Tensor], Decoder]:
    model = build(config)
    torch.manual_seed(1)
    losses = accumulate_gradients(model, batches, config, World(), routers_of(model))
    return losses, gradients_of(model), model


def test_pitfall_10_balance_loss_not_computed_unless_asked_for(texts):
    """transformers#44242, #44284: with a coefficient set, the loss stayed None without another flag."""
    config = replace(tiny_config(texts), balance=BalanceConfig(bias_rule="sign"))
    losses, grads, _ = step_of(config, [random_batch()])
    _, without, _ = step_of(tiny_config(texts, balance=NO_BALANCE), [random_batch()])
    assert float(losses.balance["global_batch"]) >= 1.0
    for layer in range(2):
        name = f"layers.{layer}.mlp.router.weight"
        assert not torch.allclose(grads[name], without[name], rtol=1e-6, atol=0)


def test_pitfall_14_padding_counted_in_the_bias_update(texts):
    """Megatron-LM#1984, #2142, #6114; torchtitan#4594; transformers#28505: padding entered the counts."""
    batch, moved = random_batch(), []
    for filler in (0, 7):
        padded = replace(batch, tokens_BL=torch.where(batch.valid_BL, batch.tokens_BL, filler))
        config = tiny_config(texts)
        losses, _, model = step_of(config, split_rows(padded, 2))
        assert losses.counts_lE.sum(dim=1).tolist() == [2 * int(batch.valid_BL.sum())] * 2
        update_routers(routers_of(model), losses.statistics, config.balance)
        moved.append(biases_of(model))
    assert torch.equal(moved[0], moved[1])


@pytest.mark.parametrize("loss", ["global_batch", "sequence", "importance", "z"])
def test_pitfall_16_balance_gradient_scaled_by_accumulation(texts, loss):
    """ms-swift#5627, NeMo Automodel#1408, #1412, #3359, transformers#48690: the balance gradient was lost, or
    multiplied by the number of micro-batches or processes, while the reported loss looked right."""
    config = tiny_config(texts, balance=NO_BALANCE | {f"{loss}_coef": 0.5})
    plain = tiny_config(texts, balance=NO_BALANCE)
    shares = []
    for parts in (1, 2, 4):
        batches = split_rows(random_batch(), parts)
        with_loss, without = (step_of(c, batches)[1] for c in (config, plain))
        shares.append({name: with_loss[name] - without[name] for name in with_loss})
    assert shares[0]["layers.1.mlp.router.weight"].abs().max() > 1e-4
    for other in shares[1:]:
        torch.testing.assert_close(other, shares[0], **CLOSE)


def test_pitfall_17_statistics_counted_twice_under_recomputation(texts):
    """Megatron-LM#1330, #1585: logged balance losses doubled when layers were recomputed."""
    batches = split_rows(random_batch(), 2)
    plain, _, _ = step_of(tiny_config(texts), batches)
    again, _, _ = step_of(tiny_config(texts, train=dict(activation_checkpointing=True)), batches)
    torch.testing.assert_close(again.balance, plain.balance, **CLOSE)
    torch.testing.assert_close(again.loss, plain.loss, **CLOSE)
    torch.testing.assert_close(again.dropped_l, plain.dropped_l, **CLOSE)


def test_pitfall_18_lists_of_losses_that_are_never_cleared(texts, corpus):
    """megablocks#119, #82, #69: a global list kept every step's graph, and evaluation added to it."""
    trainer = tiny_trainer(tiny_config(texts), corpus)
    validation = ValidationSet(corpus.validation, 16, 4)

    def live_after_a_step() -> int:
        trainer.step()
        evaluate(trainer.model, validation, corpus.domains)
        gc.collect()
        return sum(issubclass(type(item), Tensor) for item in gc.get_objects())

    live_after_a_step()
    assert live_after_a_step() == live_after_a_step() == live_after_a_step()


@pytest.mark.parametrize("accumulation", [1, 2])
def test_pitfall_20_balance_loss_left_in_the_reported_loss(texts, corpus, accumulation):
    """open_lm#255: `loss += balance` ended up in the cross-entropy that was logged."""
    train = dict(accumulation=accumulation)
    strong = dict(global_batch_coef=100.0, switch_coef=100.0, sequence_coef=100.0, z_coef=100.0)
    found = [
        float(tiny_trainer(tiny_config(texts, balance=b, train=train), corpus).step().losses.loss)
        for b in (strong, NO_BALANCE)
    ]
    assert found[0] == pytest.approx(found[1], abs=1e-12)


def test_pitfall_21_counter_doubled_by_activation_checkpointing(texts, corpus):
    """torchtitan divided by 2 ("a hack"), NeMo Automodel#3247: a counting buffer in forward counts the
    recomputation too, and only reentrant checkpointing is caught by asking whether gradients are on."""
    found = []
    for checkpointing in (False, True):
        config = tiny_config(texts, train=dict(activation_checkpointing=checkpointing))
        trainer = tiny_trainer(
            replace(config, balance=replace(config.balance, bias_rule="proportional")), corpus
        )
        counts = trainer.step().losses.counts_lE
        assert counts.sum(dim=1).tolist() == [2 * 8 * 16] * 2
        found.append((counts, biases_of(trainer.model)))
    assert torch.equal(found[0][0], found[1][0])
    torch.testing.assert_close(found[0][1], found[1][1], **CLOSE)


def test_pitfall_22_evaluation_leaks_into_the_next_update(texts, corpus):
    """torchtitan#4148: no_grad does not protect buffers, so validation tokens moved the next bias."""
    undisturbed, disturbed = (tiny_trainer(tiny_config(texts), corpus) for _ in range(2))
    validation = ValidationSet(corpus.validation, 16, 4)
    for _ in range(3):
        expected = undisturbed.step().losses.counts_lE
        before = biases_of(disturbed.model)
        evaluate(disturbed.model, validation, corpus.domains)
        assert torch.equal(biases_of(disturbed.model), before)
        assert torch.equal(disturbed.step().losses.counts_lE, expected)
    assert torch.equal(biases_of(disturbed.model), biases_of(undisturbed.model))


@pytest.mark.parametrize("explicit", [(1, 3), (0, 3), (2,)])
def test_pitfall_23_bias_of_layers_behind_a_dense_one_never_moves(texts, corpus, explicit):
    """torchtitan#3686, #3666, #4494: `return` instead of `continue` at the first dense layer, or a hook that
    was never registered, left the other layers' biases at 0."""
    model = dict(num_layers=4, pattern=LayerPatternConfig(explicit=explicit))
    trainer = tiny_trainer(tiny_config(texts, model=model), corpus)
    counts = trainer.step().losses.counts_lE
    biases = biases_of(trainer.model)
    assert counts.shape[0] == biases.shape[0] == len(explicit)
    assert (biases != 0).any(dim=1).all()
    torch.testing.assert_close(biases.sign(), (counts.double().mean(dim=1, keepdim=True) - counts).sign())


def test_pitfall_24_bias_updated_per_micro_batch(texts, corpus):
    """torchtitan#1506 and others: with accumulation the bias moved once per micro-batch, and drifted as a
    whole without recentring."""
    trainer = tiny_trainer(tiny_config(texts, train=dict(accumulation=4)), corpus)
    trainer.step()
    assert set(biases_of(trainer.model).abs().unique().tolist()) <= {0.0, 0.01}
    recentred = tiny_config(texts, balance=dict(bias_recentre=True), train=dict(accumulation=4))
    trainer = tiny_trainer(recentred, corpus)
    for _ in range(4):
        trainer.step()
        torch.testing.assert_close(biases_of(trainer.model).mean(dim=1), torch.zeros(2).double(), **CLOSE)
    assert biases_of(trainer.model).abs().max() > 0.01


def test_pitfall_26_router_gradient_not_summed_over_ranks(texts, monkeypatch):
    """torchtitan#1878, #2387, #4054; NeMo Automodel#1260: the router was left out of the reduction, so the
    replicas drifted apart."""
    monkeypatch.setattr("moeworks.parallel.world.dist.all_reduce", lambda tensor: tensor.mul_(2))
    _, local, model = step_of(tiny_config(texts, router=dict(router_bias=True)), [random_batch()])
    World(size=2).sum_gradients_(model.parameters())
    summed = gradients_of(model)
    assert any("router.weight" in name for name in summed)
    assert differing(summed, {name: 2 * grad for name, grad in local.items()}) == []


def test_pitfall_28_last_micro_batch_lost(texts):
    """DeepSpeed#7985: the gradient of the last micro-batch of a step was dropped; others weigh micro-batches
    of unequal size equally. The step's gradient is the sum of what each contributes."""
    config = tiny_config(texts, balance=NO_BALANCE)
    batches = split_rows(random_batch(), 4)
    sizes = [int(batch.valid_BL.sum()) for batch in batches]
    assert len(set(sizes)) == 4
    _, whole, _ = step_of(config, batches)
    parts = [step_of(config, [batch])[1] for batch in batches]
    for name, grad in whole.items():
        expected = sum(size * part[name] for size, part in zip(sizes, parts, strict=True)) / sum(sizes)
        torch.testing.assert_close(grad, expected, **CLOSE)
    last = parts[-1]["layers.0.mlp.router.weight"]
    assert last.abs().max() > 1e-6


def starved(config: RunConfig) -> tuple[dict[str, Tensor], Decoder]:
    """A step in which expert 2 of layer 0 gets no token."""
    model = build(config)
    model.get_buffer("layers.0.mlp.router.expert_bias")[2] = -1e6
    accumulate_gradients(model, [random_batch()], config, World())
    return gradients_of(model), model


def test_pitfall_29_expert_without_tokens(texts, monkeypatch):
    """DeepSpeed#4808, #4966, #5008, LlamaFactory#2315: ranks whose experts saw no token had no gradient to
    reduce, and the others waited for ever; pytorch#172439: garbage instead of 0."""
    messages: list[list[tuple[torch.dtype, int]]] = []

    def all_reduce(tensor: Tensor) -> None:
        """The other rank has a gradient for every parameter, which the first message says."""
        if not messages[-1]:
            tensor += 1
        messages[-1].append((tensor.dtype, tensor.numel()))

    monkeypatch.setattr("moeworks.parallel.world.dist.all_reduce", all_reduce)
    grads, model = starved(tiny_config(texts))
    for name in ("gate_up_proj", "down_proj"):
        grad = model.get_parameter(f"layers.0.mlp.experts.{name}").grad
        assert grad is not None
        assert torch.equal(grad[2], torch.zeros_like(grad[2]))
        assert (grads[f"layers.0.mlp.experts.{name}"][[0, 1, 3]] != 0).any()
    for drop in (False, True):
        if drop:
            for parameter in model.layers[0].mlp.experts.parameters():
                parameter.grad = None
        messages.append([])
        World(size=2).sum_gradients_(model.parameters())
        assert all(parameter.grad is not None for parameter in model.parameters())
    assert messages[0] == messages[1]


@pytest.mark.parametrize("precision", ["float64", "bfloat16"])
def test_pitfall_39_recomputation_routes_differently(texts, precision):
    """torchtitan#3146; NeMo Automodel#2635, #3140, #3325: noise or ties chose other experts in the recomputed
    forward pass, and gradients were silently wrong."""
    router = dict(noisy_top_k=True, input_jitter=0.3)
    found = []
    for checkpointing in (False, True):
        train = dict(activation_checkpointing=checkpointing, precision=precision)
        found.append(step_of(tiny_config(texts, router=router, train=train), [random_batch()])[:2])
    (plain, grads), (again, again_grads) = found
    assert torch.equal(plain.counts_lE, again.counts_lE)
    assert differing(grads, again_grads) == []


def trained_run(texts: Path, root: Path, **groups) -> tuple[RunDir, dict[str, Tensor]]:
    config = tiny_config(texts, **groups)
    run, trainer = RunDir(root), tiny_trainer(config, tiny_corpus(config))
    run.save_config(config)
    trainer.step()
    write_checkpoint(checkpoint_dir(run.checkpoints, 1), *trainer.state())
    return run, all_state(trainer)


def test_pitfall_40_experts_in_the_order_of_strings(texts, tmp_path):
    """torchtitan#1918: expert "10" came before expert "2" after loading; #3626: names dropped in silence."""
    run, state = trained_run(texts, tmp_path / "run", router=dict(num_experts=12))
    model = load(run.root)
    for layer in range(2):
        name = f"layers.{layer}.mlp.experts.down_proj"
        for expert in range(12):
            assert torch.equal(model.get_parameter(name)[expert], state[f"model/{name}"][expert])
    assert {f"model/{name}" for name in model.state_dict()} == {n for n in state if n.startswith("model/")}


def test_pitfall_41_experts_left_at_their_random_start(texts, tmp_path):
    """NeMo Automodel#2682, #2722 (loss 15 instead of 3), DeepSpeed#6589: loading succeeded and the experts
    kept their initial values. Every tensor is filled, or loading fails and names it."""
    run, state = trained_run(texts, tmp_path / "run")
    for seed in (1, 2):
        torch.manual_seed(seed)
        model = load(run.root)
        assert (
            differing(
                {f"model/{name}": value for name, value in model.state_dict().items()},
                {name: value for name, value in state.items() if name.startswith("model/")},
            )
            == []
        )
    path = checkpoint_dir(run.checkpoints, 1)
    whole = read_checkpoint(path)
    for name in whole.tensors["model"]:
        kept = {key: value for key, value in whole.tensors["model"].items() if key != name}
        write_checkpoint(path, {"model": kept}, whole.state)
        with pytest.raises(CheckpointError, match=f"{name} is missing"):
            load(run.root)
