"""What holds for every family's layers, whatever other libraries compute: counts, caches, packing."""

from typing import Any

import pytest
import torch
from random_layers import randomise_
from tiny_families import TINY, tiny_config

from moeworks import Decoder, ModelConfig
from moeworks.config.count import count_cache_bytes, count_parameters
from moeworks.models.cache import KVCache, StateCache

CLOSE = dict(rtol=1e-8, atol=1e-8)


@pytest.fixture(params=TINY)
def config(request) -> ModelConfig:
    return tiny_config(request.param)


def make(config: ModelConfig) -> Decoder:
    torch.manual_seed(0)
    return randomise_(Decoder(config).double(), std=0.3).eval()


def size(model: Decoder, *parts: str) -> int:
    named = dict(model.named_parameters())
    return sum(p.numel() for name, p in named.items() if any(part in name for part in parts))


def test_counts_are_those_of_the_module(config):
    model, count = Decoder(config), count_parameters(config)
    assert count.total == size(model, "")
    assert count.norms == size(model, "norm.")
    assert count.router == size(model, ".router.")
    assert count.experts == size(model, ".experts.")
    assert count.shared == size(model, ".shared.", ".shared_token_gate.")
    assert count.lm_head == size(model, "lm_head.")


@torch.no_grad()
def test_a_cache_holds_what_is_counted(config):
    model, tokens = make(config), torch.arange(30).view(1, 30)
    cache = KVCache(config, 1, 40, dtype=torch.float64)
    model(tokens, cache=cache)
    # A window of W keeps W - 1 positions: the next token brings its own.
    bounded = [m for m in config.mixer_of_layers if m.kind == "gqa" and (m.window or m.chunk)]
    widths = [(m, config.gqa_head_dim(m)) for m in bounded]
    one_position = sum(m.num_kv_heads * (width + (m.v_head_dim or width)) for m, width in widths)
    assert sum(map(bytes_of, cache.layers)) == count_cache_bytes(config, 30, 1) - one_position


def bytes_of(layer: Any) -> int:
    """One a value, but 4 in the states of recurrences and 2 in the last inputs of their convolutions."""
    if not isinstance(layer, StateCache):
        return layer.values()
    assert layer.state is not None and layer.conv is not None
    return 4 * layer.state.numel() + 2 * layer.conv.numel()


@torch.no_grad()
def test_a_packed_row_equals_its_documents_apart(config):
    model = make(config)
    row = torch.randint(97, (1, 30), generator=torch.Generator().manual_seed(1))
    documents = torch.tensor([[0] * 4 + [1] * 15 + [2] * 11])
    packed = model(row, document_ids_BL=documents).logits_BLV
    for start, stop in ((0, 4), (4, 19), (19, 30)):
        alone = model(row[:, start:stop]).logits_BLV
        # Rotary tables are float32: scores know distances up to that.
        torch.testing.assert_close(packed[:, start:stop], alone, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_no_position_sees_a_later_one(config):
    model, tokens = make(config), torch.arange(40).view(1, 40)
    changed = tokens.clone()
    changed[:, 25:] = (changed[:, 25:] * 7 + 3) % 97
    before, after = model(tokens).logits_BLV, model(changed).logits_BLV
    torch.testing.assert_close(after[:, :25], before[:, :25], **CLOSE)
    assert (after[:, 25:] - before[:, 25:]).abs().amax() > 1e-3


@torch.no_grad()
def test_logits_of_the_last_position_alone(config):
    model, tokens = make(config), torch.arange(24).view(2, 12)
    last = model(tokens, last_only=True).logits_BLV
    torch.testing.assert_close(last, model(tokens).logits_BLV[:, -1:], **CLOSE)


def test_activation_checkpointing_changes_no_gradient(config):
    model, tokens = make(config).train(), torch.arange(24).view(2, 12)
    gradients = []
    for on in (False, True):
        model.activation_checkpointing = on
        named = {n: p for n, p in model.named_parameters() if "indexer" not in n}
        loss = model(tokens).logits_BLV.square().mean()
        gradients.append(torch.autograd.grad(loss, list(named.values()), allow_unused=True))
    for a, b in zip(*gradients, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, **CLOSE)


@torch.no_grad()
def test_in_bfloat16_it_is_near_and_decodes_as_it_prefills(config):
    torch.manual_seed(0)
    model = randomise_(Decoder(config), std=0.15).eval()
    tokens = torch.arange(40).view(2, 20)
    want = model(tokens).logits_BLV
    low = model.to(torch.bfloat16)
    got = low(tokens).logits_BLV
    assert got.dtype == torch.bfloat16
    cache = KVCache(config, 2, 20, dtype=torch.bfloat16)
    pieces = [low(piece, cache=cache).logits_BLV for piece in tokens.split([15, 1, 4], dim=1)]
    for logits in (got, torch.cat(pieces, dim=1)):
        # Rounding may choose other experts: most positions agree, none is wild.
        error = (logits.float() - want).abs().amax(dim=-1) / want.abs().amax()
        assert error.median() < 0.1 and error.max() < 2


def test_it_trains_under_autocast(config):
    torch.manual_seed(0)
    model = randomise_(Decoder(config), std=0.15).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(torch.arange(40).view(2, 20)).logits_BLV
    logits.float().square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all(), name
    assert model.embed.weight.grad.any()
