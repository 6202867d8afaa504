"""`moeworks eval` and `moeworks generate` on real trained weights, against transformers on the same texts.

stories260K lies in ../shared/data; MOEWORKS_TEST_SMOLLM2 names the GGUF file of SmolLM2-135M-Instruct.
"""

import json
import math
from pathlib import Path

import pytest
import torch
from real_models import CORPUS, SMOLLM2, has_stories, write_stories
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from moeworks.cli.main import main

stories = pytest.mark.skipif(not has_stories(), reason="stories260K is not in ../shared/data/models")
smollm = pytest.mark.skipif(
    not SMOLLM2.is_file(), reason="MOEWORKS_TEST_SMOLLM2 names no SmolLM2-135M-Instruct.Q4_1.gguf"
)
STORY = (
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. One day,"
    " she saw a big red ball. She wanted to play with it, but it was too high.\n"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_stories(tmp_path_factory.mktemp("real") / "stories260K")


def output(capsys, *argv) -> str:
    assert main([*map(str, argv)]) == 0
    return capsys.readouterr().out


def bits_of_transformers(model, ids: list[int], context: int) -> float:
    """Bits that windows of `context` predictions take, each not knowing the one before."""
    nats = 0.0
    for start in range(0, len(ids) - 1, context):
        row = torch.tensor([ids[start : start + context + 1]])
        with torch.no_grad():
            logits = model(row[:, :-1]).logits[0].float()
        nats += float(torch.nn.functional.cross_entropy(logits, row[0, 1:], reduction="sum"))
    return nats / math.log(2)


@stories
def test_bits_per_byte_of_a_story(folder, tmp_path, capsys):
    (tmp_path / "story.txt").write_text(STORY * 8)
    got = json.loads(
        output(capsys, "eval", folder, "--data", tmp_path / "story.txt", "--json", "--context", "128")
    )
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, trust_remote_code=False).eval()
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    ids = [1, *tokenizer(STORY * 8, add_special_tokens=False).input_ids]
    want = bits_of_transformers(theirs, ids, 128) / len(STORY * 8)
    assert got["tokens"] == len(ids) - 1
    assert got["bits_per_byte"] == pytest.approx(want, abs=1e-5)
    assert got["bits_per_byte"] < 1.2


@stories
def test_a_story(folder, capsys):
    text = output(
        capsys, "generate", folder, "Once upon a time", "--temperature", "0", "--max-new-tokens", "80"
    )
    assert text.startswith("Once upon a time, there was a little girl named")
    assert {"the", "and", "to"} & set(text.split())


@smollm
def test_smollm2_on_english(tmp_path, capsys):
    if not CORPUS.is_dir():
        pytest.skip("../shared/data/corpus is not there")
    pytest.importorskip("accelerate", reason="transformers needs accelerate to read GGUF")
    text = (CORPUS / "wiki_en.txt").read_text(encoding="utf-8")[:2000]
    (tmp_path / "wiki.txt").write_text(text, encoding="utf-8")
    got = json.loads(
        output(capsys, "eval", SMOLLM2, "--data", tmp_path / "wiki.txt", "--json", "--context", "256")
    )
    place = dict(pretrained_model_name_or_path=SMOLLM2.parent, gguf_file=SMOLLM2.name)
    theirs = AutoModelForCausalLM.from_pretrained(
        **place, dtype=torch.float32, trust_remote_code=False
    ).eval()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(**place, trust_remote_code=False)
    ids = [tokenizer.eos_token_id, *tokenizer(text, add_special_tokens=False).input_ids]
    want = bits_of_transformers(theirs, ids, 256) / len(text.encode())
    assert got["tokens"] == len(ids) - 1
    assert got["bits_per_byte"] == pytest.approx(want, abs=1e-4)


@smollm
def test_smollm2_answers(capsys):
    options = ["--temperature", "0", "--max-new-tokens", "12"]
    assert "Paris" in output(capsys, "generate", SMOLLM2, "The capital of France is", *options)
