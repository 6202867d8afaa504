"""Self-speculative decoding yields what greedy decoding yields, whatever the drafts are worth."""

from dataclasses import replace

import pytest
import torch
from random_layers import randomise_
from tiny_families import tiny_config
from tiny_published import DEEPSEEK

from moeworks import Decoder
from moeworks.config.generate import SamplingConfig
from moeworks.errors import ConfigError, NotFiniteError
from moeworks.families import from_hf
from moeworks.generate.loop import generate
from moeworks.generate.speculative import Acceptance, _Drafter, generate_ahead

LATENT = replace(from_hf(DEEPSEEK), max_seq_len=64)
GROUPED = replace(tiny_config("glm4_moe"), num_mtp_layers=1)
SHARED = replace(tiny_config("glm_moe_dsa_shared"), num_mtp_layers=1)
"""Its last layers have no indexer of their own, its draft layer has."""
GREEDY = SamplingConfig(temperature=0)


def make(config, seed: int = 0) -> Decoder:
    torch.manual_seed(seed)
    return randomise_(Decoder(config).double(), std=0.4).eval()


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("drafts", [None, 1, 2, 5])
@pytest.mark.parametrize("config", [LATENT, GROUPED, SHARED], ids=["latent", "grouped", "shared indexer"])
def test_the_output_is_that_of_greedy_decoding(config, drafts, layers):
    seed = 4 * layers + (drafts or 0)
    model, prompt = make(replace(config, num_mtp_layers=layers), seed), [3, 17, 5, 9][: 1 + seed % 4]
    want = list(generate(model, prompt, 30, sampling=GREEDY))
    counted = Acceptance()
    assert list(generate_ahead(model, prompt, 30, draft_tokens=drafts, acceptance=counted)) == want
    assert len(counted.drafted_at) == len(counted.accepted_at) == (drafts or layers)
    assert counted.drafted_at == sorted(counted.drafted_at, reverse=True)
    assert counted.accepted_at == sorted(counted.accepted_at, reverse=True)
    assert 0 <= counted.accepted <= counted.drafted and 0 <= counted.rate <= 1


def puppet(monkeypatch, choose) -> None:
    """A drafter that drafts what `choose(ids, count)` says."""

    class Puppet:
        def __init__(self, model, max_len):
            pass

        def draft(self, hidden, ids, count):
            return choose(ids, count)

    monkeypatch.setattr("moeworks.generate.speculative._Drafter", Puppet)


@pytest.mark.parametrize(("drafts", "steps"), [(1, 15), (2, 10), (4, 6)])
def test_drafts_that_are_always_right_are_all_taken(monkeypatch, drafts, steps):
    model, prompt = make(LATENT), [1, 2, 3]
    want = list(generate(model, prompt, 31, sampling=GREEDY))
    puppet(monkeypatch, lambda ids, count: want[len(ids) - 3 :][:count])
    counted = Acceptance()
    assert list(generate_ahead(model, prompt, 31, draft_tokens=drafts, acceptance=counted)) == want
    assert counted.rate == 1.0 and counted.drafted_at == counted.accepted_at == [steps] * drafts


@pytest.mark.parametrize("right", [0, 1, 2])
def test_drafts_count_up_to_the_first_wrong_one(monkeypatch, right):
    model, prompt = make(GROUPED), [1, 2, 3]
    want = [*generate(model, prompt, 20, sampling=GREEDY), 0, 0, 0]

    def choose(ids, count):
        true = want[len(ids) - 3 :][:count]
        return [token if place < right else (token + 1) % 97 for place, token in enumerate(true)]

    puppet(monkeypatch, choose)
    counted = Acceptance()
    assert list(generate_ahead(model, prompt, 20, draft_tokens=3, acceptance=counted)) == want[:20]
    full = [step for step in counted.accepted_at if step]
    assert len(full) == right and counted.accepted_at[right:] == [0] * (3 - right)


def test_layers_that_know_the_text_are_always_right():
    """Zeroed blocks leave a model whose next token depends on the last one: drafts can be made exact."""
    model = make(replace(LATENT, num_mtp_layers=2))
    for block in [*model.layers, *(layer.block for layer in model.mtp)]:
        for part in (block.attention.o_proj.weight, *_outputs(block.mlp)):
            part.detach().zero_()
    width = model.config.d_model
    with torch.no_grad():
        for layer in model.mtp:  # the stream is the embedding of the newest token, as in the model
            layer.proj.weight.copy_(torch.cat([torch.eye(width), torch.zeros(width, width)], dim=1))
            layer.embed_norm.weight.fill_(1.0)
            layer.final_norm.weight.copy_(model.final_norm.weight)
    counted = Acceptance()
    text = list(generate_ahead(model, [1, 2, 3], 40, draft_tokens=5, acceptance=counted))
    assert text == list(generate(model, [1, 2, 3], 40, sampling=GREEDY))
    assert counted.rate > 0.9


def _outputs(mlp) -> list[torch.Tensor]:
    return [t for name, t in mlp.named_parameters() if "down_proj" in name]


@pytest.mark.parametrize("drafts", [1, 2, 3])
def test_the_drafts_are_those_of_a_pass_over_the_whole_text(monkeypatch, drafts):
    """What layer k drafts is what a forward pass without a cache computes, given the drafts before it."""
    model, prompt = make(replace(LATENT, num_mtp_layers=3)), [4, 8, 15, 16]
    seen = []
    plain = _Drafter.draft

    def noted(self, hidden, ids, count):
        seen.append((list(ids), plain(self, hidden, ids, count)))
        return seen[-1][1]

    monkeypatch.setattr(_Drafter, "draft", noted)
    list(generate_ahead(model, prompt, 12, draft_tokens=drafts))
    assert len(seen) >= 3
    for ids, drafted in seen:
        ahead = model(torch.tensor([[*ids, *drafted]]), ahead=True).ahead_BLV
        for depth, draft in enumerate(drafted):
            assert int(ahead[depth][0, len(ids) - 2].argmax()) == draft


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
    with pytest.raises(ConfigError, match=r"draft_tokens = 0: must be at least 1"):
        list(generate_ahead(make(LATENT), [1], 3, draft_tokens=0))
    with pytest.raises(ConfigError, match="exceed max_seq_len"):
        list(generate_ahead(make(LATENT), [1], 64))


@pytest.mark.parametrize("drafts", [1, 3])
def test_logits_that_are_not_finite_are_an_error(drafts):
    """In the prompt, and later on."""
    model = make(LATENT)
    said = list(generate(model, [3, 17], 12, sampling=GREEDY))
    later = next(token for token in said if token not in (3, 17))
    model.embed.weight.data[later] = torch.nan
    with pytest.raises(
        NotFiniteError, match=r"the logits after \d+ tokens are not finite: first at token \d"
    ):
        list(generate_ahead(model, [3, 17], 12, draft_tokens=drafts))
    with pytest.raises(
        NotFiniteError, match="the logits after 2 tokens are not finite: first at token 1 of 2"
    ):
        list(generate_ahead(model, [3, later], 12, draft_tokens=drafts))
