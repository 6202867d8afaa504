"""A router that computes in bfloat16: what moeworks never does, for the lab that shows why."""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from moeworks.errors import check
from moeworks.layers.router import Router
from moeworks.models.decoder import Decoder, moe_modules
from moeworks.ops.routing import Routing, RoutingContext
from moeworks.ops.scoring import score_logits


class BFloat16Router(Router):
    """Product, scores, choice and mixing weights in bfloat16; its parameters stay float32.

    The record is float32 again, as everything that reads it expects: its numbers have bfloat16's eight bits.
    """

    def forward(self, x_TD: Tensor, context: RoutingContext | None = None) -> Routing:
        """Route T tokens; see Routing. Noise and biases take no part."""
        with torch.autocast(x_TD.device.type, enabled=False):
            logits_TE = F.linear(x_TD.bfloat16(), self.weight.bfloat16())
            routing = self.choice.choose(score_logits(logits_TE, self.config), context or RoutingContext())
            return replace(
                routing,
                routing_weights_TK=routing.routing_weights_TK.float(),
                router_logits_TE=routing.router_logits_TE.float(),
                router_probs_TE=routing.router_probs_TE.float(),
            )


def use_bfloat16_routers(model: Decoder) -> None:
    """Let every router of `model` compute in bfloat16, with the parameters that it has.

    Raises ConfigError for routers that are not plain linear ones.
    """
    for moe in moe_modules(model):
        config, before = moe.config, moe.router
        plain = not (config.router_bias or config.selection_bias or config.noisy)
        check(type(before) is Router and plain, "router", type(before).__name__, "must be plain and linear")
        assert isinstance(before, Router)
        router = BFloat16Router(config, config.d_model, before.choice)
        router.weight = before.weight
        moe.router = router
