import pytest
import torch
import torch.nn.functional as F
from random_layers import make_config, randomise_

from moeworks.layers.router import Router


def make_router(dtype: torch.dtype = torch.float32, **options) -> Router:
    torch.manual_seed(0)
    return randomise_(Router(make_config(**options), 8).to(dtype))


def test_logits_are_float32_products_whatever_the_model_dtype():
    router = make_router(torch.bfloat16, router_bias=True)
    x = torch.randn(5, 8, dtype=torch.bfloat16)
    want = F.linear(x.float(), router.weight.float(), router.bias.float())
    assert torch.equal(router(x).router_logits_TE, want)


def test_float64_stays_float64():
    assert make_router(torch.float64)(torch.randn(5, 8).double()).router_logits_TE.dtype == torch.float64


def test_reset_parameters_zeroes_biases_and_noise():
    router = make_router(router_bias=True, noisy_top_k=True, selection_bias=True)
    router.reset_parameters()
    for zero in (router.bias, router.noise_weight, router.expert_bias):
        assert not zero.any()
    assert router.weight.abs().max() <= 8**-0.5
    assert router.weight.unique().numel() == router.weight.numel()


def test_what_is_not_asked_for_is_not_there():
    router = make_router()
    assert set(router.state_dict()) == {"weight"}
    assert router.bias is router.noise_weight is router.expert_bias is None


def test_expert_bias_is_saved_and_is_no_parameter():
    router = make_router(selection_bias=True)
    assert set(router.state_dict()) == {"weight", "expert_bias"}
    assert set(dict(router.named_parameters())) == {"weight"}


@pytest.mark.parametrize("cast", [torch.bfloat16, torch.float16])
def test_casting_the_model_keeps_expert_bias_exact(cast):
    router = make_router(selection_bias=True)
    before = router.expert_bias.clone()
    assert router.to(cast).weight.dtype == cast
    assert router.expert_bias.dtype == torch.float32
    assert torch.equal(router.expert_bias, before)
    assert router.double().expert_bias.dtype == torch.float64
    assert torch.equal(router.bfloat16().expert_bias, before.double())


def test_meta_device_and_to_empty_keep_the_bias_float32():
    router = make_router(selection_bias=True).to("meta").to_empty(device="cpu").bfloat16()
    assert router.expert_bias.dtype == torch.float32
    assert router.expert_bias.device.type == "cpu"


def test_jitter_scales_the_router_input_within_its_bounds():
    router = make_router(torch.float64, input_jitter=0.1)
    with torch.no_grad():
        router.weight.zero_()
        router.weight[:, 0] = 1
    logits = router(torch.ones(20_000, 8, dtype=torch.float64)).router_logits_TE[:, 0]
    assert 0.9 <= logits.min() < 0.901
    assert 1.099 < logits.max() <= 1.1
    # U(0.9, 1.1) has mean 1 and variance 0.2^2 / 12; the mean of 20 000 draws stays within five deviations.
    assert abs(logits.mean() - 1) < 5 * (0.2**2 / 12 / 20_000) ** 0.5
    assert logits.var().item() == pytest.approx(0.2**2 / 12, rel=0.05)


def test_noise_is_normal_with_the_stated_standard_deviation():
    router = make_router(torch.float64, noisy_top_k=True)
    x = torch.randn(1, 8, dtype=torch.float64)
    routing = router(x.expand(40_000, 8))
    clean = F.linear(x, router.weight)[0]
    std = F.softplus(F.linear(x, router.noise_weight))[0]
    torch.testing.assert_close(routing.clean_logits_TE[0], clean)
    torch.testing.assert_close(routing.noise_std_TE[0], std)
    standard = (routing.router_logits_TE - clean) / std
    assert (standard.mean(0).abs() < 5 / 200).all()
    assert (standard.std(0) - 1).abs().max() < 0.03
    assert (standard**4).mean().item() == pytest.approx(3, rel=0.03)
    correlation = torch.corrcoef(standard.T) - torch.eye(6, dtype=torch.float64)
    assert correlation.abs().max() < 5 / 200


def test_noise_weight_gets_a_gradient():
    router = make_router(torch.float64, noisy_top_k=True)
    router(torch.randn(9, 8, dtype=torch.float64)).routing_weights_TK.square().sum().backward()
    assert router.noise_weight.grad.any()


def test_evaluation_draws_no_random_numbers():
    router = make_router(noisy_top_k=True, input_jitter=0.5).eval()
    x, state = torch.randn(5, 8), torch.get_rng_state()
    routing = router(x)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(routing.router_logits_TE, F.linear(x, router.weight))
    assert routing.noise_std_TE is routing.clean_logits_TE is None
