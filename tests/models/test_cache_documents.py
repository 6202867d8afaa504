"""Packed documents with a cache: the same as the whole pass, in any pieces."""

import pytest
import torch
from random_layers import randomise_
from tiny_families import TINY, tiny_config

from moeworks import Decoder
from moeworks.errors import ConfigError
from moeworks.models.cache import KVCache

# A boundary inside a piece, at its start, in a piece of one token, and a row without any.
DOCUMENTS = torch.tensor([[0] * 6 + [1] * 18, [0] * 24, [3] * 9 + [4] + [5] * 14])
PIECES = [6, 3, 1, 1, 13]


def tiny(name: str) -> tuple[Decoder, torch.Tensor]:
    torch.manual_seed(0)
    model = randomise_(Decoder(tiny_config(name)).double(), std=0.3).eval()
    return model, torch.randint(model.config.vocab_size, DOCUMENTS.shape)


def in_pieces(model, tokens, documents, pieces, cache) -> torch.Tensor:
    parts = zip(tokens.split(pieces, dim=1), documents.split(pieces, dim=1), strict=True)
    outputs = [model(part, document_ids_BL=ids, cache=cache).logits_BLV for part, ids in parts]
    return torch.cat(outputs, dim=1)


@torch.no_grad()
@pytest.mark.parametrize("name", sorted(TINY))
def test_documents_with_a_cache_equal_the_whole_pass(name):
    model, tokens = tiny(name)
    want = model(tokens, document_ids_BL=DOCUMENTS).logits_BLV
    cache = KVCache(model.config, 3, 24, dtype=torch.float64)
    torch.testing.assert_close(in_pieces(model, tokens, DOCUMENTS, PIECES, cache), want, rtol=1e-9, atol=1e-9)
    assert (want - model(tokens).logits_BLV).abs().max() > 0.01, "the documents make no difference here"


FAMILIES = ["mixtral", "mixtral_window", "llama4", "deepseek_v3", "qwen3_next"]


@torch.no_grad()
@pytest.mark.parametrize("name", FAMILIES)
def test_documents_with_padding_before_a_row_equal_the_row_alone(name):
    model, tokens = tiny(name)
    want = model(tokens[:1, 4:], document_ids_BL=DOCUMENTS[:1, 4:]).logits_BLV
    padding_B = torch.tensor([4, 0, 2])
    cache = KVCache(model.config, 3, 24, dtype=torch.float64, left_padding_B=padding_B)
    got = in_pieces(model, tokens, DOCUMENTS, PIECES, cache)
    torch.testing.assert_close(got[:1, 4:], want, rtol=1e-9, atol=1e-9)


@torch.no_grad()
@pytest.mark.parametrize("name", FAMILIES)
def test_caches_with_documents_continue_each_other_and_stack(name):
    model, tokens = tiny(name)
    want = model(tokens, document_ids_BL=DOCUMENTS).logits_BLV[[0, 2], 12:]
    rows = []
    for row in (0, 2):
        first = KVCache(model.config, 1, 24, dtype=torch.float64)
        model(tokens[row : row + 1, :12], document_ids_BL=DOCUMENTS[row : row + 1, :12], cache=first)
        own = KVCache(model.config, 1, 24, dtype=torch.float64)
        own.start_from(first, 12)
        rows.append(own)
    stacked = KVCache.stacked(model.config, rows, 24)
    got = in_pieces(model, tokens[[0, 2], 12:], DOCUMENTS[[0, 2], 12:], [1, 11], stacked)
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_a_cache_that_forgot_positions_forgot_their_documents():
    model, tokens = tiny("mixtral")
    want = model(tokens, document_ids_BL=DOCUMENTS).logits_BLV
    cache = KVCache(model.config, 3, 24, dtype=torch.float64)
    model(tokens[:, :8], document_ids_BL=DOCUMENTS[:, :8], cache=cache)
    model(tokens[:, :4], document_ids_BL=DOCUMENTS[:, :4] + 90, cache=cache)
    cache.forget(4)
    got = in_pieces(model, tokens[:, 8:], DOCUMENTS[:, 8:], [7, 9], cache)
    torch.testing.assert_close(got, want[:, 8:], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("first", [True, False])
def test_documents_for_some_positions_only_are_refused(first):
    model, tokens = tiny("mixtral")
    cache = KVCache(model.config, 3, 24, dtype=torch.float64)
    model(tokens[:, :8], document_ids_BL=DOCUMENTS[:, :8] if first else None, cache=cache)
    with pytest.raises(ConfigError, match=r"document_ids_BL: .* the 8 positions in the cache have"):
        model(tokens[:, 8:], document_ids_BL=None if first else DOCUMENTS[:, 8:], cache=cache)


def test_document_ids_of_another_shape_are_refused():
    model, tokens = tiny("mixtral")
    with pytest.raises(ConfigError, match=r"document_ids_BL = \(3, 4\): must have the shape of tokens_BL"):
        model(tokens, document_ids_BL=DOCUMENTS[:, :4])


@pytest.mark.parametrize("options", [dict(cache=True), dict(last_only=True)])
def test_mtp_layers_are_refused_where_they_would_miss_positions(options):
    model, tokens = tiny("mixtral")
    if "cache" in options:
        options = dict(cache=KVCache(model.config, 3, 24, dtype=torch.float64))
    with pytest.raises(ConfigError, match=r"ahead = True: the MTP layers run over whole rows"):
        model(tokens, ahead=True, **options)
