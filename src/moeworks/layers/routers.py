"""The router of a layer, built from a config or from the user's own class or function."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from moeworks.config.choices import CustomChoice
from moeworks.config.router import RouterConfig
from moeworks.errors import ConfigError, check, nearest
from moeworks.layers.bandit import BanditRouter
from moeworks.layers.choices import LINEAR_CHOICES
from moeworks.layers.fixed_routers import HashRouter, RandomRouter, RoundRobinRouter
from moeworks.layers.policy_gradient import PolicyGradientRouter
from moeworks.layers.router import Router, RouterModule, at_least_float32
from moeworks.ops.routing import Routing, RoutingContext

RouterFunction = Callable[[Tensor, RoutingContext], Routing]
"""Function from x [T, D] (float32 or float64) and a RoutingContext to a Routing over E experts."""

RouterBuilder = Callable[[RouterConfig, int], RouterFunction]
"""Function from a RouterConfig and d_model to a RouterFunction, which may be an nn.Module."""

ROUTERS: dict[str, Callable[[RouterConfig, int], RouterModule]] = {
    "hash": HashRouter,
    "random": RandomRouter,
    "round_robin": RoundRobinRouter,
    "policy_gradient": PolicyGradientRouter,
    "bandit": BanditRouter,
}
"""Router classes by kind of choice; every other kind uses the plain linear Router."""

_REGISTERED: dict[str, RouterBuilder] = {}


def register_router(name: str, build: RouterBuilder) -> None:
    """Let configs say CustomChoice(name=...): `build` then makes the router of each layer.

    The registration holds for this process: register the same name before you load such a run elsewhere.
    """
    _REGISTERED[name] = build


def build_router(config: RouterConfig, d_model: int) -> RouterModule:
    """The router that `config` describes. Raises ConfigError for a custom one that is not registered."""
    choice = config.choice
    check(choice.sparse, "router.choice", choice.kind, "has no router: build the layer as moeworks.SoftMoE")
    if isinstance(choice, CustomChoice):
        if choice.name not in _REGISTERED:
            known = nearest(choice.name, _REGISTERED) if _REGISTERED else "none is registered"
            raise ConfigError(
                f"router.choice.name = {choice.name!r}: must be registered in this process with"
                f" moeworks.layers.routers.register_router; {known}"
            )
        return own_router(_REGISTERED[choice.name](config, d_model), config)
    if choice.kind in ROUTERS:
        return ROUTERS[choice.kind](config, d_model)
    return Router(config, d_model, LINEAR_CHOICES[choice.kind](config))


def own_router(router: RouterFunction, config: RouterConfig) -> RouterModule:
    """The user's router as a RouterModule: anything else is wrapped, and the results are checked."""
    return router if isinstance(router, RouterModule) else OwnRouter(router, config)


class OwnRouter(RouterModule):
    """Wrapper that calls the user's function or module in float32, outside autocast; checks its result."""

    def __init__(self, route: RouterFunction, config: RouterConfig) -> None:
        super().__init__()
        check(callable(route), "router", route, "must be an nn.Module or a function of (x_TD, context)")
        self.route = route
        self.config = config

    def reset_parameters(self) -> None:
        """Reset the parameters of the wrapped module and its parts; a function has none."""
        for module in self.route.modules() if isinstance(self.route, nn.Module) else ():
            reset = getattr(module, "reset_parameters", None)
            if callable(reset):
                reset()

    def forward(self, x_TD: Tensor, context: RoutingContext | None = None) -> Routing:
        """The Routing that the wrapped router returns, with padding and sequence ids added."""
        context = context or RoutingContext()
        with torch.autocast(x_TD.device.type, enabled=False):
            routing = self.route(at_least_float32(x_TD), context)
        check(isinstance(routing, Routing), "router", type(routing).__name__, "must return a Routing")
        shape = (x_TD.shape[0], self.config.slots)
        found = tuple(routing.expert_ids_TK.shape)
        check(found == shape, "router expert_ids", found, f"must have the shape (tokens, slots) = {shape}")
        check(
            routing.num_experts == self.config.num_routes,
            "router router_logits",
            routing.num_experts,
            f"must have a column for each of the {self.config.num_routes} experts",
        )
        return replace(routing, valid_T=context.valid_T, sequence_ids_T=context.sequence_ids_T)
