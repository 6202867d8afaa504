"""What the router has to work with: its gradient, and the inputs that it must tell apart. Functions of
arrays."""

import numpy as np

from moeworks.errors import check


def gradient_signal_to_noise(gradients: np.ndarray) -> float:
    """||mean||^2 / variance of a router's gradients [n, ...] over n micro-batches of one step.

    The variance is the mean of ||g - mean||^2 with n - 1 below, that of a single micro-batch. Far below 1 /
    n, the step is noise. Infinite when all are equal. Raises ConfigError for fewer than two.
    """
    check(len(gradients) >= 2, "gradients", len(gradients), "must be of at least 2 micro-batches")
    flat = gradients.reshape(len(gradients), -1).astype(np.float64)
    mean = flat.mean(axis=0)
    variance = np.square(flat - mean).sum() / (len(flat) - 1)
    return float(np.square(mean).sum() / variance) if variance > 0 else float("inf")


def variance_in_top_directions(inputs: np.ndarray, directions: int) -> float:
    """Share of the variance of router inputs [T, D] that lies in their first `directions` principal
    directions.

    Near 1 with few directions, tokens lie along a line, and a router can hardly separate them; for
    isotropic inputs it is directions / D. 0 when the inputs do not vary. Raises ConfigError for more
    directions than D.
    """
    width = inputs.shape[1]
    check(1 <= directions <= width, "directions", directions, f"must lie between 1 and D = {width}")
    centred = inputs.astype(np.float64) - inputs.mean(axis=0, dtype=np.float64)
    variances = np.maximum(np.linalg.eigvalsh(centred.T @ centred)[::-1], 0)
    total = variances.sum()
    return float(variances[:directions].sum() / total) if total > 0 else 0.0
