import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_layers import randomise_
from tiny_families import tiny_config

from moeworks import Decoder, ModelConfig
from moeworks.config.model import ExpertsConfig, GQAConfig, RouterConfig
from moeworks.errors import ConfigError
from moeworks.models.cache import KVCache, LayerKVCache

CONFIG = ModelConfig(
    vocab_size=30,
    d_model=16,
    num_layers=2,
    max_seq_len=16,
    attention=GQAConfig(num_heads=4, num_kv_heads=2),
    router=RouterConfig(num_experts=4, top_k=2),
    experts=ExpertsConfig(d_expert=6),
)


@pytest.fixture(scope="module")
def model() -> Decoder:
    torch.manual_seed(0)
    return randomise_(Decoder(CONFIG).double(), std=0.3).eval()


def run_in_pieces(model: Decoder, tokens: torch.Tensor, pieces: list[int]) -> torch.Tensor:
    cache = KVCache(CONFIG, tokens.shape[0], tokens.shape[1], dtype=torch.float64)
    return torch.cat([model(piece, cache=cache).logits_BLV for piece in tokens.split(pieces, dim=1)], dim=1)


@settings(max_examples=15, deadline=None)
@given(pieces=st.lists(st.integers(1, 5), min_size=1, max_size=5).filter(lambda p: sum(p) <= 16))
def test_decoding_in_pieces_equals_the_full_forward(model, pieces):
    tokens = torch.randint(30, (3, sum(pieces)))
    want = model(tokens).logits_BLV
    torch.testing.assert_close(run_in_pieces(model, tokens, pieces), want, rtol=1e-10, atol=1e-10)


def test_token_by_token_equals_the_full_forward(model):
    tokens = torch.randint(30, (2, 16))
    want = model(tokens).logits_BLV
    torch.testing.assert_close(run_in_pieces(model, tokens, [1] * 16), want, rtol=1e-10, atol=1e-10)


def test_activation_checkpointing_does_not_lose_the_cache():
    torch.manual_seed(0)
    model = Decoder(CONFIG).double()
    model.activation_checkpointing = True
    tokens = torch.randint(30, (2, 8))
    want = model(tokens).logits_BLV
    torch.testing.assert_close(run_in_pieces(model, tokens, [3, 5]), want, rtol=1e-10, atol=1e-10)


def test_the_cache_knows_its_length_and_shape():
    cache = KVCache(CONFIG, batch=3, max_len=10, dtype=torch.bfloat16)
    assert cache.length == 0
    assert len(cache.layers) == 2
    k, v = cache.layers[0].append(torch.ones(3, 2, 4, 4), torch.zeros(3, 2, 4, 4))
    assert k.shape == v.shape == (3, 2, 4, 4)
    assert k.dtype == torch.bfloat16
    assert cache.length == 4


def test_append_keeps_what_was_there():
    layer = LayerKVCache((1, 1, 3, 2), torch.float32, torch.device("cpu"))
    first, second = torch.randn(2, 1, 1, 1, 2)
    layer.append(first, -first)
    k, v = layer.append(second, -second)
    assert torch.equal(k, torch.cat([first, second], dim=2))
    assert torch.equal(v, -k)


def test_a_full_cache_is_an_error(model):
    cache = KVCache(CONFIG, batch=1, max_len=4, dtype=torch.float64)
    with pytest.raises(ConfigError, match=r"cache length = 5: exceeds the cache's size, 4 positions"):
        model(torch.zeros(1, 5, dtype=torch.int64), cache=cache)


def test_positions_count_what_the_cache_holds(model):
    cache = KVCache(CONFIG, batch=1, max_len=20, dtype=torch.float64)
    model(torch.zeros(1, 14, dtype=torch.int64), cache=cache)
    with pytest.raises(ConfigError, match=r"positions = 17: exceed model\.max_seq_len = 16"):
        model(torch.zeros(1, 3, dtype=torch.int64), cache=cache)


@pytest.mark.parametrize("name", ["mixtral", "mixtral_window", "deepseek_v3", "qwen3_next", "gpt_oss"])
def test_a_cache_that_starts_from_another_goes_on_as_it(name):
    torch.manual_seed(0)
    other = randomise_(Decoder(tiny_config(name)).double(), std=0.3).eval()
    tokens = torch.randint(97, (1, 20))
    first = KVCache(other.config, 1, 20, dtype=torch.float64)
    other(tokens[:, :12], cache=first)
    # Room for fewer positions than a window reaches, and for more.
    for room in (20, 60):
        second = KVCache(other.config, 1, room, dtype=torch.float64)
        second.start_from(first, 12)
        got = other(tokens[:, 12:], cache=second).logits_BLV
        torch.testing.assert_close(got, other(tokens).logits_BLV[:, 12:], rtol=1e-9, atol=1e-9)
    assert first.length == 12 and second.length == 20


def test_a_cache_starts_from_what_is_held_only():
    plain, windowed = (Decoder(tiny_config(name)).double().eval() for name in ("mixtral", "mixtral_window"))
    for other, message in ((plain, "only 12 are held"), (windowed, "can only be copied whole")):
        held = KVCache(other.config, 1, 20, dtype=torch.float64)
        other(torch.ones(1, 12, dtype=torch.int64), cache=held)
        with pytest.raises(ConfigError, match=message):
            KVCache(other.config, 1, 20, dtype=torch.float64).start_from(held, 13 if other is plain else 5)
