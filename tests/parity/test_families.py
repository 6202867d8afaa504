"""Every family against the installed transformers on tiny random models, in float32.

Logits, the stream after each layer, decoding with a cache in pieces of several sizes, gradients, and what
transformers reads of what we write. Lengths go beyond windows, chunks and original contexts.
"""

import json

import pytest
import torch
from parity_models import from_saved, rounding_error
from tiny_families import TINY

from moeworks import Decoder, load, save
from moeworks.families import family_of
from moeworks.models.cache import KVCache

LEAST_TOLERANCE = 1e-4
NEW_SPELLING_ONLY = ("mellum", "mimo_v2_flash")
"""Rotations differ between layers, which the older spelling cannot say to transformers."""


@pytest.fixture(params=TINY)
def name(request) -> str:
    return request.param


def ours(saved_models, name: str) -> tuple:
    """The transformers model, ours from its folder, and tokens."""
    theirs, folder = saved_models(name)
    generator = torch.Generator().manual_seed(7)
    tokens = torch.randint(theirs.config.vocab_size, (2, TINY[name].length), generator=generator)
    return theirs, load(folder, dtype=torch.float32), tokens


RECURRENT = ("qwen3_next", "qwen3_5_moe", "kimi_linear")
"""Families whose states carry the rounding of each step on to all later ones."""

_tolerances: dict[str, float] = {}


def close(name: str, theirs: torch.nn.Module, tokens: torch.Tensor) -> dict[str, float]:
    """The tolerance of a model's float32 logits; for recurrences, four times what one rounding of each weight
    does to them.

    Two for the roundings of both implementations, and two since most round more than once per weight.
    """
    if name not in RECURRENT:
        return dict(rtol=0, atol=LEAST_TOLERANCE)
    if name not in _tolerances:
        _tolerances[name] = max(LEAST_TOLERANCE, 4 * rounding_error(theirs, tokens))
    return dict(rtol=0, atol=_tolerances[name])


def layers_of(theirs: torch.nn.Module) -> torch.nn.ModuleList:
    base = getattr(theirs, "transformer", None) or theirs.model
    return base.blocks if hasattr(base, "blocks") else base.layers


def streams(layers: torch.nn.ModuleList, run) -> list[torch.Tensor]:
    """What each layer returns, the stream first."""
    seen: list[torch.Tensor] = []

    def keep(module, args, output):
        seen.append(output[0] if isinstance(output, tuple) else output)

    hooks = [layer.register_forward_hook(keep) for layer in layers]
    run()
    for hook in hooks:
        hook.remove()
    return seen


@torch.no_grad()
def test_logits_and_every_layers_stream(saved_models, name):
    theirs, model, tokens = ours(saved_models, name)
    want = streams(layers_of(theirs), lambda: theirs(tokens))
    got = streams(model.layers, lambda: model(tokens))
    # A layer of LongCat-Flash is two of ours.
    each = len(got) // len(want)
    assert len(got) == each * len(want) == model.config.num_layers
    for layer, (a, b) in enumerate(zip(want, got[each - 1 :: each], strict=True)):
        torch.testing.assert_close(
            b, a, **close(name, theirs, tokens), msg=lambda text, layer=layer: f"layer {layer}: {text}"
        )
    torch.testing.assert_close(model(tokens).logits_BLV, theirs(tokens).logits, **close(name, theirs, tokens))


@pytest.mark.parametrize("pieces", [[1], [3, 1, 8], [17]], ids=["token by token", "pieces", "long pieces"])
@torch.no_grad()
def test_decoding_with_a_cache(saved_models, name, pieces):
    theirs, model, tokens = ours(saved_models, name)
    want = theirs(tokens).logits
    cache = KVCache(model.config, 2, tokens.shape[1])
    got, start, turn = [], 0, 0
    while start < tokens.shape[1]:
        size = pieces[turn % len(pieces)]
        got.append(model(tokens[:, start : start + size], cache=cache).logits_BLV)
        start, turn = start + size, turn + 1
    torch.testing.assert_close(torch.cat(got, dim=1), want, **close(name, theirs, tokens))


def test_gradients_of_every_tensor(saved_models, name, tmp_path):
    """Ours go through `save`, as if they were weights, into the layout of transformers' own."""
    theirs, model, tokens = ours(saved_models, name)
    weight = torch.randn(*tokens.shape, theirs.config.vocab_size, generator=torch.Generator().manual_seed(1))
    want = gradients(theirs, (theirs(tokens).logits * weight / 100).sum())
    got = gradients(model, (model(tokens).logits_BLV * weight / 100).sum())
    model.load_state_dict({**model.state_dict(), **got})
    folder = save(model, tmp_path / "gradients")
    back = dict(from_saved(folder, TINY[name].model_type).named_parameters())
    assert want.keys() <= back.keys()
    for key, gradient in want.items():
        scale = gradient.abs().amax().item() + 1e-3
        torch.testing.assert_close(back[key].detach(), gradient, rtol=1e-3, atol=1e-4 * scale, msg=key)


def gradients(model: torch.nn.Module, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    values = torch.autograd.grad(loss, list(named.values()), materialize_grads=True, allow_unused=True)
    return dict(zip(named, values, strict=True))


@torch.no_grad()
def test_transformers_reads_what_we_write(saved_models, name, tmp_path):
    theirs, model, tokens = ours(saved_models, name)
    out = save(model, tmp_path / "out")
    back = from_saved(out, TINY[name].model_type)
    torch.testing.assert_close(back(tokens).logits, theirs(tokens).logits, rtol=0, atol=0)


def test_a_round_trip_is_exact_and_shards_make_no_difference(saved_models, name, tmp_path):
    _, model, _ = ours(saved_models, name)
    for shard_bytes in (10**9, 30_000):
        again = load(save(model, tmp_path / "out", shard_bytes=shard_bytes), dtype=torch.float32)
        assert again.config == model.config
        for key, value in model.state_dict().items():
            assert torch.equal(again.state_dict()[key], value), key


def test_a_config_of_our_own_is_read_by_transformers(saved_models, name, tmp_path):
    """Written from the ModelConfig alone, in the older spelling, without what transformers wrote."""
    theirs, model, tokens = ours(saved_models, name)
    family = family_of(theirs.config.to_dict())
    config = family.to_hf(model.config)
    assert "rope_parameters" not in config or TINY[name].model_type in NEW_SPELLING_ONLY
    assert family.from_hf(json.loads(json.dumps(config))) == model.config
    model.origin = None
    out = save(model, tmp_path / "out", family=family.name)
    # The ids that a class of transformers takes by default may lie beyond a tiny vocabulary.
    ids = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"))
    (out / "config.json").write_text(json.dumps(json.loads((out / "config.json").read_text()) | ids))
    back = from_saved(out, TINY[name].model_type)
    with torch.no_grad():
        torch.testing.assert_close(back(tokens).logits, theirs(tokens).logits, rtol=0, atol=1e-5)


@torch.no_grad()
def test_rows_of_unequal_length_padded_at_the_start(saved_models, name):
    """Each row computes what it computes alone, whatever stands before it."""
    theirs, model, tokens = ours(saved_models, name)
    tolerance = close(name, theirs, tokens)
    length = tokens.shape[1]
    padding = torch.tensor([5, 0])
    alone = model(tokens[:1, 5:]).logits_BLV
    padded = tokens.clone()
    padded[0, :5] = 3
    for pieces in ([length], [length - 3, 1, 1, 1]):
        cache = KVCache(model.config, 2, length, left_padding_B=padding)
        got = torch.cat(
            [model(piece, cache=cache).logits_BLV for piece in padded.split(pieces, dim=1)], dim=1
        )
        torch.testing.assert_close(got[:1, 5:], alone, **tolerance)
        torch.testing.assert_close(got[1:], model(tokens[1:]).logits_BLV, **tolerance)
        assert got.isfinite().all()


def test_decoder_is_of_our_own_classes(saved_models, name):
    _, model, _ = ours(saved_models, name)
    assert type(model) is Decoder
    assert all(type(m).__module__.split(".")[0] in ("moeworks", "torch") for m in model.modules())
