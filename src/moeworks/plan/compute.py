"""FLOPs of a prompt and of training with causal attention counted exactly, beside those of config.count."""

from moeworks.config.count import count_flops
from moeworks.config.mixers import GQAConfig
from moeworks.config.model import GATED, ModelConfig
from moeworks.plan.cache import visible_keys
from moeworks.plan.layers import mixer_counts


def prefill_flops(model: ModelConfig, length: int) -> int:
    """FLOPs to read a prompt of `length` tokens and predict the next one.

    As config.count.count_flops counts them, but a query costs only the keys that it sees, and the output
    projection counts once.
    """
    without_head = count_flops(model, 0, training=False) - 2 * model.vocab_size * model.d_model
    return length * without_head + 2 * _pairs(model, length) + 2 * model.vocab_size * model.d_model


def causal_training_flops(model: ModelConfig, length: int) -> float:
    """FLOPs per token of training on sequences of `length` tokens when masked pairs cost nothing.

    config.count.count_flops has them all, which is the usual convention of model FLOPs. DeepSeek print both
    (arXiv:2505.09343, table 4), and causal ones in their table 2.
    """
    return count_flops(model, 0, training=True) + 3 * 2 * _pairs(model, length) / length


def expert_flops(model: ModelConfig) -> int:
    """FLOPs per token of the routed experts of the MoE layers alone."""
    moe = model.moe
    matrices = 3 if moe.activation in GATED else 2
    used = min(moe.top_k, moe.num_experts)
    return 2 * len(model.moe_layers) * used * matrices * moe.d_model * moe.d_expert


def _pairs(model: ModelConfig, length: int) -> int:
    """Multiply-adds of scores and values over a causal prompt, those of a sparse attention's scorer too."""
    products = 0
    for mixer, count, layers in mixer_counts(model):
        chunk = mixer.chunk if isinstance(mixer, GQAConfig) else None
        window = None if chunk is not None else count.reach
        products += layers * count.per_key * visible_keys(length, window, chunk)
        products += layers * count.scorer_per_key * visible_keys(length)
    return products
