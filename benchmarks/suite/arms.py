"""The arms of operations on one layer: ours on every backend, and the peers."""

from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from functools import partial
from typing import Any, cast

import torch

from moeworks import MoE, MoEConfig
from moeworks.errors import ConfigError
from moeworks.ops.backends import BACKENDS, Backend
from suite.layers import LayerRun, LayerShape, layer_data
from suite.peers import PEERS, Peer, loaded
from suite.registry import Arm, RefusedError, Sampler, Settings

Sampled = Callable[[LayerRun], Sampler]
"""From a layer that is ready to run to its sampler."""
MATHS = "the layer"
_RECOMPUTE = "recompute_experts"


def our_arms(shape: LayerShape, settings: Settings, sampled: Sampled) -> list[Arm]:
    """moeworks on each backend, once more with recomputation where MoEConfig knows it."""
    variants: list[tuple[str, dict[str, Any]]] = [("", {})]
    if _RECOMPUTE in {entry.name for entry in fields(MoEConfig)}:
        variants.append((", recompute", {_RECOMPUTE: True}))
    return [
        Arm(
            name=f"moeworks {backend}{suffix}",
            build=partial(_build_ours, cast(Backend, backend), options, shape, settings, sampled),
            ours=True,
            maths=MATHS,
        )
        for backend in BACKENDS
        for suffix, options in variants
    ]


def peer_arms(
    shape: LayerShape, settings: Settings, sampled: Sampled, peers: Sequence[Peer] = PEERS
) -> list[Arm]:
    """Every peer, or some."""
    return [
        Arm(
            name=peer.name,
            build=partial(_build_peer, peer, shape, settings, sampled),
            maths=MATHS if peer.exact else None,
        )
        for peer in peers
    ]


def our_layer(
    backend: Backend, shape: LayerShape, settings: Settings, options: dict[str, Any] | None = None
) -> LayerRun:
    """moeworks.MoE with the case's weights. Raises RefusedError when the backend does not serve them."""
    config = MoEConfig(d_model=shape.D, d_expert=shape.F, num_experts=shape.E, top_k=shape.K)
    data = layer_data(shape, settings)
    moe = MoE(replace(config, **(options or {})), backend=backend).to(**settings.placement)
    weights = {
        **({"router.weight": data.router_ED} if moe.config.choice.linear else {}),
        "experts.gate_up_proj": data.gate_up,
        "experts.down_proj": data.down,
    }
    try:
        moe.explain_backend(data.x_TD)
    except ConfigError as error:
        raise RefusedError(str(error)) from error
    return LayerRun(loaded(moe, weights), data)


def _build_ours(
    backend: Backend,
    options: dict[str, Any],
    shape: LayerShape,
    settings: Settings,
    sampled: Sampled,
) -> Sampler:
    return sampled(our_layer(backend, shape, settings, options))


def _build_peer(peer: Peer, shape: LayerShape, settings: Settings, sampled: Sampled) -> Sampler:
    torch.manual_seed(0)
    data = layer_data(shape, settings)
    return sampled(LayerRun(peer.build(shape, data, settings), data, rows=peer.rows))
