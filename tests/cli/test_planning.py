"""What `moeworks plan` prints and puts into JSON."""

import json

import pytest

from moeworks.cli.main import main
from moeworks.plan.devices import DEVICES


@pytest.fixture
def printed(capsys):
    """What `moeworks plan` prints."""

    def text(*argv: str) -> str:
        assert main(["plan", *argv]) == 0
        return capsys.readouterr().out

    return text


@pytest.fixture
def record(printed):
    """The JSON that it prints."""
    return lambda *argv: json.loads(printed(*argv, "--json"))


README = ["deepseek-v3", "--gpu", "h200", "--context", "32768", "--batch", "64", "--dtype", "fp8"]


# Serving.


def test_the_readmes_command(record):
    plan = record(*README)
    serving = plan["serving"]
    assert plan["kv_bytes_per_token"] == 70_272
    assert plan["parameters"]["total"] == 671_026_404_352
    assert serving["weight_bytes"] == pytest.approx(671e9, rel=0.005)
    assert serving["cache_bytes"] == 64 * 32_768 * 70_272
    assert serving["devices_needed"] == 7
    even, tensor, expert = serving["splits"]
    assert (even["needed"], tensor["needed"], expert["needed"]) == (7, None, 8)
    assert even["load"]["total"] == sum(even["load"][key] for key in ("weights", "cache", "activations"))
    assert even["decode"]["bound"] == "experts"
    assert plan["verdicts"] and plan["note"] is None
    assert "training" not in plan


def test_the_readmes_page(printed):
    text = printed(*README)
    for part in ("h200: 141 GB, 4.8 TB/s", "673.2 GB", "147.4 GB", "222.4", "never fits", "What dominates"):
        assert part in text
    assert "without the router's groups" in text


def test_parameters_per_device(record, printed):
    assert record("deepseek-v3", "--gpu-memory", "20B-params")["serving"]["devices_needed"] == 34
    assert "needed  34" in printed("deepseek-v3", "--gpu-memory", "20B-params")


def test_memory_given_by_hand(record):
    plan = record("mixtral-8x7b", "--gpu-memory", "20GB")
    assert plan["serving"]["device"]["memory"] == 20 * 10**9
    assert plan["serving"]["usable_bytes"] == 18 * 10**9
    assert all(split["decode"] is None for split in plan["serving"]["splits"])
    both = record("mixtral-8x7b", "--gpu", "h100", "--gpu-memory", "20GB")
    assert both["serving"]["splits"][0]["decode"] is not None


def test_traffic_between_eight_nodes(record):
    nodes = record("deepseek-v3", "--gpu", "h800", "--gpus", "64", "--dtype", "fp8")["serving"][
        "traffic_nodes"
    ]
    assert nodes["per_token_unlimited"] == pytest.approx(5.2947, abs=1e-4)
    assert nodes["per_token"] == pytest.approx(3.629, abs=1e-3)
    assert nodes["limit"] == 4
    v2 = record("deepseek-v2", "--gpus", "8")["serving"]["traffic_devices"]
    assert (round(v2["per_token_unlimited"], 2), v2["limit"]) == (4.46, 3)


def test_experts_touched(record):
    touched = record("deepseek-v3", "--batch", "4", "--gpus", "64")["serving"]["experts_touched"]
    assert touched == pytest.approx(30.5, abs=0.05)


@pytest.mark.parametrize("gpu", DEVICES)
def test_every_device_can_be_planned_with(printed, gpu):
    text = printed("qwen3-30b-a3b", "--gpu", gpu, "--dtype", "int4", "--batch", "4")
    assert "What dominates" in text and "tokens/s" in text


def test_one_device_has_one_row(printed):
    text = printed("olmoe-1b-7b")
    assert "even" in text and "tensor" not in text and "Expert-parallel" not in text


def test_a_context_beyond_the_models_is_noted(printed, record):
    argv = ["mixtral-8x7b", "--context", "100000"]
    assert "note: 100,000 tokens are more than the 32,768 positions" in printed(*argv)
    assert record(*argv)["note"].startswith("100,000 tokens are more")


def test_too_few_devices(printed):
    text = printed("mixtral-8x7b", "--gpus", "1")
    assert "does not fit, needs at least 2 devices" in text
    assert "Decode at" not in text


def test_dense_models_and_own_presets(printed):
    assert "experts touched" not in printed("llama-3-8b")
    assert "What dominates" in printed("laptop")


# Training.


def test_training_of_deepseek_v3(record, printed):
    argv = ["deepseek-v3", "--gpu", "h800", "--tokens", "14.8T", "--gpus", "2048", "--mfu", "0.4373"]
    training = record(*argv, "--price", "2")["training"]
    assert training["device_seconds"] / 3600 == pytest.approx(2_664_000, rel=0.005)
    assert training["cost"] == pytest.approx(5.328e6, rel=0.005)
    text = printed(*argv)
    assert "54.4 days" in text and "cost" not in text
    assert "at 2 per device and hour" in printed(*argv, "--price", "2.0")


def test_training_takes_what_holds_the_state(record):
    training = record("mixtral-8x7b", "--tokens", "1T")["training"]
    assert training["devices"] == training["devices_for_state"] == 11
    assert (training["mfu"], training["seq_len"]) == (0.4, 4096)
    assert "serving" not in training


# Devices.


def test_the_list_of_devices_has_sources(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "250")
    assert main(["list", "gpus"]) == 0
    text = capsys.readouterr().out
    for device in DEVICES.values():
        assert device.name in text and device.source in text
    assert main(["list", "gpus", "h2", "--json"]) == 0
    (h200,) = json.loads(capsys.readouterr().out)
    assert (h200["name"], h200["memory"]) == ("h200", 141 * 10**9)
