"""The loop: what is written when, and the ways out of it."""

import json
import os
import signal
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import all_state, differing, tiny_config, tiny_trainer

from moeworks.checkpoint import list_checkpoints, read_checkpoint, step_of
from moeworks.config import AlarmConfig, BanditChoice, LayerPatternConfig, RunConfig
from moeworks.data.shards import PreparedCorpus
from moeworks.data.validation import ValidationSet
from moeworks.errors import TrainingError
from moeworks.evaluate.bits_per_byte import evaluate
from moeworks.train.loop import Callbacks, Interval, train
from moeworks.train.metrics import MetricsSink
from moeworks.train.run_dir import RunDir
from moeworks.train.trainer import Trainer

TIMINGS = ("seconds", "tokens_per_second")
Hook = Callable[[Trainer], object]


def callbacks(
    corpus: PreparedCorpus, *, figures: list[float] | None = None, on_step: Hook | None = None
) -> Callbacks:
    """Real validation, or the bits per byte in `figures` one after the other."""
    validation = ValidationSet(corpus.validation, 16, 4, 200)

    def evaluated(model: torch.nn.Module) -> dict[str, Any]:
        if figures is not None:
            return {"loss": 1.0, "bits_per_byte": figures.pop(0), "domains": {}}
        return evaluate(model, validation, corpus.domains).record()

    return Callbacks(
        evaluate=evaluated,
        on_step=lambda trainer, step: on_step and on_step(trainer),
        on_record=lambda record: None,
    )


def run_loop(config: RunConfig, corpus: PreparedCorpus, root: Path, **options: Any) -> tuple[Trainer, bool]:
    """Train in `root`, from its latest checkpoint if there is one."""
    run, trainer = RunDir(root), tiny_trainer(config, corpus)
    run.save_config(config)
    if found := list_checkpoints(run.checkpoints):
        trainer.restore(read_checkpoint(found[-1]))
    sink = MetricsSink(run.metrics, [], keep_bytes=trainer.progress.metrics_bytes)
    try:
        return trainer, train(trainer, run, sink, callbacks(corpus, **options))
    finally:
        sink.close()


def records(root: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (root / "metrics.jsonl").read_text().splitlines()]


def untimed(root: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in record.items() if k not in TIMINGS} for record in records(root)]


def kinds(root: Path) -> list[tuple[str, int]]:
    return [(record["kind"], record["step"]) for record in records(root)]


def steps_kept(root: Path) -> list[int]:
    return [step_of(path) for path in list_checkpoints(root / "checkpoints")]


def all_counts(root: Path) -> torch.Tensor:
    return sum(torch.tensor(r["tokens_per_expert"]) for r in records(root) if r["kind"] == "routing")


def stop_with(number: int, step: int) -> Hook:
    return lambda trainer: trainer.progress.step == step and os.kill(os.getpid(), number)


# What is written.


def test_lines_of_metrics(texts, corpus, tmp_path):
    """Every 2 steps a line, every 3 a validation; each interval ends with what comes with it."""
    trainer, finished = run_loop(tiny_config(texts), corpus, tmp_path)
    assert finished and trainer.progress.step == 6
    assert kinds(tmp_path) == [
        ("train", 2), ("routing", 2), ("train", 3), ("routing", 3), ("eval", 3),
        ("train", 4), ("routing", 4), ("train", 6), ("routing", 6), ("eval", 6),
    ]  # fmt: skip


def test_fields_of_a_line_and_the_sums_in_it(texts, corpus, tmp_path):
    run_loop(tiny_config(texts), corpus, tmp_path)
    train_line, routing = records(tmp_path)[:2]
    assert set(train_line) == {
        "kind", "step", "seconds", "tokens", "loss", "learning_rate", "grad_norm", "tokens_per_second",
        "balance", "max_vio", "dead_experts", "load_entropy", "dropped",
    }  # fmt: skip
    assert set(train_line["balance"]) == {"global_batch", "sequence", "z"}
    assert train_line["tokens"] == 2 * 8 * 16
    assert [sum(row) for row in routing["tokens_per_expert"]] == [2 * 8 * 16 * 2] * 2
    share = torch.tensor(routing["tokens_per_expert"]) / (2 * 8 * 16 * 2)
    entropy = -(share * share.log()).sum(dim=1) / torch.tensor(4.0).log()
    assert train_line["load_entropy"] == pytest.approx(entropy.tolist(), abs=1e-5)


def test_loss_and_max_vio_of_a_line_are_means_over_its_steps(texts, corpus, tmp_path):
    run_loop(tiny_config(texts), corpus, tmp_path)
    trainer = tiny_trainer(tiny_config(texts), corpus)
    losses = [trainer.step().losses for _ in range(2)]
    line = records(tmp_path)[0]
    assert line["loss"] == pytest.approx(sum(float(x.loss) for x in losses) / 2, abs=1e-12)
    worst = [x.counts_lE.amax(dim=1) / (8 * 16 * 2 / 4) - 1 for x in losses]
    assert line["max_vio"] == pytest.approx(((worst[0] + worst[1]) / 2).tolist(), abs=1e-6)


def test_dense_run_writes_no_routing(texts, corpus, tmp_path):
    config = tiny_config(
        texts,
        model=dict(pattern=LayerPatternConfig(explicit=())),
        router=dict(selection_bias=False),
        balance=dict(bias_rule="none"),
    )
    run_loop(config, corpus, tmp_path)
    assert {kind for kind, _ in kinds(tmp_path)} == {"train", "eval"}
    assert records(tmp_path)[0]["max_vio"] == records(tmp_path)[0]["dropped"] == []


def test_without_a_sink_nothing_is_written(texts, corpus, tmp_path):
    """As on the ranks beside the main one."""
    trainer = tiny_trainer(tiny_config(texts), corpus)
    assert train(trainer, RunDir(tmp_path), None, callbacks(corpus))
    assert list(tmp_path.iterdir()) == []


# Checkpoints.


def test_the_newest_checkpoints_and_the_best_stay(texts, corpus, tmp_path):
    config = tiny_config(
        texts, train=dict(steps=12, checkpoint_every=1, eval_every=2, keep_last=2, log_every=100)
    )
    trainer, _ = run_loop(config, corpus, tmp_path, figures=[5.0, 2.0, 3.0, 4.0, 2.5, 4.5])
    assert steps_kept(tmp_path) == [4, 11, 12]
    assert (trainer.progress.best_step, trainer.progress.best_bits_per_byte) == (4, 2.0)


def test_a_better_validation_is_saved_at_once(texts, corpus, tmp_path):
    config = tiny_config(texts, train=dict(steps=9, checkpoint_every=100, eval_every=2, keep_last=1))
    run_loop(config, corpus, tmp_path, figures=[5.0, 2.0, 3.0, 4.0, 4.5])
    assert steps_kept(tmp_path) == [4, 9]


@pytest.mark.parametrize("figure", [float("nan"), float("inf")])
def test_validation_that_is_not_finite_is_never_the_best(texts, corpus, tmp_path, figure):
    config = tiny_config(texts, train=dict(steps=4, eval_every=1, checkpoint_every=100))
    trainer, _ = run_loop(config, corpus, tmp_path, figures=[figure, 3.0, figure, 4.0])
    assert trainer.progress.best_step == 2


# Stopping and going on.


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signal_saves_and_leaves(texts, corpus, tmp_path, number):
    before = signal.getsignal(number)
    trainer, finished = run_loop(tiny_config(texts), corpus, tmp_path, on_step=stop_with(number, 3))
    assert not finished
    assert trainer.progress.step == 3
    assert steps_kept(tmp_path)[-1] == 3
    assert signal.getsignal(number) is before


def test_an_ignored_signal_stays_ignored(texts, corpus, tmp_path):
    """As nohup and jobs in the background have it."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        _, finished = run_loop(tiny_config(texts), corpus, tmp_path, on_step=stop_with(signal.SIGHUP, 3))
        assert finished
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_thread_trains_without_touching_signals(texts, corpus, tmp_path):
    with ThreadPoolExecutor(1) as pool:
        _, finished = pool.submit(run_loop, tiny_config(texts), corpus, tmp_path).result()
    assert finished


def test_signal_in_the_last_step_is_no_interruption(texts, corpus, tmp_path):
    _, finished = run_loop(tiny_config(texts), corpus, tmp_path, on_step=stop_with(signal.SIGTERM, 6))
    assert finished
    assert kinds(tmp_path)[-1] == ("eval", 6)


def test_second_interrupt_does_not_wait(texts, corpus, tmp_path):
    def twice(trainer: Trainer) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        run_loop(tiny_config(texts), corpus, tmp_path, on_step=twice)
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("stop", [1, 2, 3, 5])
def test_stopped_run_goes_on_as_if_it_had_not_stopped(texts, corpus, tmp_path, stop):
    """All state, and the lines of metrics but for their timings, are those of an uninterrupted run."""
    config = tiny_config(texts, router=dict(noisy_top_k=True, input_jitter=0.1))
    whole, _ = run_loop(config, corpus, tmp_path / "whole")
    run_loop(config, corpus, tmp_path / "cut", on_step=stop_with(signal.SIGTERM, stop))
    resumed, finished = run_loop(config, corpus, tmp_path / "cut")
    assert finished
    assert differing(all_state(resumed), all_state(whole)) == []
    assert resumed.progress.best_bits_per_byte == whole.progress.best_bits_per_byte
    assert untimed(tmp_path / "cut") == untimed(tmp_path / "whole")


def test_alarms_count_the_lines_of_an_uninterrupted_run(texts, corpus, tmp_path):
    """An alarm waits for a number of lines: a stop must not add one."""
    config = tiny_config(
        texts,
        train=dict(steps=12, log_every=4, checkpoint_every=12, eval_every=12),
        alarms=AlarmConfig(grace_steps=0, logit_size=1e-6, patience=2),
    )
    run_loop(config, corpus, tmp_path / "whole")
    for stop in (1, 3, 6):
        run_loop(config, corpus, tmp_path / "cut", on_step=stop_with(signal.SIGTERM, stop))
    run_loop(config, corpus, tmp_path / "cut")
    alarms = [r["step"] for r in untimed(tmp_path / "cut") if r["kind"] == "alarm"]
    assert alarms == [8]
    assert untimed(tmp_path / "cut") == untimed(tmp_path / "whole")


def test_an_interval_comes_back_from_json_exactly(texts, corpus):
    config = tiny_config(texts)
    trainer, interval = tiny_trainer(config, corpus), Interval()
    for _ in range(2):
        step = trainer.step()
        interval.add(step, 0.25, config)
    again = Interval(json.loads(json.dumps(interval.to_json())))
    assert again.records(trainer, step.learning_rate) == interval.records(trainer, step.learning_rate)


def test_an_interval_keeps_no_statistics_of_routers(texts, corpus):
    """A bandit's are two numbers per token and expert, layer and step."""
    config = tiny_config(
        texts,
        router=dict(selection_bias=False, choice=BanditChoice(buckets=40)),
        balance=dict(global_batch_coef=0.0, sequence_coef=0.0, z_coef=0.0, bias_rule="none"),
    )
    trainer, interval = tiny_trainer(config, corpus), Interval()
    step = trainer.step()
    assert step.losses.statistics
    kept = [weakref.ref(value) for sums in step.losses.statistics for value in sums.values()]
    interval.add(step, 1.0, config)
    del step
    assert all(reference() is None for reference in kept)


def test_lines_after_the_checkpoint_are_written_again_and_not_twice(texts, corpus, tmp_path):
    """Killed after step 3, whose line is on disk: the run goes on from the checkpoint of step 2."""

    class Killed(BaseException):
        pass

    def kill(trainer: Trainer) -> None:
        if trainer.progress.step == 4:
            raise Killed

    config = tiny_config(texts, train=dict(eval_every=6, checkpoint_every=2, log_every=1))
    with pytest.raises(Killed):
        run_loop(config, corpus, tmp_path / "cut", on_step=kill)
    assert steps_kept(tmp_path / "cut") == [2]
    assert ("train", 3) in kinds(tmp_path / "cut")
    run_loop(config, corpus, tmp_path / "cut")
    run_loop(config, corpus, tmp_path / "whole")
    assert untimed(tmp_path / "cut") == untimed(tmp_path / "whole")


def test_resumed_finished_run_takes_no_step(texts, corpus, tmp_path):
    run_loop(tiny_config(texts), corpus, tmp_path)
    lines = (tmp_path / "metrics.jsonl").read_bytes()
    _, finished = run_loop(
        tiny_config(texts), corpus, tmp_path, on_step=lambda trainer: pytest.fail("a step")
    )
    assert finished
    assert (tmp_path / "metrics.jsonl").read_bytes() == lines


# What is not finite.


def spoil_after(step: int) -> Hook:
    def spoil(trainer: Trainer) -> None:
        if trainer.progress.step == step:
            trainer.model.get_parameter("layers.1.mlp.experts.down_proj").data.fill_(torch.nan)

    return spoil


def test_nan_names_the_step_the_module_and_the_last_good_checkpoint(texts, corpus, tmp_path):
    with pytest.raises(TrainingError) as caught:
        run_loop(tiny_config(texts), corpus, tmp_path, on_step=spoil_after(4), figures=[3.0])
    good = tmp_path / "checkpoints" / "step-00000004"
    assert str(caught.value) == (
        "step 5 (loss nan): the output of layers.1.mlp.experts is not finite;"
        f" the last good checkpoint is {good}"
    )


def test_nan_before_the_first_checkpoint(texts, corpus, tmp_path):
    with pytest.raises(TrainingError, match="no checkpoint was written yet"):
        run_loop(tiny_config(texts), corpus, tmp_path, on_step=spoil_after(1))
