"""Spellings of the release before work, and say what they are called now on standard error."""

import json

import pytest

from moeworks.cli.main import main
from moeworks.cli.renamed import current_spelling


@pytest.mark.parametrize(
    ("old", "new", "note"),
    [
        ("info --list", "list models", "`moeworks info --list` is now `moeworks list models`"),
        ("info --list qwen --json", "list models qwen --json", "`moeworks list models`"),
        ("config --list", "list presets", "`moeworks list presets`"),
        ("doctor --list --json", "list checks --json", "`moeworks list checks`"),
        ("plan --list-gpus", "list gpus", "`moeworks list gpus`"),
        ("plan --list_gpus --json", "list gpus --json", "`moeworks list gpus`"),
        ("lab list", "list labs", "`moeworks list labs`"),
        ("simulate comm t.parquet", "simulate communication t.parquet", "`moeworks simulate communication`"),
        ("trace m --seq-len 8", "trace m --context 8", "--seq-len is now --context"),
        ("trace m --seq_len=8", "trace m --context=8", "--seq_len is now --context"),
        ("plan m --batch 3", "plan m --batch-size 3", "--batch is now --batch-size"),
        ("generate m x --stream", "generate m x", "--stream is not needed"),
    ],
)
def test_old_spelling(old, new, note, capsys):
    assert current_spelling(old.split()) == new.split()
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("moeworks: note: ") and note in err and err.count("\n") == 1


@pytest.mark.parametrize(
    "words", ["lab run list", "plan m --batch-size 3", "trace m --name comm", "info list"]
)
def test_what_is_no_old_spelling_stays(words, capsys):
    assert current_spelling(words.split()) == words.split()
    assert capsys.readouterr().err == ""


def test_a_name_after_the_old_list_is_not_ignored(capsys):
    assert main(["info", "--list", "mixtral", "--json", "--quiet"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert {record["name"] for record in json.loads(out)} == {"mixtral-8x7b", "mixtral-8x22b"}


def test_no_flag_has_a_twin_that_does_nothing(capsys):
    for verb in ("info", "plan", "eval", "trace", "inspect", "doctor", "train"):
        with pytest.raises(SystemExit):
            main([verb, "--help"])
        assert "--no-json" not in capsys.readouterr().out
