"""Models from disk: all of them, or an error."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_run import all_state, tiny_config, tiny_corpus, tiny_trainer, write_texts

from moeworks.checkpoint import checkpoint_dir, read_checkpoint, write_checkpoint
from moeworks.errors import CheckpointError
from moeworks.models.decoder import moe_modules
from moeworks.pretrained import find_checkpoint, load
from moeworks.train.run_dir import RunDir
from moeworks.train.trainer import Trainer


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_texts(tmp_path_factory.mktemp("pretrained") / "texts")


def save_run(texts: Path, root: Path, **groups) -> tuple[RunDir, Trainer]:
    """A run of two steps with a checkpoint after each."""
    config = tiny_config(texts, **groups)
    run, trainer = RunDir(root), tiny_trainer(config, tiny_corpus(config))
    run.save_config(config)
    for step in (1, 2):
        trainer.step()
        write_checkpoint(checkpoint_dir(run.checkpoints, step), *trainer.state())
    return run, trainer


@pytest.fixture
def saved(texts, tmp_path):
    return save_run(texts, tmp_path / "run")


def last(run: RunDir) -> Path:
    return checkpoint_dir(run.checkpoints, 2)


def test_run_gives_its_latest_checkpoint_in_evaluation_mode(saved):
    run, trainer = saved
    model = load(run.root)
    assert not model.training
    assert model.config == trainer.config.model
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name


def test_a_checkpoint_by_its_own_path(saved):
    run, trainer = saved
    first = load(checkpoint_dir(run.checkpoints, 1))
    assert not torch.equal(first.embed.weight, trainer.model.embed.weight)
    assert torch.equal(load(str(last(run))).embed.weight, trainer.model.embed.weight)


def test_loaded_model_computes_what_the_trained_one_does(saved):
    run, trainer = saved
    tokens = torch.randint(264, (2, 9))
    with torch.no_grad():
        expected = trainer.model.eval()(tokens).logits_BLV
        assert torch.equal(load(run.root)(tokens).logits_BLV, expected)


@pytest.mark.parametrize(("precision", "dtype"), [("float64", torch.float64), ("bfloat16", torch.float32)])
def test_dtype_is_that_of_the_training(texts, tmp_path, precision, dtype):
    run, trainer = save_run(texts, tmp_path / "run", train=dict(precision=precision))
    model = load(run.root)
    assert {p.dtype for p in model.parameters()} == {dtype}
    for moe, trained in zip(moe_modules(model), moe_modules(trainer.model), strict=True):
        assert moe.router.expert_bias.dtype == dtype
        assert torch.equal(moe.router.expert_bias, trained.router.expert_bias)


def test_loading_leaves_the_files_alone(saved):
    run, _ = saved
    model = load(run.root)
    with torch.no_grad():
        model.embed.weight.zero_()
    assert load(run.root).embed.weight.abs().sum() > 0


# What cannot be loaded.


def test_neither_run_nor_checkpoint(tmp_path):
    with pytest.raises(CheckpointError, match=r"neither a run \(config.json\) nor a checkpoint"):
        find_checkpoint(tmp_path / "gone")


def test_run_without_a_checkpoint(texts, tmp_path):
    run = RunDir(tmp_path)
    run.save_config(tiny_config(texts))
    with pytest.raises(CheckpointError, match=rf"no checkpoint in {run.checkpoints}"):
        load(tmp_path)


@pytest.mark.parametrize("damage", ["truncated", "altered", "missing"])
@pytest.mark.parametrize("by", ["run", "checkpoint"])
def test_damaged_file_is_named(saved, damage, by):
    run, _ = saved
    path = last(run) / "model.safetensors"
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(content[:-1] if damage == "truncated" else content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(CheckpointError, match=r"model.safetensors (is|was) .*(truncated|altered|missing)"):
        load(run.root if by == "run" else last(run))


def without(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: t for name, t in tensors.items() if not name.endswith("layers.1.mlp.experts.down_proj")}


def renamed(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.replace("router.weight", "gate.weight"): t for name, t in tensors.items()}


def cut(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return tensors | {"layers.0.mlp.experts.down_proj": tensors["layers.0.mlp.experts.down_proj"][:3]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without, r"layers.1.mlp.experts.down_proj is missing"),
        (renamed, r"layers.0.mlp.gate.weight is unknown to the model"),
        (cut, r"layers.0.mlp.experts.down_proj has shape \(3, 16, 12\), the model wants \(4, 16, 12\)"),
    ],
)
def test_weights_of_another_model_leave_nothing_at_its_random_start(saved, change, message):
    run, _ = saved
    whole = read_checkpoint(last(run))
    tensors = {name: dict(named) for name, named in whole.tensors.items()}
    write_checkpoint(last(run), tensors | {"model": change(tensors["model"])}, whole.state)
    with pytest.raises(CheckpointError, match=message):
        load(run.root)


def test_weights_swapped_behind_the_manifest_are_noticed(saved):
    """The same names and shapes, and so the same size, with other values."""
    run, _ = saved
    path = last(run) / "model.safetensors"
    save_file({name: t + 1 for name, t in load_file(path).items()}, path, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"model.safetensors was altered: its checksum differs"):
        load(run.root)


def test_state_is_what_the_trainer_holds(saved):
    run, trainer = saved
    tensors = read_checkpoint(last(run)).tensors
    flat = {f"{file}/{name}": t for file, named in tensors.items() for name, t in named.items()}
    assert flat.keys() == all_state(trainer).keys()
