import json

import pytest

from moeworks.cli.info import parse
from moeworks.cli.main import main
from moeworks.config.codec import to_dict
from moeworks.config.count import count_parameters
from moeworks.config.presets import preset
from moeworks.errors import ConfigError
from moeworks.families import BY_PRESET, published


@pytest.fixture
def printed(capsys):
    """What `moeworks info` prints."""

    def text(*argv: str) -> str:
        assert main(["info", *argv]) == 0
        return capsys.readouterr().out

    return text


def message(capsys, *argv: str) -> str:
    capsys.readouterr()
    assert main(["info", *argv]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    return err


@pytest.mark.parametrize("name", BY_PRESET)
def test_json_has_plain_numbers_for_every_preset(printed, name):
    record, counts = json.loads(printed(name, "--json")), count_parameters(published(name))
    parameters = record["parameters"]
    assert parameters["total"] == counts.total
    assert parameters["active"] == counts.active
    assert type(parameters["active_without_embedding"]) is int
    assert type(record["kv_bytes_per_token"]) is int
    assert record["name"] == name


def test_json_of_deepseek_v3(printed):
    record = json.loads(printed("deepseek-v3", "--json"))
    assert record["family"] == "deepseek_v3"
    assert record["kv_bytes_per_token"] == 70_272
    assert record["kv_bytes_per_token_expanded"] == 4_997_120
    assert record["parameters"]["total"] == 671_026_404_352
    assert record["parameters"]["active_without_embedding"] == 36_625_603_584
    assert record["layers"] == {"total": 61, "moe": 58, "dense": 3, "mtp": 1, "mixers": {"mla": 61}}
    assert record["routing"]["num_groups"] == 8
    assert record["flops"]["context"] == 8192


def test_the_page(printed):
    text = printed("deepseek-v3")
    for part in ("671,026,404,352", "70,272 B", "4,997,120 B", "673.2 GB", "4 of 8 groups", "11,610,067,968"):
        assert part in text


def test_options_change_the_figures(printed):
    record = json.loads(printed("deepseek-v3", "--json", "--kv-dtype", "fp8", "--context", "100"))
    assert record["kv_bytes_per_token"] == 35_136
    assert record["cache_bytes_per_sequence"] == 3_513_600


def test_windows_show_in_the_cache(printed):
    assert "50.8% of the above: windows, chunks or states" in printed("gpt-oss-20b")


def test_a_run(printed, finished):
    record = json.loads(printed(str(finished), "--json"))
    assert record["family"] == "moeworks"
    summary = json.loads((finished / "summary.json").read_text())
    assert record["parameters"]["total"] == summary["parameters"]["total"]
    assert f"{record['parameters']['active']:,}" in printed(str(finished))


def test_names_are_no_markup(printed, tmp_path):
    folder = tmp_path / "[bold]x[italic]"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(to_dict(preset("smoke"))))
    assert "[bold]x[italic]" in printed(str(folder)).replace("\n", "")


def test_the_list(capsys):
    assert main(["list", "models"]) == 0
    text = capsys.readouterr().out
    assert main(["list", "models", "--json"]) == 0
    records = json.loads(capsys.readouterr().out)
    assert [record["name"] for record in records] == sorted(BY_PRESET)
    assert all(record["name"] in text for record in records)
    assert all(record["parameters"]["total"] > 10**8 for record in records)


def test_no_model_is_an_error(capsys):
    assert "model: missing; name a folder, a config.json or a preset" in message(capsys)


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (["deepseek-v4"], "'deepseek-v4': no such preset, file or folder; did you mean 'deepseek-v3'?"),
        (["deepseek-v3", "--context", "0"], "context = 0: must lie between 1 and 100,000,000 tokens"),
        (["deepseek-v3", "--context", "999999999"], "context = 999999999: must lie between"),
        (["deepseek-v3", "--kv-dtype", "int3"], "kv_dtype = 'int3': unknown; known: bf16, fp32, fp8"),
    ],
)
def test_bad_input(capsys, argv, text):
    assert text in message(capsys, *argv)


def test_an_unknown_family_names_the_known_ones(capsys, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    error = message(capsys, str(tmp_path))
    assert "unknown family; known: " in error
    assert all(kind in error for kind in ("mixtral", "deepseek_v3", "qwen3_moe", "gpt_oss"))


def test_a_typing_error_is_tyros(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["info", "deepseek-v3", "--contxt", "3"])
    assert caught.value.code == 2
    assert "--context" in capsys.readouterr().err


def test_parse_needs_no_files():
    with pytest.raises(ConfigError):
        parse([])
    assert parse(["somewhere"]).model == "somewhere"
