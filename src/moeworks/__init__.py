"""moeworks: train, inspect and plan Mixture-of-Experts language models."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from moeworks.config import BalanceConfig, ModelConfig, MoEConfig, RunConfig
    from moeworks.layers.moe import MoE
    from moeworks.layers.soft_moe import SoftMoE
    from moeworks.models.decoder import Decoder
    from moeworks.ops.losses import balance_losses, total_balance_loss, updated_expert_bias
    from moeworks.ops.replay import Replay
    from moeworks.ops.routing import Routing
    from moeworks.pretrained import load
    from moeworks.saving import save
    from moeworks.trace.read import RoutingTrace

__version__ = "0.1.0"

__all__ = [
    "BalanceConfig",
    "Decoder",
    "MoE",
    "MoEConfig",
    "ModelConfig",
    "Replay",
    "Routing",
    "RoutingTrace",
    "RunConfig",
    "SoftMoE",
    "balance_losses",
    "load",
    "save",
    "total_balance_loss",
    "updated_expert_bias",
]

_HOMES = {
    "BalanceConfig": "moeworks.config",
    "Decoder": "moeworks.models.decoder",
    "MoE": "moeworks.layers.moe",
    "MoEConfig": "moeworks.config",
    "ModelConfig": "moeworks.config",
    "Replay": "moeworks.ops.replay",
    "Routing": "moeworks.ops.routing",
    "RoutingTrace": "moeworks.trace.read",
    "RunConfig": "moeworks.config",
    "SoftMoE": "moeworks.layers.soft_moe",
    "balance_losses": "moeworks.ops.losses",
    "load": "moeworks.pretrained",
    "save": "moeworks.saving",
    "total_balance_loss": "moeworks.ops.losses",
    "updated_expert_bias": "moeworks.ops.losses",
}


def __dir__() -> list[str]:
    """The public names, for completion."""
    return [*__all__, "__version__"]


def __getattr__(name: str) -> object:
    """Import a public name at its first use, so that the command line starts without torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'moeworks' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
