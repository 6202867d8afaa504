"""Two real processes against one: the same numbers, and nobody waits for ever."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_run import differing, tiny_config
from world_scenarios import (
    SCENARIOS,
    STEPS,
    SUMMED_PER_MICRO_BATCH,
    evaluation,
    outcome,
    scenario_config,
)

from moeworks.checkpoint import latest_checkpoint, read_checkpoint
from moeworks.errors import ConfigError
from moeworks.parallel.world import World, _buckets, join_world

CLOSE = dict(rtol=1e-9, atol=1e-9)


def of_rank(two_ranks: Path, name: str, rank: int = 0) -> dict[str, torch.Tensor]:
    return load_file(two_ranks / f"{name}-{rank}.safetensors")


def facts(two_ranks: Path) -> list[dict]:
    return [json.loads((two_ranks / f"facts-{rank}.json").read_text()) for rank in (0, 1)]


# Two processes are one.


@pytest.mark.parametrize("name", SCENARIOS)
def test_two_processes_train_as_one_does(two_ranks, texts, corpus, name):
    """Losses, balance losses, counts, biases, weights and optimizer state, on the same global batch."""
    accumulation = 2 if name in SUMMED_PER_MICRO_BATCH else 1
    config = scenario_config(name, texts, accumulation)
    alone = outcome(name, config, corpus, World())
    torch.testing.assert_close(of_rank(two_ranks, name), alone, **CLOSE)


@pytest.mark.parametrize("name", SCENARIOS)
def test_both_ranks_hold_the_same_bit_for_bit(two_ranks, name):
    assert differing(of_rank(two_ranks, name, 0), of_rank(two_ranks, name, 1)) == []


def test_every_loss_was_on(two_ranks):
    found = {key.split("/")[2] for key in of_rank(two_ranks, "every loss") if "/balance/" in key}
    assert found == {
        "global_batch", "sequence", "device", "communication", "entropy", "importance", "z",
    }  # fmt: skip


def test_expert_without_tokens_has_a_gradient_of_0(two_ranks):
    found = of_rank(two_ranks, "starved")
    for step in range(STEPS):
        assert (found[f"{step}/counts"][:, 0] == 0).all()
    gradients = found["gradient of experts"]
    assert torch.equal(gradients[:, 0], torch.zeros_like(gradients[:, 0]))
    assert (gradients != 0).any()


def test_evaluation_over_two_ranks_is_that_of_one(two_ranks, texts, corpus):
    alone = evaluation(tiny_config(texts), corpus, World())
    for rank in facts(two_ranks):
        shared = rank["evaluation"]
        assert shared["domain_experts"] == alone["domain_experts"]
        assert shared["record"]["bits_per_byte"] == pytest.approx(alone["record"]["bits_per_byte"], abs=1e-9)
        assert shared["record"]["loss"] == pytest.approx(alone["record"]["loss"], abs=1e-9)
        for name, figures in alone["record"]["domains"].items():
            assert shared["record"]["domains"][name] == pytest.approx(figures, abs=1e-9)


# What a world is.


def test_ranks_sums_and_flags(two_ranks):
    for rank, found in enumerate(facts(two_ranks)):
        assert (found["rank"], found["size"], found["is_main"]) == (rank, 2, rank == 0)
        assert found["sum"] == [3.0, 20.0]
        assert found["any"] == [False, True, True]


def test_a_signal_to_one_rank_stops_both(two_ranks):
    assert [found["stopped"] for found in facts(two_ranks)] == [{"finished": False, "step": 3}] * 2


def test_one_process_sums_nothing():
    world = World()
    tensor = torch.tensor([1.0, 2.0])
    assert world.sum_(tensor) is tensor
    assert (world.is_main, world.any(False), world.any(True)) == (True, False, True)
    weight = torch.nn.Parameter(torch.ones(2))
    world.sum_gradients_([weight])
    assert weight.grad is None
    world.wait()


def test_without_torchrun_the_world_is_one_process():
    with join_world("cpu") as world:
        assert (world.rank, world.size, world.device.type) == (0, 1, "cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_gpu_that_is_not_there():
    with (
        pytest.raises(ConfigError, match=r"train.device = 'cuda': torch finds no GPU here"),
        join_world("cuda"),
    ):
        pass
    with join_world("auto") as world:
        assert world.device.type == "cpu"


def test_buckets_keep_the_order_and_never_mix_dtypes(monkeypatch):
    monkeypatch.setattr("moeworks.parallel.world._BUCKET_ELEMENTS", 10)
    sizes = [
        (4, torch.float32),
        (5, torch.float32),
        (6, torch.float32),
        (30, torch.float32),
        (1, torch.float64),
    ]
    parameters = [torch.nn.Parameter(torch.zeros(n, dtype=dtype)) for n, dtype in sizes]
    buckets = list(_buckets(parameters))
    assert [[p.numel() for p in bucket] for bucket in buckets] == [[4, 5], [6], [30], [1]]
    assert [p for bucket in buckets for p in bucket] == parameters
    assert list(_buckets([])) == []


# The command.


def test_torchrun_trains_end_to_end_into_one_folder(torchrun, texts, tmp_path):
    fields = ["--data", str(texts), "--corpus.cache-dir", str(texts.parent / "cache"), "--train.steps", "4"]
    done = torchrun("-m", "moeworks", "train", "smoke", *fields, "--out", str(tmp_path), "--name", "pair")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("bits per byte on validation text") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["pair"]
    run = tmp_path / "pair"
    assert {"config.json", "tokenizer.json", "metrics.jsonl", "summary.json", "report.html"} <= {
        path.name for path in run.iterdir()
    }
    assert read_checkpoint(latest_checkpoint(run / "checkpoints")).state["processes"] == 2
    assert json.loads((run / "summary.json").read_text())["machine"]["processes"] == 2
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 1, 2, 2, 3, 3, 4, 4, 4]


def test_torchrun_says_what_is_wrong_once_and_leaves_nothing(torchrun, texts, tmp_path):
    fields = [
        "--data",
        str(texts),
        "--corpus.cache-dir",
        str(texts.parent / "cache"),
        "--train.batch-size",
        "3",
    ]
    done = torchrun("-m", "moeworks", "train", "smoke", *fields, "--out", str(tmp_path), "--name", "pair")
    assert done.returncode != 0
    message = "moeworks: error: train.batch_size = 3: must be a multiple of accumulation * processes = 2"
    assert done.stderr.count(message) == 1
    assert list(tmp_path.iterdir()) == []
