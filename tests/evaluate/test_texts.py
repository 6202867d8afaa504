"""Bits per byte and perplexity of documents, against sums over plain passes."""

import math

import pytest
import torch
from tiny_chain import chain_model, spaced_tokenizer
from tiny_tokenizers import BOS, VOCAB, write_folder

from moeworks import load
from moeworks.data.documents import Document
from moeworks.data.model_tokenizer import ModelTokenizer, tokenizer_of
from moeworks.errors import DataError, NotFiniteError
from moeworks.evaluate.texts import evaluate_texts, total

DOCUMENTS = [
    Document("a short one", "b", "1"),
    Document("é" * 90, "a", "2"),
    Document("longer than a window, so that it is cut into several of them, and then some more", "b", "3"),
]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts") / "m"
    write_folder(folder)
    return load(folder).double(), tokenizer_of(folder, VOCAB)


def nats_of(model, text: str, context: int) -> float:
    """Windows of `context` predictions that know nothing of each other."""
    ids, whole = [BOS, *text.encode()], 0.0
    for start in range(0, len(ids) - 1, context):
        row = torch.tensor([ids[start : start + context + 1]])
        with torch.no_grad():
            logits = model(row[:, :-1]).logits_BLV[0]
        whole += float(torch.nn.functional.cross_entropy(logits, row[0, 1:], reduction="sum"))
    return whole


def test_sums_per_domain(loaded):
    model, tokenizer = loaded
    done = []
    domains = evaluate_texts(model, tokenizer, DOCUMENTS, context=32, stride=32, progress=done.append)
    assert list(domains) == ["a", "b"] and sum(done) == sum(len(d.text.encode()) for d in DOCUMENTS)
    for name, totals in domains.items():
        own = [d.text for d in DOCUMENTS if d.domain == name]
        nats, size = sum(nats_of(model, text, 32) for text in own), sum(len(t.encode()) for t in own)
        assert totals.documents == len(own)
        assert totals.bytes == totals.tokens == size  # a token per byte, each predicted once
        assert totals.nats == pytest.approx(nats)
        assert totals.bits_per_byte == pytest.approx(nats / math.log(2) / size)
        assert totals.perplexity == pytest.approx(math.exp(nats / size))
    everything = total(domains)
    assert everything.nats == pytest.approx(sum(t.nats for t in domains.values()))
    assert everything.record()["documents"] == 3


def test_overlapping_windows_predict_as_many_tokens(loaded):
    apart, overlapping = (
        total(evaluate_texts(*loaded, DOCUMENTS, context=32, stride=stride)) for stride in (32, 8)
    )
    assert apart.tokens == overlapping.tokens
    assert apart.nats != overlapping.nats


def test_without_a_start_the_first_token_is_not_predicted(loaded):
    model, tokenizer = loaded
    bare = ModelTokenizer(tokenizer.backend)
    domains = evaluate_texts(model, bare, DOCUMENTS[:1], context=32, stride=32)
    assert domains["b"].tokens == domains["b"].bytes == len(DOCUMENTS[0].text) - 1


@pytest.mark.parametrize(("text", "size"), [("Hello world!", 7), (" Hello!", 7), ("", 0), ("Hello", 0)])
def test_bytes_that_nothing_predicts_do_not_count(text, size):
    """With a tokenizer that puts a space before a text: that one is no byte of it."""
    bare = ModelTokenizer(spaced_tokenizer(["▁Hello", "▁world", "!", "▁"]))
    documents = [Document(text, "a", "1"), Document("Hello!", "b", "2")]
    domains = evaluate_texts(chain_model(8, {}), bare, documents, context=32, stride=32)
    assert {name: totals.bytes for name, totals in domains.items()} == ({"a": size} if size else {}) | {
        "b": 1
    }


def test_no_text_at_all(loaded):
    for documents, count in ([], 0), ([Document("", "a", "1")], 1):
        with pytest.raises(DataError, match=f"evaluation: {count} documents hold no text"):
            evaluate_texts(*loaded, documents, context=32, stride=32)


def test_a_loss_that_is_not_finite_is_an_error(loaded):
    """It names the document, the token and the module; NaN is never a figure."""
    _, tokenizer = loaded
    model = chain_model(VOCAB, {})
    model.embed.weight.data[ord("w")] = (
        torch.nan
    )  # a word that is token 15 of the third text, after the start token
    with pytest.raises(NotFiniteError) as error:
        evaluate_texts(model, tokenizer, DOCUMENTS, context=32, stride=32)
    assert str(error.value) == (
        "the loss on 3 is not finite: first at token 15, in the output of embed; 264 of 69,696 values of"
        " embed.weight are not finite: the checkpoint is damaged, or its training diverged"
    )


def test_max_bytes_is_per_domain(loaded):
    domains = evaluate_texts(*loaded, DOCUMENTS, context=32, stride=32, max_bytes=12)
    assert {name: t.documents for name, t in domains.items()} == {"a": 1, "b": 1}
