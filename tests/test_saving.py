"""Models to disk: what is there already is kept, and what appears is whole."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_published import LLAMA, MIXTRAL, change_config, change_tensors, make, write
from tiny_run import BYTES, tiny_config, tiny_corpus, tiny_trainer, write_texts
from tiny_tokenizers import byte_backend

from moeworks import load, save
from moeworks.checkpoint import checkpoint_dir, write_checkpoint
from moeworks.cli.main import main
from moeworks.data.model_tokenizer import tokenizer_of
from moeworks.errors import CheckpointError, DataError
from moeworks.files import locked
from moeworks.train.run_dir import RunDir

OTHER_MIXTRAL = MIXTRAL | dict(num_local_experts=3)


def contents(folder: Path) -> dict[str, bytes]:
    """All files below a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def same_weights(folder: Path, model: torch.nn.Module) -> bool:
    found = load(folder, dtype=torch.float32).state_dict()
    return all(torch.equal(found[name], value) for name, value in model.state_dict().items())


# Where a checkpoint may be written.


def a_file(place: Path) -> None:
    place.write_text("a file")


def work(place: Path) -> None:
    (place / "sub").mkdir(parents=True)
    (place / "thesis.txt").write_text("work")
    (place / "sub" / "data").write_text("x")


def a_run(place: Path) -> None:
    RunDir(place).save_config(tiny_config(place))


def another_config(place: Path) -> None:
    place.mkdir()
    (place / "config.json").write_text('{"name": "of a web server"}')


@pytest.mark.parametrize(
    ("make_place", "message"),
    [
        (a_file, r"place: is a file; a checkpoint is written to a folder"),
        (
            work,
            r"place: holds sub, thesis\.txt and no published checkpoint: choose a folder that is new",
        ),
        (a_run, r"place: holds config\.json and no published checkpoint"),
        (another_config, r"place: holds config\.json and no published checkpoint"),
    ],
)
def test_what_is_no_checkpoint_is_never_written_over(
    tmp_path: Path, make_place: Callable[[Path], None], message: str
) -> None:
    make_place(tmp_path / "place")
    before = contents(tmp_path)
    with pytest.raises(CheckpointError, match=message):
        save(make(LLAMA), tmp_path / "place")
    assert contents(tmp_path) == before


def test_a_checkpoint_is_replaced_and_what_else_lies_there_stays(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    write(folder, MIXTRAL, shard_bytes=9000)
    others = {"README.md": "card", "modeling.py": "code", "adapter_model.safetensors": "x", "logs/a.txt": "y"}
    for name, text in others.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    other = make(LLAMA)
    save(other, folder, family="llama")
    assert same_weights(folder, other)
    assert contents(folder).keys() == {"config.json", "model.safetensors", *others}
    assert all((folder / name).read_text() == text for name, text in others.items())
    sharded = make(MIXTRAL, seed=3)
    save(sharded, folder, family="mixtral", shard_bytes=9000)
    assert same_weights(folder, sharded)
    assert "model.safetensors" not in contents(folder) and others.keys() < contents(folder).keys()


def test_a_model_is_saved_over_the_folder_it_was_loaded_from(tmp_path: Path) -> None:
    write(tmp_path, MIXTRAL)
    (tmp_path / "tokenizer.json").write_text("{}")
    model = load(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("written since")
    with torch.no_grad():
        model.embed.weight += 1
    save(model, tmp_path)
    assert same_weights(tmp_path, model)
    assert (tmp_path / "tokenizer.json").read_text() == "{}"
    assert (tmp_path / "chat_template.jinja").read_text() == "written since"


def test_a_link_to_a_folder_is_followed_and_stays(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    (tmp_path / "dangling").symlink_to(tmp_path / "new")
    model = make(LLAMA)
    for name, place in (("link", "disk"), ("dangling", "new")):
        assert save(model, tmp_path / name) == tmp_path / name
        assert (tmp_path / name).is_symlink()
        assert same_weights(tmp_path / place, model)


def test_links_to_files_inside_are_replaced_and_what_they_lead_to_stays(tmp_path: Path) -> None:
    """As the snapshots in the cache of huggingface-hub are made."""
    write(tmp_path / "blobs", MIXTRAL)
    before = contents(tmp_path / "blobs")
    (tmp_path / "snapshot").mkdir()
    for name in before:
        (tmp_path / "snapshot" / name).symlink_to(tmp_path / "blobs" / name)
    model = make(OTHER_MIXTRAL)
    save(model, tmp_path / "snapshot", family="mixtral")
    assert contents(tmp_path / "blobs") == before
    assert same_weights(tmp_path / "snapshot", model)


def test_the_folder_we_are_in_and_that_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    model = make(LLAMA)
    save(model, ".")
    assert same_weights(tmp_path, model)
    assert save(model, "~/models/m") == tmp_path / "home" / "models" / "m"
    assert same_weights(tmp_path / "home" / "models" / "m", model)


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_weights_are_as_readable_as_the_umask_says(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        save(make(MIXTRAL), tmp_path / "m", shard_bytes=9000)
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "m").iterdir()} == {0o666 & ~mask}


def test_two_saves_at_once(tmp_path: Path) -> None:
    write(tmp_path, MIXTRAL)
    before = contents(tmp_path)
    with locked(tmp_path), pytest.raises(DataError, match="in use by process"):
        save(make(MIXTRAL, seed=1), tmp_path)
    assert contents(tmp_path) == before


# Interruptions.


def test_killed_at_any_step_there_is_the_old_checkpoint_the_new_or_none(tmp_path: Path) -> None:
    """Steps are numbered; a fork of one process that has everything imported dies before each of them."""
    old, new = make(MIXTRAL, seed=0), make(MIXTRAL, seed=1)
    script = KILLS.format(tests=str(Path(__file__).parent))
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    seen = set()
    for folder in sorted(path for path in tmp_path.iterdir() if path.name != "start"):
        assert (folder / "README.md").read_text() == "card"
        try:
            seen.add("old" if same_weights(folder, old) else "new" if same_weights(folder, new) else "mixed")
        except CheckpointError as error:
            assert "a save into this folder was interrupted" in str(error)
            assert "by moving all files of" in str(error)
            seen.add("none")
            for path in sorted((folder / ".moeworks-save").iterdir(), key=lambda p: p.name == "config.json"):
                os.rename(path, folder / path.name)
            assert same_weights(folder, new)
        save(old, folder, family="mixtral")
        assert same_weights(folder, old)
        assert contents(folder).keys() == {"README.md", "config.json", "model.safetensors"}
        assert not (folder / ".moeworks-save").exists()
    assert seen == {"old", "new", "none"}


KILLS = """
import os, shutil, signal, sys
from itertools import count
from pathlib import Path
sys.path.insert(0, {tests!r})
from tiny_published import MIXTRAL, make, write
from moeworks import save

root = Path(sys.argv[1])
write(root / "start", MIXTRAL, shard_bytes=60_000)
(root / "start" / "README.md").write_text("card")
new = make(MIXTRAL, seed=1)

def die_before_call(number):
    left = [number]
    def dying(function):
        def call(*args, **kwargs):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)
        return call
    for name in ("rename", "unlink", "rmdir", "mkdir", "fsync"):
        setattr(os, name, dying(getattr(os, name)))

for number in count(1):
    folder = root / f"{{number:03}}"
    shutil.copytree(root / "start", folder)
    pid = os.fork()
    if pid == 0:
        die_before_call(number)
        save(new, folder, family="mixtral", shard_bytes=30_000)
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    if os.WIFEXITED(status):
        assert os.WEXITSTATUS(status) == 0
        break
"""

LIMITED = """
import resource, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from tiny_published import MIXTRAL, make
from moeworks import save
from moeworks.errors import CheckpointError

model = make(MIXTRAL, seed=1)
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
try:
    save(model, Path(sys.argv[1]), family="mixtral")
except CheckpointError as error:
    print(error)
"""


@pytest.mark.parametrize("exists", [True, False])
def test_a_disk_that_refuses_leaves_everything_as_it_was(tmp_path: Path, exists: bool) -> None:
    if exists:
        write(tmp_path / "m", MIXTRAL)
    before = contents(tmp_path)
    script = LIMITED.format(tests=str(Path(__file__).parent))
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "m")], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith(f"{tmp_path / 'm'}: cannot be written: ")
    assert "File too large" in done.stdout and done.stdout.count("\n") == 1
    assert contents(tmp_path) == before
    assert (tmp_path / "m").exists() == exists


def test_interrupted_by_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "m", MIXTRAL)
    before = contents(tmp_path)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("moeworks.saving.write_weights", interrupt)
    for name in ("m", "new"):
        with pytest.raises(KeyboardInterrupt):
            save(make(MIXTRAL, seed=1), tmp_path / name, family="mixtral")
    assert contents(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


# The tokenizer comes along.


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """A run of one step in a family's layout, with its tokenizer."""
    config = tiny_config(
        write_texts(tmp_path / "texts"), router=dict(selection_bias=False), balance=dict(bias_rule="none")
    )
    run, corpus = RunDir(tmp_path / "run"), tiny_corpus(config)
    trainer = tiny_trainer(config, corpus)
    run.save_config(config)
    corpus.tokenizer.save(run.tokenizer)
    trainer.step()
    write_checkpoint(checkpoint_dir(run.checkpoints, 1), *trainer.state())
    return run


TEXT = "Line 7 and\n\tévery other: <|endoftext|>"


def test_the_tokenizer_of_a_run_comes_along(
    run: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = save(load(run.root), tmp_path / "out", dtype=torch.float32)
    assert contents(folder).keys() == {
        "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    ours, theirs = tokenizer_of(run.root, BYTES), tokenizer_of(folder, BYTES)
    assert theirs.encode_prompt(TEXT) == ours.encode_prompt(TEXT)
    assert (theirs.start_ids, theirs.stop_ids) == (ours.start_ids, ours.stop_ids) == ((256,), (256,))
    assert theirs.decode(theirs.encode(TEXT)) == TEXT
    assert main(["generate", str(folder), "Line", "--max-new-tokens", "3", "--temperature", "0"]) == 0
    assert capsys.readouterr().out.startswith("Line")


def test_transformers_reads_the_tokenizer_of_a_run(run: RunDir, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    folder = save(load(run.root), tmp_path / "out")
    theirs = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    ours = tokenizer_of(run.root, BYTES)
    text = "Line 7 and\n\tévery other"
    assert theirs(text).input_ids == ours.encode_prompt(text)
    assert theirs.decode(ours.encode(text)) == text
    assert theirs.eos_token == theirs.bos_token == "<|endoftext|>"
    assert theirs.eos_token_id == 256
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False)
    assert model.generation_config.eos_token_id == 256


def test_a_run_whose_tokenizer_is_not_its_own_any_more(run: RunDir, tmp_path: Path) -> None:
    run.tokenizer.write_text(byte_backend().to_str())
    with pytest.raises(CheckpointError, match="trained with another tokenizer"):
        save(load(run.root), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    folder = save(load(run.root), tmp_path / "out", tokenizer=False)
    assert contents(folder).keys() == {"config.json", "model.safetensors"}


def test_a_checkpoint_alone_has_no_tokenizer(run: RunDir, tmp_path: Path) -> None:
    alone = tmp_path / "a" / "b" / "step-00000001"
    shutil.copytree(run.checkpoints / "step-00000001", alone)
    assert "tokenizer.json" not in contents(save(load(alone), tmp_path / "out"))


def test_the_tokenizer_is_that_of_the_folder_when_the_model_was_loaded(tmp_path: Path) -> None:
    write(tmp_path / "a", MIXTRAL)
    write(tmp_path / "b", MIXTRAL)
    for name in ("a", "b"):
        (tmp_path / name / "tokenizer.json").write_text(f'{{"of": "{name}"}}')
    (tmp_path / "a" / "special_tokens_map.json").write_text("{}")
    a, b = load(tmp_path / "a"), load(tmp_path / "b")
    save(b, tmp_path / "a")
    assert (tmp_path / "a" / "tokenizer.json").read_text() == '{"of": "b"}'
    assert not (tmp_path / "a" / "special_tokens_map.json").exists()
    save(a, tmp_path / "c")
    assert (tmp_path / "c" / "tokenizer.json").read_text() == '{"of": "a"}'
    assert (tmp_path / "c" / "special_tokens_map.json").exists()


# Code that would not be there.


def test_code_that_does_not_come_along_is_not_named(tmp_path: Path) -> None:
    code = {"auto_map": {"AutoConfig": "configuration_mine.MineConfig"}}
    tokens = {"auto_map": {"AutoTokenizer": ["tokenization_mine.Mine", None]}, "eos_token": "</s>"}
    write(tmp_path / "a", MIXTRAL)
    change_config(tmp_path / "a", **code)
    (tmp_path / "a" / "tokenizer_config.json").write_text(json.dumps(tokens))
    folder = save(load(tmp_path / "a"), tmp_path / "b")
    assert "auto_map" not in json.loads((folder / "config.json").read_text())
    assert json.loads((folder / "tokenizer_config.json").read_text()) == {"eos_token": "</s>"}


def test_code_that_is_there_stays_named(tmp_path: Path) -> None:
    code = {"auto_map": {"AutoConfig": "configuration_mine.MineConfig", "AutoModel": "modeling_mine.Mine"}}
    write(tmp_path, MIXTRAL)
    change_config(tmp_path, **code)
    (tmp_path / "configuration_mine.py").write_text("")
    model = load(tmp_path)
    (tmp_path / "modeling_mine.py").write_text("")
    save(model, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["auto_map"] == code["auto_map"]
    (tmp_path / "modeling_mine.py").unlink()
    save(model, tmp_path)
    assert "auto_map" not in json.loads((tmp_path / "config.json").read_text())


@pytest.mark.parametrize("reference", ["someone/repo--modeling_mine.Mine", "../modeling_mine.Mine"])
def test_code_from_elsewhere_is_not_named(tmp_path: Path, reference: str) -> None:
    write(tmp_path / "m", MIXTRAL)
    change_config(tmp_path / "m", auto_map={"AutoModel": reference})
    (tmp_path / "modeling_mine.py").write_text("")
    save(load(tmp_path / "m"), tmp_path / "m")
    assert "auto_map" not in json.loads((tmp_path / "m" / "config.json").read_text())


def test_weights_that_changed_on_disk_since_are_replaced_by_those_in_memory(tmp_path: Path) -> None:
    write(tmp_path, MIXTRAL)
    model = load(tmp_path)
    change_tensors(tmp_path, lambda t: t.update({"lm_head.weight": t["lm_head.weight"] + 1}))
    assert not same_weights(tmp_path, model)
    save(model, tmp_path)
    assert same_weights(tmp_path, model)
