"""Learning-rate schedules as a pure function of the step, so that nothing needs saving."""

import math

from moeworks.config.run import OptimizerConfig


def lr_scale(step: int, total_steps: int, config: OptimizerConfig) -> float:
    """Factor of the peak learning rates in optimizer step `step` (0 is the first).

    A linear warm-up reaches 1 in its last step. After it `cosine` falls along half a cosine; `wsd` (warm-up,
    stable, decay: Hu et al. 2024, MiniCPM, section 4) stays at 1 and falls linearly over the last
    decay_fraction of all steps, or over what the warm-up leaves of them; `constant` stays. Both falls would
    reach final_fraction at step `total_steps`, the first that is not taken, so no step is spent at 0.
    """
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    if step >= total_steps and config.schedule != "constant":
        return config.final_fraction
    return config.final_fraction + (1 - config.final_fraction) * _remaining(step, total_steps, config)


def _remaining(step: int, total_steps: int, config: OptimizerConfig) -> float:
    """Remaining share of the decay: 1 where it begins, 0 where it ends."""
    match config.schedule:
        case "cosine":
            done = (step - config.warmup_steps) / (total_steps - config.warmup_steps)
            return (1 + math.cos(math.pi * done)) / 2
        case "wsd":
            start = max(config.warmup_steps, total_steps * (1 - config.decay_fraction))
            return 1.0 if step <= start else (total_steps - step) / (total_steps - start)
        case "constant":
            return 1.0
