"""The adapter to lm-eval, on its own interface, without network."""

import itertools
import json
import math
import sys
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_chain import chain_model, spaced_tokenizer
from tiny_tokenizers import BOS, EOS, VOCAB, write_folder

from moeworks import load
from moeworks.config.generate import GenerationConfig, SamplingConfig
from moeworks.data.model_tokenizer import ModelTokenizer, tokenizer_of
from moeworks.errors import ConfigError, MissingDependencyError
from moeworks.evaluate.harness import evaluate_tasks, harness_model, rolling_rows
from moeworks.generate.complete import complete


def request(*args):
    return SimpleNamespace(args=args)


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("harness") / "m"
    write_folder(folder)
    return load(folder).double(), tokenizer_of(folder, VOCAB)


@pytest.fixture(scope="module")
def adapter(parts):
    pytest.importorskip("lm_eval", reason="lm-eval is not installed")
    return harness_model(*parts, batch_tokens=100)


def logprobs(model, before: list[int], after: list[int]) -> tuple[float, bool]:
    ids = [*before, *after]
    with torch.no_grad():
        logits = model(torch.tensor([ids[:-1]])).logits_BLV[0, -len(after) :].log_softmax(-1)
    chosen = logits.gather(1, torch.tensor(after)[:, None]).sum()
    return float(chosen), logits.argmax(-1).tolist() == after


def test_it_is_an_lm_of_the_harness(adapter):
    from lm_eval.api.model import LM  # noqa: PLC0415  (optional)

    assert isinstance(adapter, LM)
    assert (adapter.rank, adapter.world_size) == (0, 1)


def test_loglikelihood(adapter, parts):
    model, _ = parts
    pairs = [("one two", " three"), ("", "x"), ("spaces go over  ", "b"), ("é", "😀")]
    found = adapter.loglikelihood([request(*pair) for pair in pairs])
    cut = [("one two", " three"), ("", "x"), ("spaces go over", "  b"), ("é", "😀")]
    for (value, greedy), (before, after) in zip(found, cut, strict=True):
        want, best = logprobs(model, [BOS, *before.encode()], list(after.encode()))
        assert value == pytest.approx(want) and greedy == best


def test_a_context_that_is_too_long_loses_its_start(adapter, parts):
    (value, _), = adapter.loglikelihood([request("x" * 200, "yz")])  # fmt: skip
    want, _ = logprobs(parts[0], list(b"x" * 63), list(b"yz"))
    assert value == pytest.approx(want)


def test_loglikelihood_rolling(adapter, parts):
    text = "word " * 30  # 150 tokens; 64 are read at once
    (value,) = adapter.loglikelihood_rolling([request(text)])
    ids = [BOS, *text.encode()]
    want = logprobs(parts[0], ids[:1], ids[1:65])[0] + logprobs(parts[0], ids[64:65], ids[65:129])[0]
    want += logprobs(parts[0], ids[86:129], ids[129:151])[0]
    assert value == pytest.approx(want)
    assert adapter.loglikelihood_rolling([request("")]) == [0.0]


@given(st.integers(0, 90), st.integers(2, 20))
def test_rolling_rows_are_those_of_the_harness(length, limit):
    utils = pytest.importorskip("lm_eval.utils", reason="lm-eval is not installed")
    ids = list(range(1, length + 1))
    ours = [(list(row.ids), row.predicted) for row in rolling_rows(ids, [0], limit)]
    theirs = [
        utils.make_disjoint_window(pair)
        for pair in utils.get_rolling_token_windows(
            token_list=ids, prefix_token=0, max_seq_len=limit, context_len=1
        )
    ]
    assert [row[len(row) - n :] for row, n in ours] == [after for _, after in theirs]
    for (row, n), (before, _) in zip(ours, theirs, strict=True):
        assert row[: len(row) - n][-len(before) :] == before


def test_generate_until(adapter, parts):
    greedy = GenerationConfig(max_new_tokens=12, sampling=SamplingConfig(temperature=0))
    tried = ["abc", "d", "ef gh", "i", "jk", "lmn", "o p q", "r", "st", "uvw"]
    texts = complete(*parts, [[BOS, *text.encode()] for text in tried], greedy)
    # A model with random weights: take what it has much to say to.
    by_length = sorted(zip(texts, tried, strict=True), key=lambda pair: -len(pair[0].text))[:3]
    whole, contexts = [c.text for c, _ in by_length], [text for _, text in by_length]
    stop = whole[0][1]
    asked = [
        request(contexts[0], {"until": [stop], "max_gen_toks": 12}),
        request(contexts[1], {"until": "\0", "max_gen_toks": 12, "do_sample": False, "temperature": 0.7}),
        request(contexts[2], {"until": [], "max_gen_toks": 12}),
    ]
    want = [whole[0][: whole[0].index(stop)], whole[1].split("\0")[0], whole[2]]
    assert adapter.generate_until(asked) == want
    assert len(adapter.generate_until([request("x" * 300, {"until": []})])) == 1  # of 256 tokens, context 64


def test_generated_answers_keep_their_first_space():
    """As the harness's own models do: the space before the first word is part of the answer."""
    pytest.importorskip("lm_eval", reason="lm-eval is not installed")
    tokenizer = ModelTokenizer(spaced_tokenizer(["▁Hello", "▁world", "!"]), (1,), (2,))
    spaced = harness_model(chain_model(6, {3: 4, 4: 5, 5: 2}), tokenizer)
    assert spaced.generate_until([request("Hello", {"until": ["!"]}), request("Hello", {"until": None})]) == [
        " world",
        " world!",
    ]
    assert spaced.generate_until([request("Hello", {"until": [" world"]})]) == [""]


def test_contexts_that_are_too_long_are_counted(parts):
    pytest.importorskip("lm_eval", reason="lm-eval is not installed")
    adapter = harness_model(*parts)
    adapter.generate_until([request("x" * 31, {"until": [], "max_gen_toks": 32}), request("x" * 3, {})])
    adapter.loglikelihood([request("x" * 62, "y")])
    assert adapter.shortened == 0
    adapter.generate_until([request("x" * 32, {"until": [], "max_gen_toks": 32})])
    adapter.loglikelihood([request("x" * 65, "y")])
    assert adapter.shortened == 2


def test_chat(adapter):
    text = adapter.apply_chat_template([{"role": "user", "content": "hi"}])
    assert text == "<bos>[user]hi<eos>"
    assert adapter.chat_template() and adapter.tokenizer_name == "moeworks-259"
    assert adapter._context(text) == [BOS, *b"[user]hi", EOS]  # one <bos>, not two


def test_a_task_of_the_harness(parts, monkeypatch, tmp_path):
    """A multiple-choice task of a local file goes through the whole harness."""
    tasks = pytest.importorskip("lm_eval.tasks", reason="lm-eval is not installed")
    pytest.importorskip("datasets", reason="datasets is not installed")
    rows = [json.dumps({"q": "one", "a": [" two", " three"], "y": i % 2}) for i in range(6)]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows))
    (tmp_path / "tiny.yaml").write_text(
        f"task: tiny_choice\ndataset_path: json\ndataset_kwargs:\n  data_files: {tmp_path}/rows.jsonl\n"
        "test_split: train\noutput_type: multiple_choice\ndoc_to_text: '{{q}}'\ndoc_to_choice: '{{a}}'\n"
        "doc_to_target: y\nmetric_list:\n  - metric: acc\n"
    )
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    manager = tasks.TaskManager(include_path=str(tmp_path), include_defaults=False)
    monkeypatch.setattr("moeworks.evaluate.harness._known_tasks", lambda: manager)
    found = evaluate_tasks(*parts, ["tiny_choice"])
    assert found["tiny_choice"]["acc"] == 0.5 and math.isfinite(found["tiny_choice"]["acc_stderr"])


def test_an_unknown_task(parts):
    pytest.importorskip("lm_eval", reason="lm-eval is not installed")
    with pytest.raises(ConfigError, match="tasks = 'helaswag': lm-eval has no such task"):
        evaluate_tasks(*parts, ["helaswag"])


def test_without_lm_eval(parts, monkeypatch):
    for name in itertools.chain(["lm_eval"], [n for n in sys.modules if n.startswith("lm_eval.")]):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'moeworks\[lm-eval\]'"):
        harness_model(*parts)
