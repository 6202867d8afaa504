"""Text token by token, with a cache, against full forward passes."""

import pytest
import torch
from random_layers import randomise_
from tiny_chain import chain_model
from tiny_run import BYTES

from moeworks.config import (
    CapacityConfig,
    ExpertsConfig,
    GQAConfig,
    LayerPatternConfig,
    ModelConfig,
    RouterConfig,
    SharedExpertsConfig,
)
from moeworks.config.generate import SamplingConfig
from moeworks.errors import NotFiniteError
from moeworks.generate.loop import generate, generate_batch
from moeworks.models.decoder import Decoder

GREEDY = SamplingConfig(temperature=0)
PROMPT = [5, 1, 200, 7]


def build(limit: int = 32, **options) -> Decoder:
    torch.manual_seed(0)
    config = ModelConfig(
        **dict(
            vocab_size=BYTES,
            d_model=16,
            num_layers=2,
            max_seq_len=limit,
            tie_embeddings=False,
            attention=GQAConfig(num_heads=4, num_kv_heads=2),
            router=RouterConfig(num_experts=4, top_k=2),
            experts=ExpertsConfig(d_expert=8),
        )
        | options
    )
    return randomise_(Decoder(config).double(), std=0.4).eval()


@torch.no_grad()
def greedy_by_full_passes(model: Decoder, ids: list[int], count: int) -> list[int]:
    ids = list(ids)
    for _ in range(count):
        ids.append(int(model(torch.tensor([ids])).logits_BLV[0, -1].argmax()))
    return ids[-count:]


MODELS = {
    "plain": {},
    "bias and groups": dict(
        router=RouterConfig(num_experts=4, top_k=1, renormalize=False, selection_bias=True, num_groups=2)
    ),
    "first dense, shared": dict(
        pattern=LayerPatternConfig(first_dense=1), shared=SharedExpertsConfig(num_shared_experts=1)
    ),
    "noise and capacity in training only": dict(
        router=RouterConfig(num_experts=4, top_k=2, noisy_top_k=True, input_jitter=0.5),
        capacity=CapacityConfig(capacity_factor=0.5),
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_greedy_is_the_argmax_of_a_full_pass_at_every_step(name):
    model = build(**MODELS[name])
    text = list(generate(model, PROMPT, 20, sampling=GREEDY))
    assert text == greedy_by_full_passes(model, PROMPT, 20)
    assert len(set(text)) >= 3


def test_a_seed_repeats_and_another_differs():
    model = build()
    texts = [list(generate(model, PROMPT, 15, seed=seed)) for seed in (0, 0, 1)]
    assert texts[0] == texts[1] != texts[2]


def test_the_process_random_state_is_neither_used_nor_changed():
    model = build()
    before = torch.get_rng_state()
    first = list(generate(model, PROMPT, 10))
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    assert list(generate(model, PROMPT, 10)) == first


def test_top_k_1_is_greedy():
    model = build()
    only_best = SamplingConfig(temperature=2.0, top_k=1)
    assert list(generate(model, PROMPT, 10, sampling=only_best)) == greedy_by_full_passes(model, PROMPT, 10)


def test_stop_id_ends_it_and_is_not_part_of_it():
    model = build()
    text = greedy_by_full_passes(model, PROMPT, 20)
    stop = next(token for token in text[3:] if token not in text[:3])
    found = list(generate(model, PROMPT, 20, sampling=GREEDY, stop_id=stop))
    assert found == text[: text.index(stop)]


@pytest.mark.parametrize("count", [0, 1])
def test_as_many_as_asked_for(count):
    assert len(list(generate(build(), PROMPT, count))) == count


def test_tokens_come_as_they_are_made():
    model, passes = build(), []
    model.register_forward_hook(lambda *_: passes.append(1))
    tokens = generate(model, PROMPT, 100)
    for made in (1, 2, 3):
        next(tokens)
        assert len(passes) == made


def test_each_token_costs_one_position():
    model, lengths = build(), []
    model.register_forward_pre_hook(lambda module, args: lengths.append(args[0].shape[1]))
    list(generate(model, PROMPT, 5))
    assert lengths == [4, 1, 1, 1, 1]


# Beyond max_seq_len.


def test_up_to_the_limit_nothing_is_forgotten():
    model = build(limit=12)
    assert list(generate(model, PROMPT, 9, sampling=GREEDY)) == greedy_by_full_passes(model, PROMPT, 9)


def test_beyond_the_limit_the_newest_half_is_kept():
    """At 8 positions the ninth token is the argmax after the last 4, then 5, ... tokens."""
    model = build(limit=8)
    text = [*PROMPT, *generate(model, PROMPT, 20, sampling=GREEDY)]
    assert text[4:9] == greedy_by_full_passes(model, PROMPT, 5)
    for start in range(9, 24, 5):
        kept = text[start - 4 : start]
        assert text[start : start + 5] == greedy_by_full_passes(model, kept, 5)[: len(text) - start]


def test_a_prompt_longer_than_the_limit():
    model = build(limit=8)
    prompt = list(range(30))
    assert list(generate(model, prompt, 3, sampling=GREEDY)) == greedy_by_full_passes(model, prompt[-4:], 3)


def test_a_prompt_that_fills_the_limit_is_kept_whole():
    model = build(limit=8)
    prompt = list(range(8))
    assert next(generate(model, prompt, 1, sampling=GREEDY)) == greedy_by_full_passes(model, prompt, 1)[0]


def test_limit_of_one_position():
    model = build(limit=1)
    assert len(list(generate(model, PROMPT, 4))) == 4


# Logits that are not finite.


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("sampling", [GREEDY, SamplingConfig(), SamplingConfig(top_k=2, top_p=0.5)])
def test_logits_that_are_not_finite_are_an_error(value, sampling):
    model = build()
    assert model.lm_head is not None
    model.lm_head.weight.data[9] = value
    with pytest.raises(
        NotFiniteError, match=r"the logits after 4 tokens are not finite: first at token 0 of 4 "
    ):
        next(generate(model, PROMPT, 5, sampling=sampling))


def test_a_token_that_breaks_the_model_is_named():
    """The model says 1, 2, 3; the embedding of 3 is damaged."""
    model = chain_model(8, {0: 1, 1: 2, 2: 3})
    model.embed.weight.data[3, 0] = torch.nan
    tokens, seen = generate(model, [0], 9, sampling=GREEDY), []
    with pytest.raises(
        NotFiniteError, match=r"after 4 tokens are not finite: first at token 3 of 4 .*output of embed"
    ):
        seen.extend(tokens)
    assert seen == [1, 2, 3]


def test_a_text_that_has_ended_may_break():
    """Of a batch, the text is named that is not finite; one that has ended does not matter."""
    model = chain_model(8, {0: 1, 1: 2, 2: 4, 4: 5})
    model.embed.weight.data[6] = torch.nan
    with pytest.raises(NotFiniteError, match="after 2 tokens of text 2 are not finite"):
        list(generate_batch(model, [[0], [1, 6]], 3, sampling=GREEDY))
    ended = [False, True]
    batch = generate_batch(model, [[0], [1, 6]], 3, sampling=GREEDY, ended=ended)
    assert [tokens[0] for tokens in batch] == [1, 2, 4]
