"""Everything a user can get wrong: one clear message, exit code 2, no traceback, nothing half-written."""

import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_run import full_disk, write_texts

from moeworks.checkpoint import list_checkpoints, read_checkpoint, write_checkpoint
from moeworks.cli.main import main
from moeworks.data.tokenizer import build_tokenizer
from moeworks.train.run_dir import write_json

Make = Callable[[Path], list[str]]


def tree(root: Path) -> dict[str, bytes | None]:
    """Every path below `root`, with the content of files."""
    return {
        str(path.relative_to(root)): path.read_bytes() if path.is_file() else None for path in root.rglob("*")
    }


def message_of(capsys: pytest.CaptureFixture[str], argv: list[str]) -> str:
    """The one message of a command that must fail."""
    capsys.readouterr()
    assert main(argv) == 2
    err = capsys.readouterr().err
    assert "Traceback" not in err
    assert err.startswith("moeworks: error: ")
    assert err.count("\n") == 1
    return err.removeprefix("moeworks: error: ")


# A corpus that cannot be used.


def folder_with(name: str, content: bytes) -> Make:
    def make(root: Path) -> list[str]:
        (root / "texts").mkdir()
        (root / "texts" / name).write_bytes(content)
        return ["--data", str(root / "texts")]

    return make


def empty_folder(root: Path) -> list[str]:
    (root / "texts").mkdir()
    return ["--data", str(root / "texts")]


def unreadable_file(root: Path) -> list[str]:
    """Even root cannot read where a dangling link leads."""
    empty_folder(root)
    (root / "texts" / "a.txt").symlink_to(root / "gone.txt")
    return ["--data", str(root / "texts")]


CORPORA: dict[str, tuple[Make, str]] = {
    "missing path": (lambda root: ["--data", f"{root}/gone"], r"/gone: no such file or folder"),
    "glob without match": (lambda root: ["--data", f"{root}/*.txt"], r"\*.txt: matches nothing"),
    "empty folder": (empty_folder, r"/texts: the folder holds no file of a supported kind"),
    "empty file": (folder_with("a.txt", b""), r"/texts: no text at all"),
    "binary only": (folder_with("a.txt", b"\0\1\2" * 99), r"/texts: no text at all; skipped 1 files .*NUL"),
    "not UTF-8 only": (folder_with("a.txt", b"\xff\xfe" * 99), r"no text at all; skipped 1 .*not in UTF-8"),
    "one character": (folder_with("a.txt", b"x"), r"single character"),
    "shorter than a sequence": (
        folder_with("a.txt", b"forty bytes, which is less than needed. "),
        r"the training side of the corpus has \d+ tokens, and train.seq_len = 64 needs at least 65",
    ),
    "unreadable file": (unreadable_file, r"a.txt: cannot be read: No such file"),
    "bad jsonl": (folder_with("a.jsonl", b'{"text": "a"}\n{"text": \n'), r"a.jsonl:2: not a line of JSON"),
    "jsonl without the field": (folder_with("a.jsonl", b'{"txt": "a"}\n'), r"a.jsonl:1: no field 'text'"),
    "bad parquet": (folder_with("a.parquet", b"no parquet" * 9), r"a.parquet: cannot be read"),
}


@pytest.mark.parametrize("case", CORPORA)
def test_corpus(case, tmp_path, capsys):
    make, message = CORPORA[case]
    options = make(tmp_path)
    before = tree(tmp_path)
    argv = ["train", "smoke", *options, "--out", str(tmp_path), "--name", "run"]
    text = message_of(capsys, [*argv, "--corpus.cache-dir", str(tmp_path / "cache"), "--train.threads", "1"])
    assert re.search(message, text), text
    after = {name: content for name, content in tree(tmp_path).items() if not name.startswith("cache")}
    assert after == before


def test_nothing_half_made_in_the_cache(tmp_path, capsys):
    options = CORPORA["one character"][0](tmp_path)
    argv = ["train", "smoke", *options, "--corpus.cache-dir", str(tmp_path / "cache")]
    message_of(capsys, [*argv, "--out", str(tmp_path / "runs")])
    assert not list((tmp_path / "cache").rglob("*.bin"))


# A config that makes no sense.

CONFIGS: dict[str, tuple[list[str], str]] = {
    "top_k": (["--model.router.top-k", "9"], r"router.top_k = 9: must lie between 1 and .* 4"),
    "top_k 0": (["--model.router.top-k", "0"], r"router.top_k = 0"),
    "top_k 1 renormalised": (["--model.router.top-k", "1"], r"router.top_k = 1: .*no gradient"),
    "groups": (["--model.router.num-groups", "3"], r"router.num_groups = 3: must divide .* 4"),
    "capacity 0": (["--model.capacity.capacity-factor", "0"], r"capacity.capacity_factor = 0.0: must be pos"),
    "capacity": (["--model.capacity.capacity-factor", "-1"], r"capacity.capacity_factor = -1.0: must be pos"),
    "eval capacity": (["--model.capacity.eval-capacity-factor", "0"], r"capacity.eval_capacity_factor = 0.0"),
    "heads": (["--model.attention.num-kv-heads", "3"], r"attention.num_kv_heads = 3: must divide num_heads"),
    "batch": (["--train.accumulation", "3"], r"train.batch_size = 4: must be a multiple of accumulation = 3"),
    "sequence": (["--train.seq-len", "999"], r"train.seq_len = 999: exceeds model.max_seq_len = 128"),
    "steps": (["--train.steps", "0"], r"train.steps = 0: must be at least 1"),
    "bias": (
        ["--balance.bias-rule", "sign"],
        r"balance.bias_rule = 'sign': needs model.router.selection_bias",
    ),
    "devices": (["--balance.num-devices", "3"], r"balance.num_devices = 3: must divide .* 4"),
    "fraction": (
        ["--corpus.validation-fraction", "1"],
        r"corpus.validation_fraction = 1.0: must lie between",
    ),
    "byte vocabulary": (["--model.vocab-size", "99"], r"model.vocab_size = 99: .*'bytes' needs at least 257"),
    "no tokenizer": (["--corpus.tokenizer", "gone.json"], r"gone.json: the tokenizer cannot be read"),
    "bad tokenizer": (["--corpus.tokenizer", __file__], r"test_bad_input.py: not a tokenizer.json"),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_config(case, fields, tmp_path, capsys):
    options, message = CONFIGS[case]
    text = message_of(capsys, ["train", "smoke", *fields, *options, "--out", str(tmp_path / "runs")])
    assert re.search(message, text), text
    assert tree(tmp_path) in ({}, {"runs": None})


def test_unknown_preset_names_the_nearest(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "did you mean 'laptop'?" in message_of(capsys, ["train", "labtop"])
    assert tree(tmp_path) == {}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--model.router.topk", "2"], ["--model.router.topk", "--model.router.top-k"]),
        (["--train.steps", "many"], ["--train.steps", "many"]),
        (["--optimizer.name", "sgd"], ["sgd", "muon", "adamw"]),
        (["smoke", "tiny"], ["tiny"]),
    ],
)
def test_unknown_field_or_word_names_itself_and_the_nearest(options, words, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(["train", *options])
    assert stop.value.code == 2
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    for word in words:
        assert word in err
    assert (out, tree(tmp_path)) == ("", {})


def test_tokenizer_larger_than_the_model(fields, tmp_path, capsys):
    tokenizer = build_tokenizer(
        "bpe", 290, [path.read_text() for path in write_texts(tmp_path).rglob("*.md")]
    )
    tokenizer.save(tmp_path / "mine.json")
    options = ["--corpus.tokenizer", str(tmp_path / "mine.json"), "--out", str(tmp_path / "runs")]
    text = message_of(capsys, ["train", "smoke", *fields, *options])
    assert "mine.json: its 290 tokens do not fit model.vocab_size = 264" in text


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_gpu_that_is_not_there(fields, finished, tmp_path, capsys):
    options = ["--train.device", "cuda", "--out", str(tmp_path)]
    assert "train.device = 'cuda': torch finds no GPU" in message_of(
        capsys, ["train", "smoke", *fields, *options]
    )
    assert tree(tmp_path) == {}
    text = message_of(capsys, ["generate", str(finished), "x", "--device", "cuda"])
    assert text == "device = 'cuda': torch finds no GPU here\n"


def test_logger_that_is_not_installed(fields, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    argv = ["train", "smoke", *fields, "--train.loggers", "wandb", "--out", str(tmp_path), "--name", "run"]
    assert "pip install 'moeworks[wandb]'" in message_of(capsys, argv)
    assert tree(tmp_path) == {}


# A place that cannot be used.


def test_name_that_is_taken(fields, copied, capsys):
    before = tree(copied)
    argv = ["train", "smoke", *fields, "--out", str(copied.parent), "--name", copied.name]
    text = message_of(capsys, argv)
    assert f"--name copied: {copied} is a run already; continue it with --resume {copied}" in text
    assert tree(copied) == before


def test_out_is_a_file(fields, tmp_path, capsys):
    (tmp_path / "runs").write_text("mine")
    text = message_of(capsys, ["train", "smoke", *fields, "--out", str(tmp_path / "runs")])
    assert "runs" in text
    assert tree(tmp_path) == {"runs": b"mine"}


def test_cache_is_a_file(texts, tmp_path, capsys):
    (tmp_path / "cache").write_text("mine")
    argv = ["train", "smoke", "--data", str(texts), "--corpus.cache-dir", str(tmp_path / "cache")]
    text = message_of(capsys, [*argv, "--out", str(tmp_path), "--name", "run"])
    assert "the token cache cannot be written" in text and "corpus.cache_dir" in text
    assert tree(tmp_path) == {"cache": b"mine"}


def test_full_disk_at_the_first_checkpoint(fields, tmp_path, capsys):
    argv = ["train", "smoke", *fields, "--out", str(tmp_path), "--name", "run"]
    with full_disk(room=100_000):
        text = message_of(capsys, argv)
    assert "cannot write" in text and "step-00000006" in text and "there is no earlier checkpoint" in text
    assert list((tmp_path / "run" / "checkpoints").iterdir()) == []
    assert main(["train", "--resume", str(tmp_path / "run")]) == 0


def test_full_disk_spares_the_checkpoint_before(halfway, finished, capsys):
    with full_disk(room=100_000):
        text = message_of(capsys, ["train", "--resume", str(halfway)])
    survivor = halfway / "checkpoints" / "step-00000006"
    assert f"the previous checkpoint survives: {survivor}" in text
    assert list((halfway / "checkpoints").iterdir()) == [survivor]
    assert main(["train", "--resume", str(halfway)]) == 0
    ends = [folder / "checkpoints" / "step-00000012" / "model.safetensors" for folder in (halfway, finished)]
    assert ends[0].read_bytes() == ends[1].read_bytes()


def test_full_disk_before_the_start(fields, tmp_path, capsys):
    with full_disk(room=10):
        text = message_of(capsys, ["train", "smoke", *fields, "--out", str(tmp_path), "--name", "run"])
    assert "run/config.json: cannot be written" in text
    assert tree(tmp_path) == {}


def test_full_disk_for_the_report(halfway, capsys):
    """The page is larger than everything else."""
    with full_disk(room=1_000_000):
        text = message_of(capsys, ["train", "--resume", str(halfway)])
    assert "File too large" in text
    assert not [path.name for path in halfway.iterdir() if path.name.startswith(".")]
    assert main(["train", "--resume", str(halfway)]) == 0
    assert (halfway / "report.html").is_file()


# A run that cannot go on, or write.


def last(run: Path) -> Path:
    return list_checkpoints(run / "checkpoints")[-1]


def truncate(run: Path) -> None:
    path = last(run) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def alter(run: Path) -> None:
    path = last(run) / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def alter_optimizer(run: Path) -> None:
    path = last(run) / "optimizer.safetensors"
    path.write_bytes(path.read_bytes()[::-1])


def lose_a_file(run: Path) -> None:
    (last(run) / "model.safetensors").unlink()


def alter_state(run: Path) -> None:
    path = last(run) / "checkpoint.json"
    path.write_text(path.read_text().replace('"step": 12', '"step": 11'))


def change_config(run: Path) -> None:
    config = json.loads((run / "config.json").read_text())
    config["model"]["router"]["top_k"] = 3
    write_json(run / "config.json", config)


def break_config(run: Path) -> None:
    (run / "config.json").write_text("{")


def add_unknown_field(run: Path) -> None:
    config = json.loads((run / "config.json").read_text())
    config["model"]["router"]["topk"] = 3
    write_json(run / "config.json", config)


def weights_of_another_config(run: Path) -> None:
    whole = read_checkpoint(last(run))
    model = dict(whole.tensors["model"])
    model["embed.weight"] = model["embed.weight"][:, :16]
    write_checkpoint(last(run), {**whole.tensors, "model": model}, whole.state)


def other_tokenizer(run: Path) -> None:
    texts = [path.read_text() for path in write_texts(run.parent / "others").rglob("*.md")]
    build_tokenizer("bpe", 290, texts).save(run / "tokenizer.json")


def lose_tokenizer(run: Path) -> None:
    (run / "tokenizer.json").unlink()


def lose_config(run: Path) -> None:
    (run / "config.json").unlink()


def lose_run(run: Path) -> None:
    shutil.rmtree(run)


DAMAGES: dict[str, tuple[Callable[[Path], None], str, str]] = {
    "resume truncated": (truncate, "resume", r"model.safetensors is truncated .*; the last good .*06"),
    "resume altered": (alter, "resume", r"model.safetensors was altered: its checksum differs; the last"),
    "resume altered optimizer": (alter_optimizer, "resume", r"optimizer.safetensors was altered"),
    "resume lost file": (lose_a_file, "resume", r"model.safetensors is missing from the checkpoint"),
    "resume altered state": (alter_state, "resume", r"checkpoint.json was altered: its checksum differs"),
    "resume other config": (
        change_config, "resume", r"step-00000012: a checkpoint of another config than .*copied/config.json",
    ),
    "resume other weights": (
        weights_of_another_config, "resume", r"config: embed.weight has shape \(264, 16\), .* \(264, 32\)",
    ),
    "resume broken config": (break_config, "resume", r"copied/config.json: not JSON"),
    "resume unknown field": (
        add_unknown_field, "resume", r"config.json: model.router.topk: unknown field; did you mean 'top_k'\?",
    ),
    "resume no config": (lose_config, "resume", r"copied: not a run: it has no config.json"),
    "resume no folder": (lose_run, "resume", r"copied: not a run: it has no config.json"),
    "resume other tokenizer": (
        other_tokenizer, "resume", r"tokenizer.json: a vocabulary of 290, and not the tokenizer .* of 257",
    ),
    "generate truncated": (truncate, "generate", r"model.safetensors is truncated"),
    "generate altered": (alter, "generate", r"model.safetensors was altered"),
    "generate other weights": (weights_of_another_config, "generate", r"config: embed.weight has shape"),
    "generate other tokenizer": (
        other_tokenizer, "generate", r"tokenizer.json: its vocabulary of 290 .*another tokenizer, of 257",
    ),
    "generate no tokenizer": (lose_tokenizer, "generate", r"tokenizer.json: the tokenizer cannot be read"),
    "generate no folder": (lose_run, "generate", r"copied: neither a run \(config.json\) nor a checkpoint"),
}  # fmt: skip


@pytest.mark.parametrize("case", DAMAGES)
def test_run_that_was_damaged(case, copied, capsys):
    damage, verb, message = DAMAGES[case]
    damage(copied)
    before = tree(copied)
    argv = ["train", "--resume", str(copied)] if verb == "resume" else ["generate", str(copied), "x"]
    text = message_of(capsys, argv)
    assert re.search(message, text), text
    assert tree(copied) == before


def test_resume_of_a_run_older_than_a_setting(halfway, finished):
    """Settings that did not exist when it was made have their defaults."""
    config = json.loads((halfway / "config.json").read_text())
    del config["alarms"]
    write_json(halfway / "config.json", config)
    whole = read_checkpoint(last(halfway))
    write_checkpoint(last(halfway), whole.tensors, {**whole.state, "config": config})
    assert main(["train", "--resume", str(halfway)]) == 0
    ends = [folder / "checkpoints" / "step-00000012" / "model.safetensors" for folder in (halfway, finished)]
    assert ends[0].read_bytes() == ends[1].read_bytes()


def test_texts_that_changed_since(fields, texts, tmp_path, capsys):
    """Other documents and the same tokenizer: the run does not go on with them in silence."""
    own = Path(shutil.copytree(texts, tmp_path / "own"))
    options = ["--data", str(own), "--train.steps", "1", "--out", str(tmp_path), "--name", "run"]
    assert main(["train", "smoke", *fields, *options]) == 0
    (own / "new.md").write_text("One more document.\n" * 20)
    text = message_of(capsys, ["train", "--resume", str(tmp_path / "run")])
    assert "trained on another corpus" in text and f"the files in {own} have changed" in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["smoke"], "preset = 'smoke': the run has a config of its own"),
        (
            ["--model.router.top-k", "3"],
            "continues a run with its own config, of which only these options can",
        ),
        (["--train.seed", "3"], "continues a run with its own config"),
        (["--optimizer.lr", "1"], "continues a run with its own config"),
        (["--train.steps", "11"], "train.steps = 11: must be at least the run's own, 12, with --resume"),
        (["--dense-twin"], "--dense-twin has no effect with --resume"),
        (["--name", "other"], "--name has no effect with --resume"),
        (["--out", "elsewhere"], "--out has no effect with --resume"),
    ],
)
def test_resume_takes_only_what_leaves_the_steps_as_they_are(copied, capsys, options, message):
    before = tree(copied)
    argv = ["train", "--resume", str(copied), *options]
    if options == ["smoke"]:
        argv = ["train", "smoke", "--resume", str(copied)]
    assert message in message_of(capsys, argv)
    assert tree(copied) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--temperature", "-1"], "temperature = -1.0: must not be negative"),
        (["--top-p", "0"], "top_p = 0.0: must lie in (0, 1]"),
        (["--top-k", "0"], "top_k = 0: must be at least 1"),
        (["--max-new-tokens", "-1"], "max_new_tokens = -1: must not be negative"),
    ],
)
def test_generate_options_that_mean_nothing(finished, capsys, options, message):
    assert message_of(capsys, ["generate", str(finished), "x", *options]) == message + "\n"


def test_run_without_a_checkpoint_has_nothing_to_generate_with(halfway, capsys):
    shutil.rmtree(halfway / "checkpoints")
    assert f"no checkpoint in {halfway / 'checkpoints'}" in message_of(
        capsys, ["generate", str(halfway), "x"]
    )


# Training that goes wrong.


def test_loss_that_is_not_finite(fields, tmp_path, capsys):
    options = ["--optimizer.name", "adamw", "--optimizer.lr", "1e38", "--optimizer.clip-norm", "0"]
    options += ["--optimizer.warmup-steps", "0", "--train.checkpoint-every", "1"]
    argv = ["train", "smoke", *fields, *options, "--out", str(tmp_path), "--name", "run"]
    text = message_of(capsys, argv)
    assert "is not finite; the last good checkpoint is" in text
    assert str(last(tmp_path / "run")) in text


# --debug.


@pytest.mark.parametrize(
    "argv", [["train", "smoke", "--data", "gone"], ["generate", "gone", "x"], ["train", "--resume", "gone"]]
)
def test_debug_shows_where_it_came_from(argv, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main([*argv, "--debug"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("Traceback (most recent call last):")
    assert err.splitlines()[-1].startswith("moeworks: error: gone: ")
