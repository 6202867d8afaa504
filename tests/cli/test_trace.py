"""`moeworks trace` on the run that test_train trains."""

import json

import numpy as np
import pytest
import torch
from traces import random_trace

from moeworks.cli.main import main
from moeworks.data.tokenizer import load_tokenizer
from moeworks.pretrained import load
from moeworks.trace import RoutingTrace, validate_trace
from moeworks.trace.convert.arrays import to_arrays
from moeworks.trace.convert.sglang import to_sglang
from moeworks.trace.convert.vllm import to_vllm


def traced(capsys, *argv: str) -> dict:
    assert main(["trace", *argv, "--json"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return json.loads(out)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "t.parquet"


def test_every_token_of_every_document(finished, texts, path, capsys):
    summary = traced(capsys, str(finished), "--data", str(texts), "-o", str(path))
    trace = RoutingTrace.open(path)
    tokenizer, model = load_tokenizer(finished / "tokenizer.json"), load(finished)
    files = sorted(texts.rglob("*.md"))
    assert summary["documents"] == len(files) == 30
    assert set(summary["domains"]) == {"notes", "poems"}
    assert summary["tokens"] == trace.num_tokens == sum(summary["domains"].values())
    assert summary["findings"] == []
    assert summary["recording_share"] > 0
    by_text = {}
    for document in range(30):
        rows = trace.tokens.document == document
        ids = trace.tokens.token_id[rows]
        starts = trace.tokens.position[rows] == 0
        assert ids[0] == tokenizer.end_of_text_id
        by_text[tokenizer.decode(ids[1:])] = (ids, np.split(np.arange(len(ids)), np.flatnonzero(starts)[1:]))
    assert set(by_text) == {file.read_text() for file in files}
    document = 4
    rows = np.flatnonzero(trace.tokens.document == document)
    first = rows[trace.tokens.sequence[rows] == trace.tokens.sequence[rows[0]]]
    output = model(torch.from_numpy(trace.tokens.token_id[first].astype(np.int64))[None])
    for layer, routing in zip(trace.header.layers, output.routings, strict=True):
        same = trace.ids(layer)[first] == routing.expert_ids_TK.numpy()
        assert same.mean() > 0.99  # padding changes the order of float32 sums, and with it a tie
        np.testing.assert_allclose(
            trace.weights(layer)[first], routing.routing_weights_TK.detach().numpy(), atol=2e-3
        )


def test_the_first_tokens_are_recorded_in_reading_order(finished, path, tmp_path, capsys):
    """Batches are sorted by length; what is recorded, and its order in the file, must not be."""
    data = tmp_path / "d.jsonl"
    texts = [f"short {number}" for number in range(20)] + ["long one " * 12] * 4
    data.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    options = ["--data", str(data), "-o", str(path), "--batch-size", "4"]
    traced(capsys, str(finished), *options)
    whole = RoutingTrace.open(path).load()
    assert (np.diff(whole.tokens.sequence) >= 0).all() and (np.diff(whole.tokens.document) >= 0).all()
    assert traced(capsys, str(finished), *options, "--max-tokens", "150")["tokens"] == 150
    first = RoutingTrace.open(path).load()
    assert first.tokens.document.max() < 20  # the long texts begin after 20 short ones
    for name in ("token_id", "position", "sequence", "document"):
        np.testing.assert_array_equal(getattr(first.tokens, name), getattr(whole.tokens, name)[:150])
    for layer in first.header.layers:
        same = first.ids(layer) == whole.ids(layer)[:150]
        assert same.mean() > 0.99  # padding changes the order of float32 sums, and with it a tie


def test_weights_in_another_type(finished, texts, path, capsys):
    options = ["--data", str(texts), "-o", str(path), "--max-tokens", "50"]
    assert traced(capsys, str(finished), *options, "--dtype", "bf16")["tokens"] == 50


def test_identity_and_fields(finished, texts, path, capsys):
    options = ["--fields", "weights", "logits", "--max-tokens", "300", "--batch-size", "2", "--context", "20"]
    summary = traced(capsys, str(finished), "--data", str(texts), "-o", str(path), *options)
    header = RoutingTrace.open(path).header
    assert summary["tokens"] == 300
    assert (header.num_experts, header.top_k, header.layers, header.step) == (4, 2, (0, 1), 12)
    assert header.fields == ("weights", "logits")
    assert header.model == str(finished)
    assert header.engine.startswith("moeworks ")
    assert header.tokenizer_fingerprint == load_tokenizer(finished / "tokenizer.json").fingerprint
    assert RoutingTrace.open(path).tokens.position.max() == 19
    assert validate_trace(RoutingTrace.open(path)) == []


def test_words_for_people(finished, texts, path, capsys):
    assert main(["trace", str(finished), "--data", str(texts), "-o", str(path)]) == 0
    out = capsys.readouterr().out
    assert "2 MoE layers of 4 experts, top 2" in out
    assert f"{path}: " in out
    assert "bytes an expert id" in out
    assert "of the forward passes" in out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data", "gone"], "gone: no such file or folder"),
        (["--data", "{texts}", "--batch-size", "0"], "batch_size = 0: must be at least 1"),
        (["--data", "{texts}", "--max-tokens", "0"], "max_tokens = 0"),
        (["--data", "{texts}", "--context", "129"], "context = 129: exceeds model.max_seq_len = 128"),
        (["--data", "{texts}", "-o", "{tmp}/gone/t.parquet"], "gone/t.parquet: cannot be written"),
    ],
)
def test_bad_options(finished, texts, tmp_path, capsys, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    filled = [option.format(texts=texts, tmp=tmp_path) for option in options]
    assert main(["trace", str(finished), *filled]) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_run(texts, tmp_path, capsys):
    assert main(["trace", str(tmp_path), "--data", str(texts)]) == 2
    assert "neither a run" in capsys.readouterr().err


def test_data_is_needed(finished, capsys):
    assert main(["trace", str(finished)]) == 2
    assert "data = (): names no text: give --data" in capsys.readouterr().err


# Dumps of other engines.


@pytest.fixture
def dumps(tmp_path):
    trace = random_trace(domains=("all",))
    to_vllm(trace, tmp_path / "vllm.jsonl")
    to_sglang(trace, tmp_path / "sglang.pt")
    to_arrays(trace, tmp_path / "arrays.npz")
    return tmp_path


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("vllm.jsonl", ["--dump", "vllm", "--num-experts", "8"]),
        ("sglang.pt", ["--dump", "sglang"]),
        ("arrays.npz", ["--dump", "arrays", "--num-experts", "8", "--layers", "0", "1", "2"]),
    ],
)
def test_dumps(dumps, path, capsys, name, options):
    summary = traced(capsys, str(dumps / name), *options, "--name", "m", "-o", str(path))
    trace = RoutingTrace.open(path)
    assert (summary["tokens"], summary["findings"], summary["recording_share"]) == (60, [], None)
    assert trace.header.model == "m"
    assert np.array_equal(trace.ids(2), random_trace().ids(2))


def test_findings_are_told(tmp_path, path, capsys):
    ids = np.concatenate([random_trace().ids(0)[:, None], np.full((60, 1, 2), 3)], axis=1)
    np.savez(tmp_path / "a.npz", x_ids=ids)
    argv = ["trace", str(tmp_path / "a.npz"), "--dump", "arrays", "--num-experts", "8", "-o", str(path)]
    assert main(argv) == 0
    assert "warning: filler (layer 1, 60 tokens): the same id in every slot" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["vllm.jsonl", "--dump", "vllm"], "num_experts = None: --dump vllm needs it"),
        (
            ["sglang.pt", "--dump", "sglang", "--num-experts", "8"],
            "--num-experts has no effect with --dump sglang",
        ),
        (
            ["arrays.npz", "--dump", "arrays", "--num-experts", "8", "--data", "x"],
            "--data has no effect with",
        ),
        (["x", "--data", "y", "--name", "m"], "--name has no effect without --dump"),
        (["arrays.npz", "--dump", "sglang"], "not a file of torch.save: it has no data.pkl"),
        (["sglang.pt", "--dump", "vllm", "--num-experts", "8"], "cannot be read as a response of vLLM"),
        (["vllm.jsonl", "--dump", "vllm", "--num-experts", "2"], "has the id 3, and num_experts is 2"),
    ],
)
def test_bad_dumps(dumps, path, capsys, argv, message):
    assert main(["trace", str(dumps / argv[0]), *argv[1:], "-o", str(path)]) == 2
    assert message in capsys.readouterr().err
    assert not path.exists()


def test_a_dense_model(fields, tmp_path, texts, capsys):
    argv = ["train", "smoke", *fields, "--dense-twin", "--train.steps", "1", "--out", str(tmp_path)]
    assert main([*argv, "--name", "dense"]) == 0
    capsys.readouterr()
    assert main(["trace", str(tmp_path / "dense"), "--data", str(texts), "-o", f"{tmp_path}/t"]) == 2
    assert "has no MoE layer" in capsys.readouterr().err


def test_an_interrupt_leaves_nothing(finished, texts, path, capsys, monkeypatch):
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("moeworks.cli.tracing._record", stop)
    assert main(["trace", str(finished), "--data", str(texts), "-o", str(path)]) == 130
    assert list(path.parent.iterdir()) == []
