"""Noise in training: what Gumbel noise draws, and how all noise falls to nothing."""

import pytest
import torch
from random_layers import make_config, random_moe

from moeworks import BalanceConfig
from moeworks.errors import ConfigError
from moeworks.layers.router import Router
from moeworks.ops.scoring import gumbel_like


def make_router(**options) -> Router:
    torch.manual_seed(0)
    return Router(make_config(**options), 8).double()


def test_gumbel_noise_draws_experts_from_the_softmax():
    """Kool et al. 2019, section 3: the greatest logits with Gumbel noise are draws without replacement."""
    router = make_router(num_experts=4, top_k=2, gumbel_noise=1.0)
    x = torch.randn(1, 8, dtype=torch.float64)
    routing = router(x.expand(60_000, 8))
    probs = (x @ router.weight.t()).softmax(1)[0].detach()
    drawn = torch.zeros(4, 4, dtype=torch.float64)
    drawn.index_put_(
        tuple(routing.expert_ids_TK.t()), torch.ones(60_000, dtype=torch.float64), accumulate=True
    )
    want = probs[:, None] * probs[None] / (1 - probs[:, None])
    want.fill_diagonal_(0)
    torch.testing.assert_close(drawn / 60_000, want, atol=0.01, rtol=0)


def test_its_weights_are_those_of_the_logits_without_it():
    router = make_router(gumbel_noise=2.0)
    routing = router(torch.randn(9, 8, dtype=torch.float64))
    scores_TK = routing.router_probs_TE.gather(1, routing.expert_ids_TK)
    torch.testing.assert_close(routing.routing_weights_TK, scores_TK / scores_TK.sum(1, keepdim=True))
    assert routing.clean_logits_TE is None


def test_the_noise_itself_has_the_moments_of_a_gumbel():
    torch.manual_seed(0)
    noise = gumbel_like(torch.zeros(400_000, dtype=torch.float64))
    assert noise.mean() == pytest.approx(0.5772, abs=0.01)
    assert noise.var() == pytest.approx(torch.pi**2 / 6, rel=0.02)


@pytest.mark.parametrize(
    "options", [dict(noisy_top_k=True), dict(gumbel_noise=1.0), dict(input_jitter=0.5)], ids=str
)
def test_all_noise_falls_linearly_to_nothing(options):
    moe = random_moe(make_config(**options, noise_steps=4))
    router, x = moe.router, torch.randn(200, 8, dtype=torch.float64)
    balance, spreads = BalanceConfig(), []
    clean = router.eval()(x)
    for step in range(6):
        assert router.noise_step == step
        torch.manual_seed(0)
        routing = router.train()(x)
        if "gumbel_noise" in options:
            spreads.append((routing.expert_ids_TK != clean.expert_ids_TK).double().mean().item())
        else:
            spreads.append((routing.router_logits_TE - clean.router_logits_TE).std().item())
        router.update(router.statistics(routing, balance), balance)
    assert spreads[0] > 0
    assert spreads[4] == spreads[5] == pytest.approx(0.0, abs=1e-12)
    if "gumbel_noise" not in options:
        assert spreads[:5] == pytest.approx([spreads[0] * (1 - s / 4) for s in range(5)], rel=1e-6)


def test_what_goes_not_together():
    with pytest.raises(ConfigError, match=r"router.gumbel_noise = 1.0: cannot be combined with noisy_top_k"):
        make_config(gumbel_noise=1.0, noisy_top_k=True)
    with pytest.raises(ConfigError, match=r"router.noise_steps = 3: .* needs noisy_top_k, gumbel_noise or"):
        make_config(noise_steps=3)
    with pytest.raises(ConfigError, match=r"router.gumbel_noise = -1.0"):
        make_config(gumbel_noise=-1.0)
