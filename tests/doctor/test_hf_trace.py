"""Traces of transformers models."""

import hashlib
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from parity_models import tiny_model
from tiny_zoo import zoo_model

from moeworks.doctor.hf_trace import record_transformers
from moeworks.errors import ConfigError
from moeworks.trace import RoutingTrace, validate_trace


@pytest.fixture
def path(tmp_path):
    return tmp_path / "t.parquet"


def tokens_of(rows: int, length: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(3, 97, (rows, length), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def test_passes_become_sequences_and_padding_goes(path):
    model = tiny_model("deepseek_v3")
    a, b = tokens_of(2, 7), tokens_of(3, 5, seed=1)
    mask = torch.ones_like(a)
    mask[1, 4:] = 0
    backend = SimpleNamespace(to_str=lambda: "{}")
    tokenizer = SimpleNamespace(backend_tokenizer=backend)
    with record_transformers(model, path, tokenizer=tokenizer, fields=("weights", "logits")) as recorder:
        recorder.domain = "a"
        model(a, attention_mask=mask)
        recorder.domain = "b"
        model(b)
        assert recorder.num_tokens == 26
    trace = RoutingTrace.open(path)
    assert validate_trace(trace) == []
    header, tokens = trace.header, trace.tokens
    assert (header.num_experts, header.top_k, header.layers) == (8, 3, (1, 2, 3))
    assert header.fields == ("weights", "logits")
    assert header.model == "DeepseekV3ForCausalLM"
    assert header.engine.startswith("transformers 5.")
    assert header.tokenizer_fingerprint == hashlib.sha256(b"{}").hexdigest()
    assert tokens.sequence.tolist() == [0] * 7 + [1] * 4 + [2] * 5 + [3] * 5 + [4] * 5
    assert tokens.token_id.tolist() == [*a[0].tolist(), *a[1, :4].tolist(), *b.flatten().tolist()]
    assert [tokens.domains[code] for code in tokens.domain[[0, 10, 11, -1]]] == ["a", "a", "b", "b"]
    assert trace.layer(2).logits.shape == (26, 8)


@torch.no_grad()
def test_generation_goes_on_with_its_sequences(path):
    model = tiny_model("mixtral")
    tokens = tokens_of(2, 6)
    mask = torch.ones_like(tokens)
    mask[0, :2] = 0
    with record_transformers(model, path, name="tiny") as recorder:
        options = dict(attention_mask=mask, min_new_tokens=4, max_new_tokens=4, do_sample=False)
        text = model.generate(tokens, pad_token_id=0, **options)
        model.generate(tokens[:1], pad_token_id=0, max_new_tokens=2, min_new_tokens=2)
        assert recorder.num_tokens == 4 + 6 + 2 * 3 + 6 + 1
    trace = RoutingTrace.open(path)
    assert validate_trace(trace) == []
    rows = trace.tokens
    assert rows.sequence.tolist() == [0] * 7 + [1] * 9 + [2] * 7
    assert rows.position.tolist() == [*range(7), *range(9), *range(7)]
    assert rows.phase.tolist() == [0] * 4 + [1] * 3 + [0] * 6 + [1] * 3 + [0] * 6 + [1]
    assert rows.token_id[:7].tolist() == text[0, 2:-1].tolist()
    whole = model(text[1:, :-1], output_router_logits=True)
    for layer, logits in enumerate(whole.router_logits):
        want = np.sort(logits.topk(2).indices.numpy(), axis=1)
        assert np.array_equal(np.sort(trace.ids(layer)[7:16], axis=1), want)


@torch.no_grad()
def test_the_example_of_the_format_page_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[2] / "docs" / "trace-format.md").read_text()
    (code,) = (c for c in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "record_transformers" in c)
    model = tiny_model("mixtral")
    inputs = dict(input_ids=tokens_of(1, 3), pad_token_id=0, eos_token_id=96)
    names = {"model": model, "tokenizer": None, "batch": dict(input_ids=tokens_of(2, 5)), "inputs": inputs}
    exec(compile(code, "trace-format.md", "exec"), names)
    trace = RoutingTrace.open("trace.parquet")
    assert trace.tokens.domains == ("letters",)
    assert trace.tokens.sequence.max() == 2
    assert trace.num_tokens > 13


@torch.no_grad()
def test_stacks(path):
    model = zoo_model("switch_transformers")
    tokens = tokens_of(1, 6)
    inputs = dict(input_ids=tokens, decoder_input_ids=tokens[:, :4])
    unclear = pytest.raises(ConfigError, match="stack: both 'encoder' and 'decoder' ran")
    with unclear, record_transformers(model, path):
        model(**inputs)
    wrong = pytest.raises(ConfigError, match=r"stack = 'x': must be one of \['decoder', 'encoder'\]")
    with wrong, record_transformers(model, path, stack="x"):
        pass
    assert list(path.parent.iterdir()) == []
    with record_transformers(model, path, stack="decoder", fields=("weights", "kept")):
        model(**inputs)
    assert RoutingTrace.open(path).num_tokens == 4


def test_nothing_is_left_of_what_failed(path):
    model = tiny_model("mixtral")
    with pytest.raises(ConfigError, match="nothing was recorded"), record_transformers(model, path):
        pass
    with pytest.raises(KeyError), torch.no_grad(), record_transformers(model, path):
        model(tokens_of(1, 4))
        raise KeyError
    assert list(path.parent.iterdir()) == []
