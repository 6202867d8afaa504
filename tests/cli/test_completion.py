"""The completion scripts name every verb and option, and bash runs them."""

import subprocess

import pytest

from moeworks.cli.completion import words_of
from moeworks.cli.main import VERBS, main


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    path = tmp_path_factory.mktemp("completion") / "moeworks.bash"
    with path.open("w") as file, pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stdout", file)
        assert main(["completion", "bash"]) == 0
    return path


def completed(script, *words: str) -> list[str]:
    """What bash offers for the last word."""
    line = " ".join(f"'{word}'" for word in words)
    code = f"source {script}; COMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; _moeworks"
    code += '; echo "${COMPREPLY[@]}"'
    done = subprocess.run(["bash", "--norc", "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return done.stdout.split()


def test_verbs(script):
    assert completed(script, "moeworks", "") == list(VERBS)
    assert completed(script, "moeworks", "tr") == ["train", "trace"]


def test_options(script):
    gpus = completed(script, "moeworks", "plan", "--gpu")
    assert gpus == ["--gpu", "--gpu-memory", "--gpus", "--gpus-per-node"]
    top = completed(script, "moeworks", "train", "--model.router.top")
    assert top == ["--model.router.top-k", "--model.router.top-k-groups"]
    assert completed(script, "moeworks", "lab", "r") == ["run", "report"]
    assert completed(script, "moeworks", "list", "c") == ["checks"]


def test_words_are_options_and_no_words_of_their_help():
    assert set(words_of("plan")) >= {"--devices", "--gpus", "--batch-size", "--tokens", "--json", "--help"}
    options = {word for word in words_of("list") if word.startswith("--")}
    assert options == {"--json", "--help"}


def test_zsh_uses_the_same_script(capsys, script):
    assert main(["completion", "zsh"]) == 0
    out = capsys.readouterr().out
    assert out.endswith(script.read_text()) and "bashcompinit" in out
