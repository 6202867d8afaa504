"""`moeworks trace --engine`: transformers computes what moeworks does not know, and both tell the same."""

import json
from importlib import util
from pathlib import Path

import numpy as np
import pytest
import torch
from parity_models import randomise_
from safetensors.torch import load_file, save_file
from tiny_families import TINY
from tiny_run import write_texts
from tiny_tokenizers import VOCAB, byte_backend
from tiny_zoo import zoo_config
from transformers import AutoConfig, AutoModelForCausalLM

from moeworks.cli.main import main
from moeworks.doctor.hf_load import load_transformers
from moeworks.errors import CheckpointError
from moeworks.trace import RoutingTrace


def saved(folder: Path, config) -> Path:
    config.vocab_size = VOCAB
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    randomise_(model)
    model.save_pretrained(folder)
    byte_backend(framed=True).save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    return write_texts(tmp_path_factory.mktemp("engine") / "texts", documents=6)


@pytest.fixture(scope="module")
def unknown(tmp_path_factory):
    """A family that moeworks does not know."""
    return saved(tmp_path_factory.mktemp("lfm2"), zoo_config("lfm2_moe"))


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    tiny = TINY["deepseek_v3"]
    config = AutoConfig.for_model(tiny.model_type, **tiny.options)
    return saved(tmp_path_factory.mktemp("v3"), config)


def traced(folder: Path, texts: Path, out: Path, *options: str) -> RoutingTrace:
    assert main(["trace", str(folder), "--data", str(texts), "-o", str(out), *options]) == 0
    return RoutingTrace.open(out)


def test_an_unknown_family(unknown, texts, tmp_path, capsys):
    trace = traced(unknown, texts, tmp_path / "t.parquet", "--json", "--batch-size", "3")
    summary = json.loads(capsys.readouterr().out)
    assert summary["engine"] == trace.header.engine
    assert trace.header.engine.startswith("transformers 5.")
    assert summary["findings"] == []
    assert set(summary["domains"]) == {"notes", "poems"}
    assert trace.header.layers == (1, 2, 3)
    assert trace.tokens.position.max() == 63  # its longest context
    # The first context, alone and without padding, in the model itself.
    first = np.flatnonzero(trace.tokens.sequence == trace.tokens.sequence[0])
    tokens = torch.from_numpy(trace.tokens.token_id[first].astype(np.int64))[None]
    model = AutoModelForCausalLM.from_pretrained(unknown, trust_remote_code=False)
    logits = []
    model.model.layers[3].feed_forward.gate.register_forward_hook(lambda m, a, out: logits.append(out[0]))
    with torch.no_grad():
        model(tokens)
    scores = logits[0].sigmoid() + model.model.layers[3].feed_forward.expert_bias
    want = scores.topk(3).indices.sort(dim=1).values
    assert (np.sort(trace.ids(3)[first], axis=1) == want.numpy()).mean() > 0.99


def test_both_engines_agree(known, texts, tmp_path, capsys):
    ours = traced(known, texts, tmp_path / "a.parquet", "--engine", "moeworks")
    theirs = traced(known, texts, tmp_path / "b.parquet", "--engine", "transformers")
    out = capsys.readouterr().out
    assert "computed by moeworks " in out
    assert "computed by transformers " in out
    assert ours.header.layers == theirs.header.layers
    assert ours.header.tokenizer_fingerprint == theirs.header.tokenizer_fingerprint
    for column in ("token_id", "position", "sequence", "document", "domain"):
        assert np.array_equal(getattr(ours.tokens, column), getattr(theirs.tokens, column))
    for layer in ours.header.layers:
        a, b = np.sort(ours.ids(layer), axis=1), np.sort(theirs.ids(layer), axis=1)
        assert (a == b).mean() > 0.99
        assert np.abs(ours.layer(layer).margin - theirs.layer(layer).margin).mean() < 1e-2


def test_auto_takes_moeworks_where_it_can(known, texts, tmp_path):
    trace = traced(known, texts, tmp_path / "a.parquet", "--max-tokens", "50")
    assert trace.header.engine.startswith("moeworks ")


def refused(capsys, *argv: str) -> str:
    assert main(["trace", *argv]) == 2
    return capsys.readouterr().err


def test_refusals(unknown, texts, tmp_path, capsys, monkeypatch):
    common = ["--data", str(texts), "-o", str(tmp_path / "t.parquet")]
    assert "unknown family" in refused(capsys, str(unknown), *common, "--engine", "moeworks")
    assert "is no published checkpoint" in refused(capsys, str(tmp_path), *common, "--engine", "transformers")
    assert "exceeds model.max_seq_len = 64" in refused(capsys, str(unknown), *common, "--context", "65")
    assert "--engine has no effect with --dump" in refused(
        capsys, "x", "--dump", "sglang", "--engine", "moeworks"
    )
    monkeypatch.setattr(util, "find_spec", lambda name: None)
    assert "pip install 'moeworks[transformers]'" in refused(capsys, str(unknown), *common)
    assert list(tmp_path.iterdir()) == []


def test_what_transformers_would_fill_in_silently_is_refused(unknown, tmp_path):
    for file in unknown.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["model.layers.2.feed_forward.gate.weight"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"has no tensor for model.layers.2.feed_forward.gate.weight"):
        load_transformers(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "none of them"}')
    with pytest.raises(CheckpointError, match="transformers cannot load it"):
        load_transformers(tmp_path)
