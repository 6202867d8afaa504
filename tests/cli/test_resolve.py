"""What a user may name, and what is said about what he may not."""

import json
from pathlib import Path

import pytest

from moeworks.cli.resolve import LARGEST_CONFIG, resolve
from moeworks.config.codec import to_dict
from moeworks.config.presets import PRESETS, preset
from moeworks.errors import ConfigError
from moeworks.families import BY_PRESET, published


def write(path: Path, content: object) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content), "utf-8")
    return path


@pytest.fixture
def mixtral() -> dict[str, object]:
    """A published config.json."""
    return {"model_type": "mixtral", **BY_PRESET["mixtral-8x7b"].presets["mixtral-8x7b"]}


@pytest.mark.parametrize("name", BY_PRESET)
def test_published_presets(name):
    found = resolve(name)
    assert (found.name, found.family, found.model) == (name, BY_PRESET[name].name, published(name))


@pytest.mark.parametrize("name", PRESETS)
def test_presets_of_runs(name):
    found = resolve(name)
    assert (found.family, found.model) == ("moeworks", preset(name).model)


def test_case_does_not_matter():
    assert resolve("DeepSeek-V3").model == published("deepseek-v3")


def test_a_config_json_and_its_folder(tmp_path, mixtral):
    path = write(tmp_path / "config.json", mixtral)
    assert resolve(str(path)).model == resolve(str(tmp_path)).model == published("mixtral-8x7b")
    assert resolve(str(path)).family == "mixtral"
    assert resolve(str(path)).stored is None


def test_how_weights_are_stored_is_told(tmp_path, mixtral):
    quantised = mixtral | {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}
    assert resolve(str(write(tmp_path / "a.json", quantised))).stored == "fp8, blocks of [128, 128]"
    mxfp4 = mixtral | {"quantization_config": {"quant_method": "mxfp4"}}
    assert resolve(str(write(tmp_path / "b.json", mxfp4))).stored == "mxfp4"


def test_a_run_and_its_checkpoint(tmp_path):
    config = preset("smoke")
    write(tmp_path / "config.json", to_dict(config))
    step = tmp_path / "checkpoints" / "step-00000012"
    step.mkdir(parents=True)
    write(step / "checkpoint.json", {})
    for path in (tmp_path, tmp_path / "config.json", step):
        assert (resolve(str(path)).family, resolve(str(path)).model) == ("moeworks", config.model)


def test_a_path_that_exists_comes_before_a_preset(tmp_path, monkeypatch, mixtral):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "smoke", mixtral)
    assert resolve("smoke").family == "mixtral"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mixtral-8x7", r"'mixtral-8x7': no such preset, file or folder; did you mean 'mixtral-8x7b'"),
        ("deepseek-ai/DeepSeek-V3", r"no such file or folder; did you mean 'deepseek-v3'"),
        ("runs/gone", r"'runs/gone': no such file or folder; `moeworks list models` names them"),
        ("zzz", r"'zzz': no such preset, file or folder; `moeworks list models` names them"),
        ("", r"'': no such preset, file or folder"),
        ("x" * 5000, r"'x{200}': (cannot be read|no such preset)"),
        ("a\0b", r"no such preset, file or folder"),
    ],
)
def test_names_of_nothing(name, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=message):
        resolve(name)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"model_type": "mixtral"', "config.json: not JSON: Expecting"),
        ("[1, 2]", "config.json: not a JSON object"),
        ("[" * 100_000, "config.json: not JSON"),
        ("{}", "config.json: model_type = None: unknown family; known: .*dbrx, deepseek, .*qwen3_next"),
        ({"model_type": "bert"}, "model_type = 'bert': unknown family; known: .*dbrx, .*qwen3_next"),
        ({"model_type": ["mixtral"]}, r"model_type = \['mixtral'\]: unknown family"),
        ({"model_type": "minicpm"}, "config.json: vocab_size: missing in the config"),
        (
            {"model": {"num_layer": 3}},
            "config.json: model.num_layer: unknown field; did you mean 'num_layers'",
        ),
        ({"model": {"num_layers": 10**9}}, "config.json: num_layers = 1000000000: exceeds 10000"),
        ({"model": 3}, "model_type = None: unknown family"),
    ],
)
def test_files_that_describe_no_model(tmp_path, content, message):
    path = write(tmp_path / "config.json", content)
    with pytest.raises(ConfigError, match=message) as caught:
        resolve(str(path))
    assert str(path) in str(caught.value)


def test_values_that_break_a_rule(tmp_path, mixtral):
    path = write(tmp_path / "config.json", mixtral | {"num_experts_per_tok": 9})
    with pytest.raises(ConfigError, match=r"config.json: router.top_k = 9: must lie between 1 and"):
        resolve(str(path))
    path = write(tmp_path / "config.json", mixtral | {"num_hidden_layers": 10**9})
    with pytest.raises(ConfigError, match="num_layers = 1000000000: exceeds"):
        resolve(str(path))
    path = write(tmp_path / "config.json", mixtral | {"clever_new_attention": True})
    with pytest.raises(ConfigError, match="clever_new_attention = True: not a field of the family mixtral"):
        resolve(str(path))


def test_not_text_and_too_much_of_it(tmp_path):
    path = tmp_path / "config.json"
    path.write_bytes(b"\xff\xfe\0")
    with pytest.raises(ConfigError, match="not JSON"):
        resolve(str(path))
    with path.open("wb") as file:
        file.truncate(LARGEST_CONFIG + 1)
    with pytest.raises(ConfigError, match="bytes are too many"):
        resolve(str(path))


def test_a_folder_without_a_config(tmp_path):
    with pytest.raises(ConfigError, match="a folder without a config"):
        resolve(str(tmp_path))
