from dataclasses import dataclass, replace

import pytest

from moeworks.cli.arguments import NoOptions, parse, run_config
from moeworks.config.explain import explain
from moeworks.config.presets import PRESETS, preset
from moeworks.errors import ConfigError


@dataclass(frozen=True)
class TrainOptions:
    resume: str | None = None
    """Go on with the run in this folder."""
    out: str = "runs"
    """Folder of the runs."""
    dense_twin: bool = False
    """Train the dense twin."""


def parsed(*argv: str):
    return parse(TrainOptions, list(argv), "moeworks train")


# Presets and overrides.


def test_without_arguments_it_is_the_default_preset():
    assert run_config([], "moeworks config") == preset()


@pytest.mark.parametrize("name", PRESETS)
def test_first_argument_is_the_preset(name):
    assert run_config([name], "moeworks config") == preset(name)


def test_options_override_the_preset_and_nothing_else():
    run = run_config(["smoke", "--model.router.top-k", "3", "--train.steps", "2000"], "moeworks train")
    expected = preset("smoke")
    model = replace(expected.model, router=replace(expected.model.router, top_k=3))
    assert run == replace(expected, model=model, train=replace(expected.train, steps=2000))


def test_options_work_without_a_preset():
    run = run_config(["--train.steps", "7"], "moeworks train")
    assert run == replace(preset(), train=replace(preset().train, steps=7))


@pytest.mark.parametrize("name", ["--model.router.top-k", "--model.router.top_k"])
@pytest.mark.parametrize("sign", [" ", "="])
def test_hyphens_and_underscores_and_equals_signs(name, sign):
    argv = [name, "3"] if sign == " " else [f"{name}=3"]
    assert run_config(argv, "moeworks train").model.router.top_k == 3


def test_data_takes_several_places():
    assert run_config(["--data", "my_texts/", "more/", "--train.seed", "1"], "").data == (
        "my_texts/",
        "more/",
    )


@pytest.mark.parametrize(
    ("argv", "path", "value"),
    [
        (["--model.pattern.explicit", "0", "2"], "model.pattern.explicit", (0, 2)),
        (["--train.eval-tokens", "None"], "train.eval_tokens", None),
        (["--train.threads", "2"], "train.threads", 2),
        (["--train.compile"], "train.compile", True),
        (["--model.no-tie-embeddings"], "model.tie_embeddings", False),
        (["--optimizer.name", "adamw"], "optimizer.name", "adamw"),
        (["--optimizer.lr", "1e-4"], "optimizer.lr", 1e-4),
        (["--train.loggers", "wandb"], "train.loggers", ("wandb",)),
        (["--corpus.domain-field", "topic"], "corpus.domain_field", "topic"),
    ],
)
def test_values_of_every_kind(argv, path, value):
    rows = {row.path: row.value for row in explain(run_config(argv, "moeworks train"))}
    assert rows[path] == value


def test_rules_hold_for_the_sum_of_all_overrides():
    both = ["smoke", "--model.max-seq-len", "512", "--train.seq-len", "512"]
    assert run_config(both, "moeworks train").train.seq_len == 512


# The verb's own options.


def test_options_of_the_verb_stand_beside_those_of_the_run():
    result = parsed("smoke", "--dense-twin", "--train.steps", "3", "--resume", "runs/a", "--out", "elsewhere")
    assert result.options == TrainOptions(resume="runs/a", out="elsewhere", dense_twin=True)
    assert result.config.train.steps == 3
    assert result.preset == "smoke"


def test_options_of_the_verb_have_defaults():
    assert parsed().options == TrainOptions()
    assert parse(NoOptions, [], "moeworks").options == NoOptions()


# Refusals.


def config_error(*argv: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parsed(*argv)
    return str(caught.value)


def test_unknown_preset_names_the_nearest():
    assert config_error("smokee") == "preset = 'smokee': unknown preset; did you mean 'smoke'?"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ["--model.router.top-k", "99"],
            "router.top_k = 99: must lie between 1 and the number of experts, 32",
        ),
        (["--model.router.num-groups", "5"], "router.num_groups = 5: must divide the number of experts, 32"),
        (
            ["--model.capacity.capacity-factor", "0"],
            "capacity.capacity_factor = 0.0: must be positive, or None for dropless",
        ),
        (["--train.seq-len", "4096"], "train.seq_len = 4096: exceeds model.max_seq_len = 1024"),
        (["--data"], "data = (): names no text to train on"),
    ],
)
def test_broken_rule_is_the_config_error_itself(argv, message, capsys):
    assert config_error(*argv) == message
    assert capsys.readouterr().err == ""


def refusal(capsys, *argv: str) -> str:
    with pytest.raises(SystemExit) as stop:
        parsed(*argv)
    assert stop.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err


def test_unknown_option_names_the_nearest(capsys):
    text = refusal(capsys, "--train.stepz", "5")
    assert "Unrecognized options: --train.stepz" in text
    assert "--train.steps INT" in text


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--train.steps", "x"),
        ("--train.steps", "2.5"),
        ("--optimizer.lr", "big"),
        ("--optimizer.name", "sgd"),
    ],
)
def test_value_of_a_wrong_type_names_the_option_and_the_value(capsys, option, value):
    text = refusal(capsys, option, value)
    assert option in text
    assert f"'{value}'" in text or f" {value}" in text


def test_second_positional_is_refused(capsys):
    assert "more" in refusal(capsys, "smoke", "more")


def test_help_explains_every_field_and_option(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    with pytest.raises(SystemExit) as stop:
        parsed("smoke", "--help")
    assert stop.value.code == 0
    out = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "usage: moeworks train" in out
    assert "laptop | smoke | gpu-small (default: laptop)" in out
    assert "Train the dense twin." in out
    for row in explain(preset()):
        # A list of mixers is for configs from files; no option spells one.
        assert row.path == "model.mixers" or f"--{row.path.replace('_', '-')}" in out
    assert "Experts per token (K). (default: 2)" in out
