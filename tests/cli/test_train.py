"""`moeworks train` end to end, in this process, on a few kilobytes of text."""

import json
import os
import signal
from pathlib import Path

import pytest
import torch

from moeworks.checkpoint import latest_checkpoint, list_checkpoints, read_checkpoint, step_of
from moeworks.cli.main import main
from moeworks.cli.progress import TrainingDisplay
from moeworks.config.count import count_parameters
from moeworks.config.presets import preset
from moeworks.data.tokenizer import load_tokenizer
from moeworks.files import locked
from moeworks.ops.native.library import Library, library
from moeworks.pretrained import load
from moeworks.train.run_dir import RunDir

TIMINGS = ("seconds", "tokens_per_second")


def records(run: Path) -> list[dict]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in TIMINGS} for line in lines]


def summary(run: Path) -> dict:
    return json.loads((run / "summary.json").read_text())


def assert_same_end(run: Path, other: Path) -> None:
    """Both ended with the same weights and optimizer state, bit for bit, and the same validation."""
    ends = [read_checkpoint(latest_checkpoint(folder / "checkpoints")).tensors for folder in (run, other)]
    for file, tensors in ends[0].items():
        assert tensors.keys() == ends[1][file].keys()
        for name, value in tensors.items():
            assert torch.equal(value, ends[1][file][name]), name
    evals = [summary(folder)["eval"] for folder in (run, other)]
    assert evals[0]["bits_per_byte"] == evals[1]["bits_per_byte"]
    assert summary(run)["sample"] == summary(other)["sample"]


# A whole run.


def test_run_leaves_its_files(finished):
    names = {path.name for path in finished.iterdir()}
    assert names == {
        "config.json", "tokenizer.json", "metrics.jsonl", "checkpoints", "summary.json", "report.html",
    }  # fmt: skip
    assert [step_of(path) for path in list_checkpoints(finished / "checkpoints")] == [6, 12]
    assert {record["kind"] for record in records(finished)} == {"train", "routing", "eval"}


def test_summary_says_what_the_run_ended_with(finished):
    found = summary(finished)
    assert (found["name"], found["steps"], found["tokens"]) == ("first", 12, 12 * 4 * 64)
    assert set(found["eval"]["domains"]) == set(found["domain_tokens_per_expert"])
    assert 0 < found["eval"]["bits_per_byte"] < 8.5
    assert found["sample"]["prompt"] == "def "
    counts = count_parameters(preset("smoke").model)
    assert found["parameters"] == {"total": counts.total, "active": counts.active}
    assert found["machine"]["processes"] == 1


def test_report_shows_the_run(finished):
    page = (finished / "report.html").read_text()
    assert "first" in page
    assert page.startswith("<!") and page.rstrip().endswith("</html>")


def test_terminal_shows_loss_speed_balance_validation_and_where_the_report_lies(fields, tmp_path, capsys):
    steps = ["--train.steps", "2", "--train.eval-every", "1"]
    assert main(["train", "smoke", *fields, *steps, "--out", str(tmp_path), "--name", "run"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "step 1/2  loss 5." in out
    for word in ("tok/s", "MaxVio", "dead", "left", "step 1: validation", "bits per byte on validation text"):
        assert word in out, word
    assert f"report: {tmp_path / 'run' / 'report.html'}" in out


def test_fields_override_the_preset(fields, tmp_path):
    options = ["--model.router.top-k", "3", "--train.steps", "1", "--model.router.selection-bias"]
    assert main(["train", "smoke", *fields, *options, "--out", str(tmp_path), "--name", "run"]) == 0
    config = RunDir(tmp_path / "run").load_config()
    assert (config.model.router.top_k, config.train.steps, config.model.router.selection_bias) == (3, 1, True)
    assert summary(tmp_path / "run")["top_k"] == 3


def test_name_and_place_by_default(fields, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "smoke", *fields, "--train.steps", "1"]) == 0
    (run,) = (tmp_path / "runs").iterdir()
    assert run.name.startswith("smoke-2")


def test_dense_twin_has_the_same_active_width_and_no_experts(finished, fields, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "smoke", *fields, "--dense-twin", "--train.steps", "2"]) == 0
    (run,) = (tmp_path / "runs").iterdir()
    assert run.name.startswith("smoke-dense-2")
    found, moe = summary(run), summary(finished)
    assert (found["moe_layers"], found["domain_tokens_per_expert"]) == ([], {})
    assert found["parameters"]["total"] == found["parameters"]["active"]
    router = 4 * 32 * 2  # the twin has none
    assert found["parameters"]["active"] == moe["parameters"]["active"] - router
    assert {record["kind"] for record in records(run)} == {"train", "eval"}
    assert "MaxVio" not in capsys.readouterr().out
    assert (run / "report.html").is_file()


def test_a_tokenizer_of_the_corpus_goes_with_the_run(fields, tmp_path):
    options = ["--corpus.tokenizer", "bpe", "--model.vocab-size", "280", "--train.steps", "1"]
    assert main(["train", "smoke", *fields, *options, "--out", str(tmp_path), "--name", "run"]) == 0
    tokenizer = load_tokenizer(tmp_path / "run" / "tokenizer.json")
    assert tokenizer.decode(tokenizer.encode("make line 3\n")) == "make line 3\n"
    assert tokenizer.vocab_size == load(tmp_path / "run").config.vocab_size == 280


# Going on.


def test_resume_takes_the_same_steps(halfway, finished, capsys):
    assert main(["train", "--resume", str(halfway)]) == 0
    assert f"resuming {halfway / 'checkpoints' / 'step-00000006'}" in capsys.readouterr().out
    assert_same_end(halfway, finished)
    assert records(halfway) == records(finished)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_stopped_run_says_how_to_go_on_and_does(finished, fields, tmp_path, monkeypatch, capsys, number):
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(TrainingDisplay, "step", lambda self, step: step == 8 and os.kill(os.getpid(), number))
        code = main(["train", "smoke", *fields, "--out", str(tmp_path), "--name", "run"])
    assert code == 128 + number
    assert (
        f"stopped at step 8; saved. Continue with: moeworks train --resume {run}" in capsys.readouterr().out
    )
    assert not (run / "summary.json").exists()
    assert (run / "report.html").is_file()
    assert main(["train", "--resume", str(run)]) == 0
    assert_same_end(run, finished)
    assert records(run) == records(finished)


def test_run_killed_before_its_first_checkpoint_starts_over(halfway, finished, capsys):
    (halfway / "tokenizer.json").unlink()
    for path in list_checkpoints(halfway / "checkpoints"):
        for file in path.iterdir():
            file.unlink()
        path.rmdir()
    assert main(["train", "--resume", str(halfway)]) == 0
    assert "no checkpoint yet: starting from step 0" in capsys.readouterr().out
    assert_same_end(halfway, finished)
    assert records(halfway) == records(finished)


def test_run_killed_before_its_summary_gets_one(copied, finished):
    for name in ("summary.json", "report.html"):
        (copied / name).unlink()
    assert main(["train", "--resume", str(copied)]) == 0
    assert summary(copied)["eval"] == summary(finished)["eval"]
    assert_same_end(copied, finished)
    assert (copied / "report.html").is_file()
    assert records(copied) == records(finished)


def test_interrupt_while_the_corpus_is_prepared_leaves_nothing(fields, tmp_path, monkeypatch):
    def interrupted(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("moeworks.cli.training.prepare", interrupted)
    assert main(["train", "smoke", *fields, "--out", str(tmp_path), "--name", "run"]) == 130
    assert list(tmp_path.iterdir()) == []


def test_it_says_what_computes_the_experts(fields, capsys, tmp_path):
    arguments = ["train", "smoke", *fields, "--out", str(tmp_path), "--name", "r", "--train.steps", "1"]
    assert main(arguments) == 0
    native = isinstance(library(), Library)
    expected = "native: on the CPU" if native else "sorted: native refuses: moeworks was"
    assert f"experts by {expected}" in capsys.readouterr().out


# A finished run that is extended.

CONSTANT = ["--optimizer.schedule", "constant"]


@pytest.mark.parametrize("schedule", [CONSTANT, []], ids=["constant", "wsd"])
def test_a_finished_run_can_be_extended(fields, tmp_path, capsys, schedule):
    """Bit for bit the longer run where the schedule does not depend on the steps; said where it does."""
    base = ["train", "smoke", *fields, *schedule, "--out", str(tmp_path)]
    assert main([*base, "--name", "long", "--train.steps", "18"]) == 0
    assert main([*base, "--name", "run", "--train.steps", "12"]) == 0
    run = tmp_path / "run"
    capsys.readouterr()
    options = ["--train.steps", "18", "--train.log-every", "3"]
    assert main(["train", "--resume", str(run), *options]) == 0
    out = capsys.readouterr().out
    same = "extended from 12 to 18 steps: bit for bit a run of 18 steps from the start" in out
    assert same is bool(schedule)
    assert ("a run of 18 steps from the start would end elsewhere" in out) is not same
    assert summary(run)["steps"] == 18
    config = RunDir(run).load_config()
    assert (config.train.steps, config.train.log_every) == (18, 3)
    if same:
        assert_same_end(run, tmp_path / "long")
    # It is a run of 18 steps now, and continues as one.
    assert main(["train", "--resume", str(run)]) == 0
    assert "extended" not in capsys.readouterr().out


def test_json_is_the_summary(fields, tmp_path, capsys):
    argv = ["train", "smoke", *fields, "-o", str(tmp_path), "--name", "run", "--train.steps", "1", "--json"]
    assert main(argv) == 0
    out, err = capsys.readouterr()
    assert json.loads(out) == {
        **summary(tmp_path / "run"), "finished": True, "report": str(tmp_path / "run" / "report.html"),
    }  # fmt: skip
    assert "step 1/1" in err


def test_quiet_shows_the_result_alone(fields, tmp_path, capsys):
    options = ["--name", "run", "--train.steps", "2", "--quiet"]
    assert main(["train", "smoke", *fields, "--out", str(tmp_path), *options]) == 0
    out, err = capsys.readouterr()
    assert err == "" and "step 1" not in out and "experts by" not in out
    assert "bits per byte on validation text" in out and "report: " in out


def test_validations_say_how_much_text_they_read(fields, tmp_path, capsys):
    options = ["--train.steps", "2", "--train.eval-every", "1", "--train.eval-tokens", "256"]
    assert main(["train", "smoke", *fields, *options, "--out", str(tmp_path), "--name", "run"]) == 0
    out = capsys.readouterr().out
    evals = [record for record in records(tmp_path / "run") if record["kind"] == "eval"]
    for record in evals:
        tokens = sum(domain["tokens"] for domain in record["domains"].values())
        assert 0 < tokens <= 256
        assert f"bits per byte (on {tokens:,} tokens of held-out text)" in out
    size = sum(domain["bytes"] for domain in summary(tmp_path / "run")["eval"]["domains"].values())
    assert f"bits per byte on validation text, all {size:,} bytes of it" in " ".join(out.split())


def test_fields_have_the_names_of_other_verbs_too(fields, tmp_path):
    options = ["--steps", "1", "--context", "32", "--batch-size=2", "--dtype", "bf16", "--seed", "5"]
    assert main(["train", "smoke", *fields, *options, "-o", str(tmp_path), "--name", "run"]) == 0
    train = RunDir(tmp_path / "run").load_config().train
    assert (train.steps, train.seq_len, train.batch_size, train.seed) == (1, 32, 2, 5)
    assert train.precision == "bfloat16"


# Where a run may lie, and who may train in it.


@pytest.mark.parametrize("name", ["../outside", "a/b", "/tmp/absolute", ".", "..", "", "a/"])
def test_a_name_is_that_of_one_folder(fields, tmp_path, capsys, name):
    assert main(["train", "smoke", *fields, "--out", str(tmp_path / "runs"), "--name", name]) == 2
    assert f"--name {name!r}: must be the name of one folder" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_two_starts_with_one_name(fields, tmp_path, capsys):
    root = tmp_path / "mine"
    root.mkdir()
    with locked(root):
        assert main(["train", "smoke", *fields, "--out", str(tmp_path), "--name", "mine"]) == 2
    assert f"{root}: in use by process {os.getpid()} on " in capsys.readouterr().err
    assert list(root.iterdir()) == []


def test_two_resumptions_at_once(copied, capsys):
    before = {path: path.read_bytes() for path in copied.rglob("*") if path.is_file()}
    with locked(copied):
        assert main(["train", "--resume", str(copied)]) == 2
    assert f"{copied}: in use by process {os.getpid()} on " in capsys.readouterr().err
    assert {path: path.read_bytes() for path in copied.rglob("*") if path.is_file()} == before


def test_resume_finds_what_a_killed_replacement_moved_aside(copied, finished, capsys):
    latest = latest_checkpoint(copied / "checkpoints")
    latest.rename(latest.with_name(f".{latest.name}.old-1"))
    assert main(["train", "--resume", str(copied)]) == 0
    assert f"resuming {latest}" in capsys.readouterr().out
    assert_same_end(copied, finished)


def test_a_start_that_fails_leaves_a_folder_that_was_there(fields, tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    argv = ["train", "smoke", *fields, "--out", str(tmp_path), "--name", "mine"]
    assert main([*argv, "--data", str(tmp_path / "nothing")]) == 2
    assert (tmp_path / "mine").is_dir() and not list((tmp_path / "mine").iterdir())
