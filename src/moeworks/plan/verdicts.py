"""What dominates, in sentences."""

from moeworks.plan.decode import DecodeSpeed
from moeworks.plan.serving import ServingPlan, SplitPlan
from moeworks.plan.training import TrainingPlan


def serving_verdicts(plan: ServingPlan) -> list[str]:
    """What fills the memory, what takes a decode step's time, and how far from the other side that is."""
    sentences = [_memory(plan)]
    chosen = next((split for split in plan.splits if split.decode is not None), None)
    if chosen is not None and chosen.decode is not None:
        sentences += _decode(plan, chosen, chosen.decode)
    elif plan.splits[0].problem is not None:
        sentences.append(f"This plan {plan.splits[0].problem}.")
    return sentences


def training_verdicts(plan: TrainingPlan) -> list[str]:
    """Whether the devices hold the state, and how long the data is for the model."""
    sentences = []
    if plan.devices_for_state is not None and plan.devices_for_state > plan.devices:
        sentences.append(
            f"Does not fit: weights, gradients and optimizer state need {plan.devices_for_state:,} devices"
            f" when spread over all of them, and there are {plan.devices:,}."
        )
    ratio = plan.tokens_per_active_parameter
    sentences.append(
        f"{ratio:,.0f} tokens per active parameter (dense models are compute-optimal near 20),"
        f" {plan.tokens_per_parameter:,.1f} per parameter."
    )
    return sentences


def _memory(plan: ServingPlan) -> str:
    weights, cache = plan.weight_bytes, plan.cache_bytes
    share = weights / (weights + cache)
    if share >= 0.5:
        return f"Memory: weights dominate, {_percent(share)} of weights and cache together."
    return f"Memory: the cache dominates, {_percent(1 - share)} of weights and cache together."


def _decode(plan: ServingPlan, split: SplitPlan, speed: DecodeSpeed) -> list[str]:
    reads = speed.reads
    parts = {"experts": reads.experts, "other weights": reads.other_weights, "cache": reads.cache}
    listed = ", ".join(f"{name} {_percent(size / reads.total)}" for name, size in parts.items() if size)
    limit = "arithmetic" if speed.bound == "compute" else "memory bandwidth"
    sentences = [f"Decode ({split.split} split): bound by {limit}; of what is read: {listed}."]
    if speed.compute_seconds is not None:
        ratio = speed.memory_seconds / speed.compute_seconds
        more, less = ("reading", "arithmetic") if ratio >= 1 else ("arithmetic", "reading")
        ratio = max(ratio, 1 / ratio)
        sentences.append(f"The {more} takes {ratio:,.1f} times as long as the {less}.")
    else:
        sentences.append(f"No peak FLOP/s are known for {plan.device.name}: only bandwidth is accounted for.")
    return sentences


def _percent(share: float) -> str:
    """A share in whole percent, of which neither 0 nor 100 is made up by rounding."""
    if 0 < share < 0.005:
        return "under 1%"
    return "over 99%" if 0.995 <= share < 1 else f"{share:.0%}"
