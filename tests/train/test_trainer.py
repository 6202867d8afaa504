"""A run step by step: what a step changes, and that a restored run goes on exactly."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_run import all_state, biases_of, differing, tiny_config, tiny_corpus, tiny_trainer, write_texts

from moeworks.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from moeworks.config import RunConfig
from moeworks.config.codec import to_dict
from moeworks.data.validation import ValidationSet
from moeworks.errors import CheckpointError, ConfigError, DataError, TrainingError
from moeworks.evaluate.bits_per_byte import evaluate
from moeworks.models.decoder import moe_modules
from moeworks.parallel.world import World
from moeworks.train.schedule import lr_scale
from moeworks.train.trainer import Trainer


def take(trainer: Trainer, steps: int) -> Trainer:
    for _ in range(steps):
        trainer.step()
    return trainer


def saved(trainer: Trainer, folder: Path) -> Checkpoint:
    return read_checkpoint(write_checkpoint(folder / "step-00000001", *trainer.state()))


# One step.


def test_progress_and_learning_rate_follow_the_steps(texts, corpus):
    config = tiny_config(texts)
    trainer = tiny_trainer(config, corpus)
    rates = [trainer.step().learning_rate for _ in range(6)]
    assert rates == [lr_scale(i, 6, config.optimizer) * config.optimizer.lr for i in range(6)]
    assert (trainer.progress.step, trainer.progress.tokens) == (6, 6 * 8 * 16)


def test_same_seed_same_run_and_other_seed_other_run(texts, corpus):
    states = [
        all_state(take(tiny_trainer(tiny_config(texts, train=dict(seed=seed)), corpus), 2))
        for seed in (3, 3, -4)
    ]
    assert differing(states[0], states[1]) == []
    assert "model/embed.weight" in differing(states[0], states[2])


def test_loss_falls(texts, corpus):
    trainer = tiny_trainer(tiny_config(texts, train=dict(steps=40)), corpus)
    losses = [float(trainer.step().losses.loss) for _ in range(40)]
    assert losses[0] == pytest.approx(torch.log(torch.tensor(264.0)).item(), rel=0.05)
    assert losses[-1] < losses[0] - 1


@pytest.mark.parametrize("accumulation", [1, 2, 4])
def test_training_does_not_depend_on_accumulation(texts, corpus, accumulation):
    config = tiny_config(texts, train=dict(accumulation=accumulation, activation_checkpointing=True))
    got, want = (all_state(take(tiny_trainer(c, corpus), 4)) for c in (config, tiny_config(texts)))
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("accumulation", [1, 4])
def test_bias_moves_once_per_optimizer_step(texts, corpus, accumulation):
    trainer = tiny_trainer(tiny_config(texts, train=dict(accumulation=accumulation)), corpus)
    before = biases_of(trainer.model)
    counts = trainer.step().losses.counts_lE
    assert counts.sum(dim=1).tolist() == [8 * 16 * 2] * 2
    mean = counts.double().mean(dim=1, keepdim=True)
    torch.testing.assert_close(biases_of(trainer.model) - before, 0.01 * (mean - counts).sign())


def test_gradients_are_clipped_but_the_norm_is_reported_before(texts, corpus):
    plain, clipped = (
        tiny_trainer(tiny_config(texts, optimizer=dict(clip_norm=norm)), corpus) for norm in (0.0, 0.01)
    )
    norms = [float(trainer.step().grad_norm) for trainer in (plain, clipped)]
    assert norms[0] == norms[1] > 0.01
    # After one step the first moment is 1 - beta1 = 0.1 of the gradient that the optimizer has seen.
    adamw = tiny_trainer(tiny_config(texts, optimizer=dict(name="adamw", clip_norm=0.01, beta1=0.9)), corpus)
    adamw.step()
    moments = [v for k, v in adamw.optimizers.state_tensors().items() if k.endswith("/exp_avg")]
    assert float(torch.cat([m.flatten() for m in moments]).norm()) == pytest.approx(0.001, rel=1e-3)


def test_evaluation_changes_no_training_state(texts, corpus):
    config = tiny_config(texts, router=dict(noisy_top_k=True, input_jitter=0.1))
    undisturbed, disturbed = tiny_trainer(config, corpus), tiny_trainer(config, corpus)
    validation = ValidationSet(corpus.validation, 16, 4)
    take(undisturbed, 3)
    for _ in range(3):
        before = all_state(disturbed)
        evaluate(disturbed.model, validation, corpus.domains)
        assert differing(all_state(disturbed), before) == []
        assert disturbed.model.training
        disturbed.step()
    assert differing(all_state(disturbed), all_state(undisturbed)) == []


# What a trainer refuses.


def test_batch_must_divide_by_accumulation_and_processes(texts, corpus):
    config = tiny_config(texts, train=dict(batch_size=8, accumulation=2))
    with pytest.raises(ConfigError, match=r"train.batch_size = 8: .*accumulation \* processes = 6"):
        Trainer(config, corpus, World(rank=0, size=3))


def test_corpus_shorter_than_a_sequence(texts, corpus):
    config = tiny_config(texts, model=dict(max_seq_len=50_000), train=dict(seq_len=50_000))
    with pytest.raises(DataError, match=r"train.seq_len = 50000"):
        tiny_trainer(config, corpus)


# Restoring.

VARIANTS: dict[str, dict] = {
    "plain": {},
    "noise": dict(router=dict(noisy_top_k=True, input_jitter=0.2), train=dict(accumulation=2)),
    "adamw": dict(optimizer=dict(name="adamw"), train=dict(precision="float32")),
    "bfloat16": dict(train=dict(precision="bfloat16", activation_checkpointing=True)),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_restored_run_goes_on_bit_for_bit(texts, corpus, tmp_path, variant):
    config = tiny_config(texts, **{name: dict(group) for name, group in VARIANTS[variant].items()})
    whole = take(tiny_trainer(config, corpus), 5)
    checkpoint = saved(take(tiny_trainer(config, corpus), 2), tmp_path)
    resumed = tiny_trainer(config, corpus)
    torch.rand(7)  # whatever the process has drawn before
    resumed.restore(checkpoint)
    take(resumed, 3)
    assert differing(all_state(resumed), all_state(whole)) == []
    assert resumed.progress == whole.progress


def test_restored_run_crosses_an_epoch_exactly(texts, corpus, tmp_path):
    config = tiny_config(texts, train=dict(seq_len=64, steps=30))
    whole = tiny_trainer(config, corpus)
    epoch = whole.loader.samples_per_epoch // config.train.batch_size
    assert epoch * config.train.batch_size < whole.loader.samples_per_epoch  # a batch spans the boundary
    take(whole, epoch + 3)
    checkpoint = saved(take(tiny_trainer(config, corpus), epoch - 1), tmp_path)
    resumed = tiny_trainer(config, corpus)
    resumed.restore(checkpoint)
    take(resumed, 4)
    assert differing(all_state(resumed), all_state(whole)) == []


def test_checkpoint_holds_weights_biases_optimizer_position_and_config(texts, corpus, tmp_path):
    config = tiny_config(texts)
    trainer = take(tiny_trainer(config, corpus), 2)
    checkpoint = saved(trainer, tmp_path)
    assert checkpoint.state["config"] == to_dict(config)
    assert checkpoint.state["progress"] == vars(trainer.progress)
    assert checkpoint.state["corpus"] == corpus.fingerprint
    biases = [n for n in checkpoint.tensors["model"] if n.endswith("expert_bias")]
    assert len(biases) == 2
    trained = {name for name, _ in trainer.model.named_parameters()}
    assert trained <= checkpoint.tensors["model"].keys()
    with_state = {name.split("/")[1] for name in checkpoint.tensors["optimizer"]}
    assert with_state == trained


def test_restored_bias_keeps_its_precision(texts, corpus, tmp_path):
    config = tiny_config(texts, train=dict(precision="bfloat16"))
    trainer = tiny_trainer(config, corpus)
    for moe in moe_modules(trainer.model):
        moe.router.expert_bias.copy_(torch.tensor([1.0, 1.0 + 2**-20, 2**-30, 0.1]))
    resumed = tiny_trainer(config, corpus)
    resumed.restore(saved(trainer, tmp_path))
    assert biases_of(resumed.model).dtype == torch.float32
    assert torch.equal(biases_of(resumed.model), biases_of(trainer.model))


def test_checkpoint_of_another_corpus(texts, corpus, tmp_path):
    checkpoint = saved(tiny_trainer(tiny_config(texts), corpus), tmp_path)
    config = tiny_config(write_texts(tmp_path / "other", documents=20))
    with pytest.raises(CheckpointError, match=r"another corpus .* the files in .*other have changed"):
        tiny_trainer(config, tiny_corpus(config)).restore(checkpoint)


def other_width(config: RunConfig) -> RunConfig:
    return replace(config, model=replace(config.model, d_model=8))


def other_optimizer(config: RunConfig) -> RunConfig:
    return replace(config, optimizer=replace(config.optimizer, name="adamw"))


@pytest.mark.parametrize(
    ("change", "message"),
    [(other_width, "a checkpoint of another config: .*has shape"), (other_optimizer, "another model or opt")],
)
def test_checkpoint_of_another_config(texts, corpus, tmp_path, change, message):
    config = tiny_config(texts)
    checkpoint = saved(tiny_trainer(config, corpus), tmp_path)
    with pytest.raises(CheckpointError, match=message):
        tiny_trainer(change(config), corpus).restore(checkpoint)


def with_progress(checkpoint, change):
    state = json.loads(json.dumps(checkpoint.state))
    change(state)
    return replace(checkpoint, state=state)


def test_checkpoint_of_another_version(texts, corpus, tmp_path):
    config = tiny_config(texts)
    trainer = tiny_trainer(config, corpus)
    trainer.step()
    checkpoint = saved(trainer, tmp_path)
    earlier = with_progress(checkpoint, lambda state: state["progress"].pop("alarms"))
    resumed = tiny_trainer(config, corpus)
    resumed.restore(earlier)
    assert resumed.progress.step == 1 and resumed.progress.alarms == {}
    for change, message in [
        (lambda state: state["progress"].update(epochs=3), r"progress\.epochs: unknown field.*newer version"),
        (lambda state: state["progress"].update(step="1"), r"progress\.step = '1': must be int"),
        (lambda state: state.pop("progress"), "holds no progress"),
        (lambda state: state.pop("corpus"), "holds no corpus"),
    ]:
        with pytest.raises(CheckpointError, match=message):
            resumed.restore(with_progress(checkpoint, change))


# What is not finite.


@pytest.mark.parametrize(
    ("parameter", "module"),
    [
        ("embed.weight", "embed"),
        ("layers.0.attention.k_proj.weight", "layers.0.attention.k_proj"),
        ("layers.1.mlp.router.weight", "layers.1.mlp.router"),
        ("layers.1.mlp.experts.down_proj", "layers.1.mlp.experts"),
        ("final_norm.weight", "final_norm"),
    ],
)
def test_nan_in_the_weights_names_the_module(texts, corpus, parameter, module):
    trainer = take(tiny_trainer(tiny_config(texts), corpus), 1)
    trainer.model.get_parameter(parameter).data.fill_(torch.nan)
    with pytest.raises(TrainingError, match=rf"^step 2 \(loss nan\): the output of {module} is not finite$"):
        trainer.step()


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_gradient_that_is_not_finite_names_the_parameter_and_spares_the_weights(texts, corpus, value):
    """Clipping spreads one NaN over all gradients: the name must be that of the culprit."""
    trainer = take(tiny_trainer(tiny_config(texts), corpus), 1)
    culprit = trainer.model.get_parameter("layers.1.attention.o_proj.weight")
    culprit.register_hook(lambda grad: torch.full_like(grad, value))
    before = all_state(trainer)
    with pytest.raises(TrainingError, match=r"gradient of layers.1.attention.o_proj.weight is not finite$"):
        trainer.step()
    assert differing(all_state(trainer), before) == []
    assert trainer.progress.step == 1


def test_norm_that_overflows(texts, corpus):
    trainer = tiny_trainer(tiny_config(texts, train=dict(precision="float32")), corpus)
    trainer.model.embed.weight.register_hook(lambda grad: torch.full_like(grad, 1e38))
    with pytest.raises(TrainingError, match=r"the gradient norm is not finite$"):
        trainer.step()
