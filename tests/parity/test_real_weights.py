"""A real trained model, karpathy's stories260K, against transformers: logits, bits per byte, a story.

The weights are no part of this project; without them the tests are skipped.
"""

import math
from pathlib import Path

import pytest
import torch
from real_models import MODELS, has_stories, stories_vocabulary, write_stories
from transformers import AutoModelForCausalLM

from moeworks import Decoder, load
from moeworks.config.generate import SamplingConfig
from moeworks.generate.loop import generate

TEXT = (
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. One day,"
    " she saw a big red ball. She wanted to play with it, but it was too high."
)
pytestmark = pytest.mark.skipif(not has_stories(), reason=f"needs stories260K.bin and tok512.bin in {MODELS}")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_stories(tmp_path_factory.mktemp("stories"))


@pytest.fixture(scope="module")
def vocabulary() -> list[tuple[bytes, float]]:
    return stories_vocabulary()


def encode(text: str, vocabulary: list[tuple[bytes, float]]) -> list[int]:
    """As llama2.c does: characters, and then the best merges; 1 begins a text."""
    known = {piece: (i, score) for i, (piece, score) in reversed(list(enumerate(vocabulary)))}
    pieces = [letter.encode() for letter in f" {text}"]
    while True:
        merges = [(known[a + b][1], -i) for i, (a, b) in enumerate(zip(pieces, pieces[1:])) if a + b in known]  # noqa: B905, RUF007
        if not merges:
            return [1, *(known[piece][0] for piece in pieces)]
        at = -max(merges)[1]
        pieces[at : at + 2] = [pieces[at] + pieces[at + 1]]


def bits_per_byte(logits: torch.Tensor, ids: list[int]) -> float:
    log_probabilities = logits[0, :-1].log_softmax(-1)
    return -log_probabilities[range(len(ids) - 1), ids[1:]].sum().item() / math.log(2) / len(TEXT)


@torch.no_grad()
def test_logits_and_bits_per_byte_are_those_of_transformers(folder, vocabulary):
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, trust_remote_code=False).eval()
    model = load(folder)
    assert sum(p.numel() for p in model.parameters()) == 260_032
    ids = encode(TEXT, vocabulary)
    got, want = model(torch.tensor([ids])).logits_BLV, theirs(torch.tensor([ids])).logits
    torch.testing.assert_close(got, want, rtol=0, atol=1e-4)
    assert bits_per_byte(got, ids) == pytest.approx(bits_per_byte(want, ids), abs=1e-5)
    assert bits_per_byte(got, ids) < 1.0


def test_it_tells_a_story(folder, vocabulary):
    model: Decoder = load(folder)
    ids = generate(model, encode("Once upon a time", vocabulary), 60, sampling=SamplingConfig(temperature=0))
    story = b"".join(vocabulary[i][0] for i in ids).decode(errors="replace")
    assert story.startswith(", there was a little girl named")
    assert {"the", "and", "to"} & set(story.split())
