"""Parameters and FLOPs of a Soft MoE layer, as functions of its config; no torch, no weights."""

from moeworks.config.count import count_experts
from moeworks.config.model import GATED, MoEConfig
from moeworks.config.soft_choice import SoftChoice
from moeworks.errors import check


def soft_choice(config: MoEConfig) -> SoftChoice:
    """The choice of a Soft MoE layer. Raises ConfigError for others, and for what it cannot honour."""
    choice = config.choice
    check(isinstance(choice, SoftChoice), "router.choice", choice.kind, "must be 'soft' in a SoftMoE")
    assert isinstance(choice, SoftChoice)
    for name in ("capacity_factor", "eval_capacity_factor"):
        value = getattr(config, name)
        check(value is None, name, value, "must be None in a SoftMoE: loads are equal and nothing is dropped")
    check(
        config.num_shared_experts == 0,
        "num_shared_experts",
        config.num_shared_experts,
        "must be 0 in a SoftMoE, where every token has a part of every expert; add a dense block beside it",
    )
    return choice


def count_slots(config: MoEConfig) -> int:
    """Slots of all experts, E * p: what the experts work on in a sequence."""
    return config.num_experts * soft_choice(config).slots_per_expert


def count_soft_parameters(config: MoEConfig) -> int:
    """The experts, a vector for each slot, and the scale."""
    return count_experts(config) + count_slots(config) * config.d_model + 1


def count_soft_flops(config: MoEConfig, seq_len: int, *, training: bool) -> int:
    """Floating-point operations for one sequence of `seq_len` tokens, counted as count_flops does.

    Three products of tokens and slots (scores, dispatch, combine), and every slot through its expert: with
    as many slots as tokens what top-1 routing costs in the experts, whatever their number.
    """
    mixing = 3 * seq_len * config.d_model
    expert = (3 if config.activation in GATED else 2) * config.d_model * config.d_expert
    forward = 2 * count_slots(config) * (mixing + expert)
    return 3 * forward if training else forward
