"""A router that computes in bfloat16: what moeworks never does, for the lab that shows why."""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from moeworks.layers.router import Router
from moeworks.models.decoder import Decoder, moe_modules
from moeworks.ops.routing import Routing, route


class BFloat16Router(Router):
    """Product, scores, choice and weights in bfloat16; the weights themselves stay float32 parameters.

    For plain linear routers without bias, noise and jitter. The record is float32 again, as everything that
    reads it expects: its numbers have bfloat16's eight bits.
    """

    def forward(
        self, x_TD: Tensor, *, valid_T: Tensor | None = None, sequence_ids_T: Tensor | None = None
    ) -> Routing:
        with torch.autocast(x_TD.device.type, enabled=False):
            logits_TE = F.linear(x_TD.bfloat16(), self.weight.bfloat16())
            routing = route(logits_TE, self.config, valid_T=valid_T, sequence_ids_T=sequence_ids_T)
            return replace(
                routing,
                routing_weights_TK=routing.routing_weights_TK.float(),
                router_logits_TE=routing.router_logits_TE.float(),
                router_probs_TE=routing.router_probs_TE.float(),
            )


def use_bfloat16_routers(model: Decoder) -> None:
    """Let every router of `model` compute in bfloat16, with the parameters that it has."""
    for moe in moe_modules(model):
        router = BFloat16Router(moe.router.config, moe.config.d_model)
        router.weight = moe.router.weight
        moe.router = router
