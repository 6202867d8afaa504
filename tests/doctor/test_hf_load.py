"""Models by transformers: no code that comes with a checkpoint is run, whatever stdin says."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_run import write_texts
from tiny_tokenizers import byte_backend

from moeworks.cli.main import main
from moeworks.doctor.hf_load import load_transformers
from moeworks.errors import CheckpointError

CODE = """
from pathlib import Path
Path({marker!r}).write_text("this ran")
from transformers import PretrainedConfig
class HostileConfig(PretrainedConfig):
    model_type = "hostile"
"""


SMALL = {
    "model_type": "qwen3_moe", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1,
    "num_key_value_heads": 1, "head_dim": 8, "vocab_size": 64, "num_experts": 2, "num_experts_per_tok": 1,
    "moe_intermediate_size": 8, "intermediate_size": 8,
}  # fmt: skip


@pytest.fixture
def marker(tmp_path) -> Path:
    return tmp_path / "it-ran"


@pytest.fixture
def hostile(tmp_path, marker) -> Path:
    """A published checkpoint whose loading, as its config.json asks, writes the marker."""
    folder = tmp_path / "hostile"
    (folder / "custom_generate").mkdir(parents=True)
    config = {
        "model_type": "hostile",
        "architectures": ["HostileForCausalLM"],
        "auto_map": {
            "AutoConfig": "conf.HostileConfig",
            "AutoModelForCausalLM": "conf.HostileForCausalLM",
            "AutoTokenizer": [None, "conf.HostileTokenizer"],
        },
    }
    (folder / "config.json").write_text(json.dumps(config))
    for name in ("conf.py", "custom_generate/generate.py"):
        (folder / name).write_text(CODE.format(marker=str(marker)))
    byte_backend().save(str(folder / "tokenizer.json"))
    tokenizer = {"tokenizer_class": "HostileTokenizer", "auto_map": config["auto_map"]}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    (folder / "model.safetensors").write_bytes(b"\x02" + bytes(7) + b"{}")
    return folder


def commands(folder: Path, texts: Path) -> dict[str, list[str]]:
    out = str(folder.parent / "t.parquet")
    return {
        "trace": ["trace", str(folder), "--data", str(texts), "--json", "-o", out],
        "trace by transformers": [
            "trace", str(folder), "--data", str(texts), "--engine", "transformers", "-o", out
        ],
        "eval": ["eval", str(folder), "--data", str(texts), "--json"],
        "generate": ["generate", str(folder), "a"],
        "doctor": ["doctor", str(folder), "--json"],
        "info": ["info", str(folder), "--json"],
        "plan": ["plan", str(folder), "--json"],
    }  # fmt: skip


@pytest.mark.parametrize("verb", commands(Path(), Path()))
def test_no_verb_runs_or_asks(verb, hostile, marker, tmp_path, capsys, monkeypatch):
    stdin = io.StringIO("y\ny\ny\n")
    monkeypatch.setattr(sys, "stdin", stdin)
    texts = write_texts(tmp_path / "texts", documents=2)
    assert main(commands(hostile, texts)[verb]) == 2
    assert not marker.exists()
    assert stdin.tell() == 0
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("moeworks: error: ")


def test_a_pipe_that_says_yes(hostile, marker, tmp_path):
    texts = write_texts(tmp_path / "texts", documents=2)
    argv = [sys.executable, "-m", "moeworks", *commands(hostile, texts)["trace"]]
    (tmp_path / "yes").write_text("y\n" * 9)
    with open(tmp_path / "yes", "rb") as yes:
        done = subprocess.run(argv, stdin=yes, capture_output=True, text=True, check=False)
        assert os.lseek(yes.fileno(), 0, os.SEEK_CUR) == 0
    assert (done.returncode, done.stdout) == (2, "")
    assert "needs Python code that comes with the checkpoint" in done.stderr
    assert not marker.exists()


def test_code_for_a_model_that_transformers_knows(hostile, marker, monkeypatch, capsys):
    config = json.loads((hostile / "config.json").read_text())
    (hostile / "config.json").write_text(json.dumps(config | SMALL))
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\ny\n"))
    with pytest.raises(CheckpointError):
        load_transformers(hostile)
    assert not marker.exists()
    assert "Do you wish" not in capsys.readouterr().out


def test_a_config_of_more_than_the_files_hold(hostile):
    (hostile / "config.json").write_text(json.dumps({"model_type": "qwen3_moe"}))  # 15 billion parameters
    with pytest.raises(CheckpointError, match=r"describes 15,\d+,\d+,\d+ parameters, and .* hold 10 bytes"):
        load_transformers(hostile)


@pytest.mark.parametrize(
    "asks",
    [
        {"attn_implementation": "someone/kernel"},
        {"_attn_implementation_internal": "someone/kernel@main:function"},
        {"experts_implementation": {"text_config": "someone/kernel"}},
        {"text_config": {"_attn_implementation": "someone/kernel"}},
    ],
)
def test_kernels_from_the_hub_are_refused(hostile, asks):
    (hostile / "config.json").write_text(json.dumps(SMALL | asks))
    with pytest.raises(CheckpointError, match=r"'someone/kernel.*', a kernel to be downloaded"):
        load_transformers(hostile)


def test_adapters_are_refused(hostile):
    (hostile / "config.json").write_text(json.dumps(SMALL))
    (hostile / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "someone/model"}))
    with pytest.raises(CheckpointError, match="holds an adapter"):
        load_transformers(hostile)


@pytest.mark.parametrize("name", ["pipeline", "AutoTokenizer", "GenerationConfig", "logging", "", 3, None])
def test_architectures_that_are_no_models(hostile, name):
    (hostile / "config.json").write_text(json.dumps(SMALL | {"architectures": [name]}))
    with pytest.raises(CheckpointError):
        load_transformers(hostile)
