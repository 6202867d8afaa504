"""Self-speculative decoding yields what greedy decoding yields, whatever the drafts are worth."""

from dataclasses import replace

import pytest
import torch
from random_layers import randomise_
from tiny_families import tiny_config
from tiny_published import DEEPSEEK

from moeworks import Decoder
from moeworks.config.generate import SamplingConfig
from moeworks.errors import ConfigError
from moeworks.families import from_hf
from moeworks.generate.loop import generate
from moeworks.generate.speculative import Acceptance, generate_ahead

LATENT = replace(from_hf(DEEPSEEK), max_seq_len=64)
GROUPED = replace(tiny_config("glm4_moe"), num_mtp_layers=1)
SHARED = replace(tiny_config("glm_moe_dsa_shared"), num_mtp_layers=1)
"""Its last layers have no indexer of their own, its draft layer has."""
GREEDY = SamplingConfig(temperature=0)


def make(config, seed: int = 0) -> Decoder:
    torch.manual_seed(seed)
    return randomise_(Decoder(config).double(), std=0.4).eval()


@pytest.mark.parametrize("config", [LATENT, GROUPED, SHARED], ids=["latent", "grouped", "shared indexer"])
@pytest.mark.parametrize("seed", range(4))
def test_the_output_is_that_of_greedy_decoding(config, seed):
    model, prompt = make(config, seed), [3, 17, 5, 9 + seed]
    want = list(generate(model, prompt, 40, sampling=GREEDY))
    counted = Acceptance()
    assert list(generate_ahead(model, prompt, 40, acceptance=counted)) == want
    assert 0 <= counted.accepted <= counted.drafted <= 40
    assert 0 <= counted.rate <= 1


def test_drafts_that_are_always_right_halve_the_steps(monkeypatch):
    model, prompt = make(LATENT), [1, 2, 3]
    want = list(generate(model, prompt, 31, sampling=GREEDY))
    known = iter(want[1::2])

    class Oracle:
        def __init__(self, model, cache):
            pass

        def draft(self, hidden, follow):
            return next(known)

    monkeypatch.setattr("moeworks.generate.speculative._Drafter", Oracle)
    counted = Acceptance()
    assert list(generate_ahead(model, prompt, 31, acceptance=counted)) == want
    assert counted.rate == 1.0 and counted.drafted == 15


def test_drafts_that_are_always_wrong_change_nothing(monkeypatch):
    model, prompt = make(GROUPED), [1, 2, 3]
    want = list(generate(model, prompt, 20, sampling=GREEDY))
    following = iter([*want[1:], 0])

    class Liar:
        def __init__(self, model, cache):
            pass

        def draft(self, hidden, follow):
            return (next(following) + 1) % 97

    monkeypatch.setattr("moeworks.generate.speculative._Drafter", Liar)
    counted = Acceptance()
    assert list(generate_ahead(model, prompt, 20, acceptance=counted)) == want
    assert counted.accepted == 0 and counted.rate == 0.0


def test_the_drafts_are_those_of_a_pass_over_the_whole_text():
    """The drafter's cache holds what a forward pass without a cache computes."""
    model, prompt = make(LATENT), [4, 8, 15, 16]
    text = prompt + list(generate_ahead(model, prompt, 20))
    ahead = model(torch.tensor([text]), ahead=True).ahead_BLV[0][0].argmax(-1).tolist()
    logits = model(torch.tensor([text])).logits_BLV[0].argmax(-1).tolist()
    expected = Acceptance()
    at = len(prompt)  # the first new token's place; a draft stands for the token after it
    while at + 1 < len(text):
        right = ahead[at - 1] == logits[at]
        expected.drafted, expected.accepted = expected.drafted + 1, expected.accepted + right
        at += 1 + right
    counted = Acceptance()
    list(generate_ahead(model, prompt, 20, acceptance=counted))
    assert abs(counted.accepted - expected.accepted) <= 1 and abs(counted.drafted - expected.drafted) <= 1


def test_it_stops_where_greedy_decoding_stops():
    model, prompt = make(LATENT), [1, 2, 3]
    want = list(generate(model, prompt, 30, sampling=GREEDY))
    stop = want[7]
    assert list(generate_ahead(model, prompt, 30, stop_id=stop)) == want[: want.index(stop)]
    for count in (0, 1, 2, 3):
        assert list(generate_ahead(model, prompt, count)) == want[:count]


def test_what_cannot_be_is_refused():
    with pytest.raises(ConfigError, match=r"num_mtp_layers = 0: there is no layer to draft with"):
        list(generate_ahead(make(replace(LATENT, num_mtp_layers=0)), [1], 3))
    with pytest.raises(ConfigError, match="cannot forget a draft"):
        list(generate_ahead(make(replace(tiny_config("gpt_oss"), num_mtp_layers=1)), [1], 30))
    with pytest.raises(ConfigError, match="exceed max_seq_len"):
        list(generate_ahead(make(LATENT), [1], 64))
