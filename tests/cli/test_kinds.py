"""Parts of a config that come in several kinds, chosen on the command line."""

import pytest

from moeworks.cli.arguments import run_config
from moeworks.config import CustomChoice, MLAConfig, TopKChoice
from moeworks.errors import ConfigError

CHOICE = "--model.router.choice"


def test_a_kind_by_its_name_and_then_its_options():
    for argv in ([CHOICE, "custom"], [f"{CHOICE}=custom"]):
        choice = run_config([*argv, f"{CHOICE}.name", "mine"], "p").model.router.choice
        assert choice == CustomChoice(name="mine")
    assert run_config(["laptop", CHOICE, "top-k"], "p").model.router.choice == TopKChoice()
    attention = run_config(["--model.attention", "mla", "--model.attention.kv-lora-rank", "8"], "p")
    assert attention.model.attention == MLAConfig(kv_lora_rank=8)


def test_its_options_are_no_options_of_another_kind(capsys):
    with pytest.raises(SystemExit):
        run_config([f"{CHOICE}.name", "mine"], "p")
    assert "name" in capsys.readouterr().err


def test_a_kind_that_there_is_not():
    with pytest.raises(ConfigError, match=r"model.router.choice = 'custum': did you mean 'custom'"):
        run_config([CHOICE, "custum"], "p")
    with pytest.raises(ConfigError, match=r"model.router.choice = ''"):
        run_config([CHOICE], "p")


def test_the_help_names_the_kinds(capsys):
    with pytest.raises(SystemExit):
        run_config(["--help"], "p")
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "--model.router.choice top-k | expert-choice |" in text
