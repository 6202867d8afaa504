"""The smooth load of noisy top-k (Shazeer et al. 2017, appendix A)."""

import pytest
import torch
from random_layers import make_routing

from moeworks.ops.losses import load_loss


def noisy_routing(clean: torch.Tensor, std: torch.Tensor, **options):
    return make_routing(clean, noise_std_TE=std, **options)


def cv2_plus_1(values: torch.Tensor) -> torch.Tensor:
    return 1 + values.var(correction=0) / values.mean() ** 2


def test_the_smooth_load_is_the_chance_to_be_chosen_when_the_own_noise_is_drawn_again():
    torch.manual_seed(0)
    clean, std = torch.randn(3, 5, dtype=torch.float64), torch.rand(3, 5, dtype=torch.float64) + 0.2
    routing = noisy_routing(clean, std)
    draws = 20_000
    chance = torch.zeros(3, 5, dtype=torch.float64)
    for e in range(5):
        noisy = routing.router_logits_TE.repeat(draws, 1, 1)
        noisy[:, :, e] = clean[:, e] + std[:, e] * torch.randn(draws, 3, dtype=torch.float64)
        chance[:, e] = (noisy.topk(2, dim=-1).indices == e).any(-1).double().mean(0)
    # Each chance is a mean of 20 000 draws, with a standard error of at most 0.0035.
    torch.testing.assert_close(load_loss(routing), cv2_plus_1(chance.sum(0)), rtol=0.02, atol=0)


def test_closed_form_of_two_experts():
    torch.manual_seed(0)
    clean = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    std = torch.tensor([[2.0, 0.5]], dtype=torch.float64)
    routing = noisy_routing(clean, std, top_k=1)
    noisy = routing.router_logits_TE[0]
    normal = torch.distributions.Normal(0.0, 1.0)
    load = torch.stack([normal.cdf((clean[0, e] - noisy[1 - e]) / std[0, e]) for e in range(2)])
    torch.testing.assert_close(load_loss(routing), cv2_plus_1(load))


def test_equal_logits_are_balanced_on_average():
    torch.manual_seed(0)
    clean = torch.zeros(20_000, 6, dtype=torch.float64)
    assert load_loss(noisy_routing(clean, clean + 1)).item() == pytest.approx(1, abs=1e-3)


def test_it_tells_the_router_which_way_to_go():
    torch.manual_seed(0)
    clean = torch.zeros(200, 4, dtype=torch.float64)
    clean[:, 0] = 2
    clean.requires_grad_()
    (grad,) = torch.autograd.grad(load_loss(noisy_routing(clean, torch.ones_like(clean))), clean)
    total = grad.sum(0)
    assert total[0] > 0 and (total[1:] < 0).all()


def test_padding_does_not_count():
    torch.manual_seed(0)
    clean, std = torch.randn(8, 4, dtype=torch.float64), torch.ones(8, 4, dtype=torch.float64)
    torch.manual_seed(1)
    padded = noisy_routing(clean, std, valid_T=torch.arange(8) < 5)
    real = padded.with_tensors(tuple(t[:5] for t in padded.tensors()))
    torch.testing.assert_close(load_loss(padded), load_loss(real))


def test_all_experts_chosen_is_balanced_and_keeps_the_graph():
    clean = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    loss = load_loss(noisy_routing(clean, torch.ones_like(clean), top_k=3))
    assert loss.item() == 1
    assert not torch.autograd.grad(loss, clean)[0].any()


def test_without_noise_it_is_the_load_itself():
    logits = torch.tensor([[5.0, 4.0, 0.0, 0.0]] * 3, dtype=torch.float64)
    assert load_loss(make_routing(logits)).item() == pytest.approx(2)
