"""`moeworks generate` on published folders: options, the makers' advice, chat, batches, JSON."""

import json
import shutil
from pathlib import Path

import pytest
from tiny_published import DEEPSEEK
from tiny_tokenizers import BOS, VOCAB, write_folder

from moeworks import load
from moeworks.cli.main import main
from moeworks.config.generate import SamplingConfig
from moeworks.data.model_tokenizer import tokenizer_of
from moeworks.generate.loop import generate

MTP = DEEPSEEK | dict(vocab_size=VOCAB, max_position_embeddings=64)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("published") / "m"
    write_folder(folder, generation={"do_sample": True, "temperature": 1.3, "top_k": 30})
    return folder


@pytest.fixture(scope="module")
def ahead(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("ahead") / "m"
    write_folder(folder, config=MTP, tokenizer={"eos_token": None})
    return folder


def written(capsys, *argv) -> str:
    assert main(["generate", *map(str, argv)]) == 0
    return capsys.readouterr().out


def refused(capsys, *argv) -> str:
    assert main(["generate", *map(str, argv)]) == 2
    return capsys.readouterr().err


def expected(folder: Path, prompt: str, count: int, seed: int = 0, **sampling) -> str:
    net, tokenizer = load(folder), tokenizer_of(folder, VOCAB)
    ids = [BOS, *prompt.encode()]
    options = dict(sampling=SamplingConfig(**sampling), seed=seed, stop_ids=tokenizer.stop_ids)
    return tokenizer.decode(list(generate(net, ids, count, **options)))


def test_what_the_makers_recommend_holds_unless_an_option_says_otherwise(model, capsys):
    run = [model, "ab", "--max-new-tokens", "20"]
    assert written(capsys, *run) == "ab" + expected(model, "ab", 20, temperature=1.3, top_k=30) + "\n"
    want = "ab" + expected(model, "ab", 20, temperature=0.7, top_k=30, top_p=0.9) + "\n"
    assert written(capsys, *run, "--temperature", "0.7", "--top-p", "0.9") == want
    assert written(capsys, *run, "--temperature", "0.7", "--top-p", "0.9", "--no-stream") == want


def test_json_and_batches(model, capsys):
    run = [
        "--max-new-tokens",
        "12",
        "--seed",
        "5",
        "--min-p",
        "0.01",
        "--repetition-penalty",
        "1.1",
        "--json",
    ]
    both = json.loads(written(capsys, model, "ab", "longer one", *run))["completions"]
    alone = json.loads(written(capsys, model, "ab", *run))["completions"]
    assert both[0] == alone[0]
    assert [(c["prompt"], c["seed"], c["prompt_tokens"]) for c in both] == [
        ("ab", 5, 3),
        ("longer one", 6, 11),
    ]
    sampling = dict(temperature=1.3, top_k=30, min_p=0.01, repetition_penalty=1.1)
    assert both[1]["text"] == expected(model, "longer one", 12, 6, **sampling)
    lines = written(capsys, model, "ab", "cd", "--max-new-tokens", "0").splitlines()
    assert lines == ["--- 1 of 2", "ab", "--- 2 of 2", "cd"]


def test_chat_shows_the_answer(model, capsys):
    out = json.loads(written(capsys, model, "hi", "--chat", "--system", "be kind", "--json"))["completions"][
        0
    ]
    assert out["prompt_tokens"] == 1 + len("[system]be kind[user]hi") + 1
    shown = written(capsys, model, "hi", "--chat", "--system", "be kind")
    assert shown == out["text"] + "\n"


def test_stop(model, capsys):
    free = json.loads(written(capsys, model, "q", "--max-new-tokens", "40", "--json"))["completions"][0][
        "text"
    ]
    stop = free[2]
    cut = json.loads(
        written(capsys, model, "q", "--max-new-tokens", "40", "--json", "--stop", stop, "--stop", "~~")
    )
    assert cut["completions"][0]["text"] == free[: free.index(stop)]
    assert cut["completions"][0]["reason"] == "stop"


def test_speculative(ahead, capsys):
    run = [ahead, "ab", "--max-new-tokens", "20"]
    want = written(capsys, *run, "--temperature", "0")
    assert main(["generate", *map(str, run), "--speculative"]) == 0
    out, err = capsys.readouterr()
    assert out == want
    assert err.startswith("moeworks: note: drafts accepted: ") and err.endswith("%)\n")
    record = json.loads(written(capsys, *run, "--speculative", "--json"))
    assert record["accepted"] <= record["drafted"] and 0 <= record["acceptance_rate"] <= 1
    assert main(["generate", *map(str, run), "--speculative", "--draft-tokens", "3"]) == 0
    out, err = capsys.readouterr()
    assert out == want and err.count("%") == 4 and "; by place: " in err
    two = [ahead, "ab", "qrs", "--max-new-tokens", "20", "--speculative", "--draft-tokens", "3"]
    record = json.loads(written(capsys, *two, "--json"))
    assert record["completions"][0]["text"] == want[2:-1]
    assert len(record["drafted_at"]) == len(record["accepted_at"]) == 3
    assert record["accepted"] == sum(record["accepted_at"])
    plain = written(capsys, ahead, "ab", "qrs", "--max-new-tokens", "20", "--temperature", "0")
    assert written(capsys, *two) == plain


def test_what_prompts_share_is_read_once(tmp_path, capsys):
    folder = tmp_path / "m"
    write_folder(folder, config={"max_position_embeddings": 256})
    run = ["--max-new-tokens", "8", "--temperature", "0", "--json"]
    texts = [("few shots " * 12) + end for end in ("a", "bcd", "xy")]
    together = json.loads(written(capsys, folder, *texts, *run))
    assert together["prompt_tokens_saved"] == 2 * (1 + 120)
    for text, completion in zip(texts, together["completions"], strict=True):
        alone = json.loads(written(capsys, folder, text, *run))
        assert alone["completions"][0]["ids"] == completion["ids"] and alone["prompt_tokens_saved"] == 0
    chat = ["one", "another", "--chat", "--system", "be brief " * 14, *run]
    assert json.loads(written(capsys, folder, *chat))["prompt_tokens_saved"] > 120


GREEDY = "has no effect with --temperature 0, which is greedy"
AT_THE_END = "has no effect with several prompts, whose texts are shown at their end"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--temperature", "-1"], "temperature = -1.0: must not be negative"),
        (["--min-p", "2"], "min_p = 2.0: must lie in [0, 1]"),
        (["--repetition-penalty", "0"], "repetition_penalty = 0.0: must be positive"),
        (["--stop", ""], "stop = ('',): must hold no empty string: it would end every text"),
        (["--prefill-chunk", "0"], "prefill_chunk = 0: must be at least 1"),
        (["--system", "x"], "--system has no effect without --chat"),
        (["--speculative", "--temperature", "0.5"], "temperature = 0.5: --speculative is greedy: 0"),
        (["--speculative"], "model.num_mtp_layers = 0: there is no layer to draft with"),
        (["--draft-tokens", "2"], "--draft-tokens has no effect without --speculative"),
        (["--speculative", "--draft-tokens", "0"], "draft_tokens = 0: must be at least 1"),
        (["--speculative", "--seed", "3"], "--seed has no effect with --speculative, which is greedy"),
        (["--speculative", "--top-p", "0.5"], "--top-p has no effect with --speculative, which is greedy"),
        (["--temperature", "0", "--top-k", "3"], f"--top-k {GREEDY}"),
        (["--temperature", "0", "--min-p", "0.1"], f"--min-p {GREEDY}"),
        (["--temperature", "0", "--seed", "1"], f"--seed {GREEDY}"),
        (["--no-stream", "--json"], "--no-stream has no effect with --json"),
        (["y", "--no-stream"], f"--no-stream {AT_THE_END}"),
    ],
)
def test_options_that_mean_nothing(model, capsys, options, message):
    assert refused(capsys, model, "x", *options) == f"moeworks: error: {message}\n"


def test_bad_models(model, tmp_path, capsys):
    assert "neither a run" in refused(capsys, tmp_path / "gone", "x")
    assert refused(capsys, model) == "moeworks: error: prompts = (): there is no text to continue\n"
    folder = tmp_path / "m"
    write_folder(folder, tokenizer={"chat_template": "{{ ''.__class__.__mro__ }}"})
    assert "chat template: SecurityError" in refused(capsys, folder, "x", "--chat")
    (folder / "tokenizer.json").unlink()
    assert "tokenizer.json: missing" in refused(capsys, folder, "x")
    assert "prompt = 101: tokens exceed the model's context of 64" in refused(capsys, model, "x" * 100)


def test_bad_advice_is_told_and_stops_nothing(ahead, tmp_path, capsys):
    folder = tmp_path / "m"
    shutil.copytree(ahead, folder)
    (folder / "generation_config.json").write_text(json.dumps({"top_k": -5, "top_p": "much"}))
    assert main(["generate", str(folder), "word", "--max-new-tokens", "2"]) == 0
    told = capsys.readouterr().err
    assert "top_k" in told
    assert "top_p" in told
    text = tmp_path / "text.txt"
    text.write_text("words and more words\n")
    assert main(["eval", str(folder), "--data", str(text)]) == 0
    assert main(["trace", str(folder), "--data", str(text), "-o", str(tmp_path / "t.parquet")]) == 0
