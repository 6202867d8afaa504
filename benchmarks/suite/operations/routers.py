"""What a router costs the layer in training, over plain top-k."""

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from moeworks import BalanceConfig, MoE, Routing
from moeworks.config import (
    AssignmentChoice,
    BanditChoice,
    ExpertChoice,
    HashChoice,
    PolicyGradientChoice,
    RandomChoice,
    RoundRobinChoice,
    SinkhornChoice,
    ThresholdChoice,
    TopPChoice,
)
from suite.arms import our_layer
from suite.layers import LAYERS, TINY, LayerRun, LayerShape
from suite.registry import Arm, Case, Operation, Sampler, Settings, register
from suite.sampling import milliseconds

TOP_K = "top-k"
SIGN, QUANTILE = BalanceConfig(bias_rule="sign"), BalanceConfig(bias_rule="quantile", bias_rate=0.1)


def routers(shape: LayerShape) -> dict[str, tuple[dict[str, Any], BalanceConfig]]:
    """Options of MoEConfig, and the balance whose statistics are part of the time. As many experts a token
    as top-k has, on average; those that choose a number may take twice as many, and the level is that of the
    uniform routing of the case."""
    most = min(2 * shape.K, shape.E)
    none = BalanceConfig()
    return {
        TOP_K: ({}, none),
        "top-k, 8 groups": (dict(num_groups=min(8, shape.E // 2), top_k_groups=min(4, shape.E // 2)), none),
        "top-k, noisy": (dict(noisy_top_k=True), none),
        "top-k, Gumbel": (dict(gumbel_noise=1.0, noise_steps=1000), none),
        "loss-free bias": (dict(selection_bias=True), SIGN),
        "quantile bias": (dict(selection_bias=True), QUANTILE),
        "expert choice": (dict(choice=ExpertChoice()), none),
        "expert choice, causal": (dict(choice=ExpertChoice(causal="always")), none),
        "top-p": (dict(choice=TopPChoice(p=0.5)), none),
        "threshold": (
            dict(choice=ThresholdChoice(threshold=1.5 / shape.E, mean_experts=shape.K), top_k=most),
            none,
        ),
        "hash": (dict(choice=HashChoice()), none),
        "random": (dict(choice=RandomChoice()), none),
        "round robin": (dict(choice=RoundRobinChoice()), none),
        "policy gradient": (dict(choice=PolicyGradientChoice()), none),
        "bandit": (dict(choice=BanditChoice(buckets=4096)), none),
        "dropping, batch priority": (dict(capacity_factor=1.0, drop_policy="batch_priority"), none),
        "Sinkhorn": (dict(choice=SinkhornChoice()), none),
        "linear assignment": (dict(choice=AssignmentChoice()), none),
    }


def router_cases(settings: Settings) -> list[Case]:
    """64 experts, top 8, T 4096, d 512."""
    return [TINY.case()] if settings.quick else [LayerShape(T=4096, D=512, **LAYERS[1]).case()]


class _Step(nn.Module):
    """The layer, and what its router's state needs to know of each micro-batch."""

    def __init__(self, moe: MoE, balance: BalanceConfig) -> None:
        super().__init__()
        self.moe, self.balance = moe, balance

    def forward(self, x: Tensor) -> Tensor:
        """y of the layer."""
        y, routing = self.moe(x, token_ids=_numbered(x))
        with torch.no_grad():
            self.moe.router.statistics(_rewarded(self.moe, routing), self.balance)
        return y


def _numbered(x: Tensor) -> Tensor:
    """A token id for each token, for the routers that go by it."""
    return torch.arange(x.shape[:-1].numel(), device=x.device).view(x.shape[:-1])


def _rewarded(moe: MoE, routing: Routing) -> Routing:
    """With a loss for each token, for the routers that learn from it."""
    if not moe.router.wants_token_losses:
        return routing
    return replace(routing, token_losses_T=routing.routing_weights_TK[:, 0].detach())


def _build(options: dict[str, Any], balance: BalanceConfig, shape: LayerShape, settings: Settings) -> Sampler:
    layer = our_layer("auto", shape, settings, options)
    moe = layer.module
    assert isinstance(moe, MoE)
    _settle(moe, balance, layer.data.x_TD)
    run = LayerRun(_Step(moe, balance), layer.data)
    return Sampler(milliseconds(run.run, settings), run.fingerprint)


@torch.no_grad()
def _settle(moe: MoE, balance: BalanceConfig, x_TD: Tensor) -> None:
    """Let cutoffs, thresholds and biases find their places on the data: a layer is measured in training."""
    for _ in range(30):
        _, routing = moe(x_TD, token_ids=_numbered(x_TD))
        sums = moe.router.statistics(_rewarded(moe, routing), balance)
        if not sums:
            return
        moe.router.update(sums, balance)


def router_arms(case: Case, settings: Settings) -> list[Arm]:
    """Every router, on the backend that auto chooses; top-k is what the others are over."""
    shape = LayerShape(**case.shape)
    return [
        Arm(name=name, build=partial(_build, options, balance, shape, settings), ours=True, maths=None)
        for name, (options, balance) in routers(shape).items()
    ]


register(
    Operation(
        name="routers",
        summary="MoE layer, forward and backward with the router and its statistics, by router",
        unit="ms",
        reference=TOP_K,
        cases=router_cases,
        arms=router_arms,
    )
)
