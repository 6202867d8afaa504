import json

import pytest

from moeworks.cli.config import parse, run
from moeworks.cli.main import main
from moeworks.config import RunConfig
from moeworks.config.codec import from_dict
from moeworks.config.count import count_flops, count_parameters
from moeworks.config.explain import explain
from moeworks.config.presets import PRESETS, preset


@pytest.fixture
def printed(capsys, monkeypatch):
    """What `moeworks config` prints for some arguments, on a wide terminal, as lines."""
    monkeypatch.setenv("COLUMNS", "300")

    def lines(*argv: str) -> list[str]:
        run(parse(list(argv)))
        return capsys.readouterr().out.splitlines()

    return lines


@pytest.mark.parametrize("name", PRESETS)
def test_every_field_with_its_value_and_meaning(printed, name):
    rows = {line.split()[0]: line for line in printed(name) if line.strip()}
    for row in explain(preset(name)):
        assert f"{row.doc} ({row.type})" in rows[row.path]


@pytest.mark.parametrize(
    ("argv", "path", "value"),
    [
        (["smoke"], "model.vocab_size", "264"),
        (["smoke", "--model.vocab-size", "300"], "model.vocab_size", "300"),
        (["smoke", "--data", "a/", "b/"], "data", "a/ b/"),
        (["smoke"], "train.loggers", "(none)"),
        (["smoke"], "train.threads", "None"),
        (["smoke"], "train.sample_prompt", "'def '"),
        (["smoke", "--train.sample-prompt", ""], "train.sample_prompt", "''"),
    ],
)
def test_values_read_as_they_are_typed(printed, argv, path, value):
    line = next(line for line in printed(*argv) if line.startswith(path + " "))
    assert line.removeprefix(path).strip().startswith(value + " ")


def test_brackets_of_a_meaning_are_not_taken_for_markup(printed):
    text = "\n".join(printed())
    assert "muon for the hidden matrices" in text
    assert all(row.doc in text for row in explain(preset()))


def test_counts_stand_below(printed):
    text = "\n".join(printed("smoke")[-6:])
    model, seq_len = preset("smoke").model, preset("smoke").train.seq_len
    count = count_parameters(model)
    for number in (
        count.total,
        count.active,
        count.active_non_embedding,
        count_flops(model, seq_len, training=False),
        count_flops(model, seq_len, training=True),
    ):
        assert f" {number:,} " in text


@pytest.mark.parametrize("name", PRESETS)
def test_json_is_the_config_and_nothing_else(printed, name):
    assert from_dict(RunConfig, json.loads("\n".join(printed(name, "--json")))) == preset(name)


def test_json_of_an_overridden_config(printed):
    data = json.loads(
        "\n".join(printed("smoke", "--json", "--train.sample-prompt", "é", "--train.steps", "3"))
    )
    assert (data["train"]["sample_prompt"], data["train"]["steps"]) == ("é", 3)


def test_list_names_every_preset_with_its_line(capsys):
    assert main(["list", "presets"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(PRESETS)
    for line, make in zip(lines, PRESETS.values(), strict=True):
        assert (make.__doc__ or "") in line


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["laptp"], "preset = 'laptp': unknown preset; did you mean 'laptop'?"),
        (
            ["--model.router.top-k", "64"],
            "router.top_k = 64: must lie between 1 and the number of experts, 32",
        ),
        (["--model.capacity.capacity-factor", "-1"], "capacity.capacity_factor = -1.0: must be positive"),
    ],
)
def test_bad_input_is_one_message_and_code_2(argv, message, capsys):
    assert main(["config", *argv]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"moeworks: error: {message}")
    assert captured.err.count("\n") == 1
    assert captured.out == ""


def test_unknown_field_is_refused_with_the_nearest_and_code_2(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["config", "--model.router.topk", "2"])
    assert stop.value.code == 2
    err = capsys.readouterr().err
    assert "--model.router.top-k INT" in err
    assert "Traceback" not in err
