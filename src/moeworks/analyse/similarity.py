"""How alike experts are, by their weights and by what they make of the same tokens."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from moeworks.errors import check
from moeworks.layers.experts import Experts
from moeworks.ops.routing import Routing


@dataclass(frozen=True, eq=False)
class SimilarityTable:
    """One layer. Diagonals are 1; mean figures leave them out."""

    weights: np.ndarray | None
    """float [E, E]: cosine of all weights of two experts, as one vector each."""
    outputs: np.ndarray | None
    """float [E, E]: mean over tokens of the cosine of two experts' outputs."""
    cka: np.ndarray | None
    """float [E, E]: linear CKA of the outputs (Kornblith et al. 2019, section 3)."""

    def mean(self) -> dict[str, float]:
        """The mean over pairs of different experts of each matrix that is there."""
        present = {name: matrix for name, matrix in vars(self).items() if matrix is not None}
        return {name: off_diagonal_mean(matrix) for name, matrix in present.items()}


def weight_similarity(weights: np.ndarray) -> np.ndarray:
    """float [E, E]: cosine similarity of weights [E, ...], flattened (Lo et al. 2024, section 4.1).

    Neurons are compared in place: experts that hold the same neurons in another order look different here,
    and alike in their outputs. Copies (upcycling) are 1, independent random experts near 0.
    """
    flat = weights.reshape(len(weights), -1).astype(np.float64)
    norm = np.linalg.norm(flat, axis=1, keepdims=True)
    unit = flat / np.where(norm > 0, norm, 1)
    return unit @ unit.T


def output_similarity(outputs: np.ndarray) -> np.ndarray:
    """float [E, E]: mean over tokens of the cosine of outputs [E, T, D] on the same tokens."""
    exact = outputs.astype(np.float64)
    norm = np.linalg.norm(exact, axis=2, keepdims=True)
    unit = exact / np.where(norm > 0, norm, 1)
    return np.einsum("etd,ftd->ef", unit, unit, optimize=True) / max(outputs.shape[1], 1)


def linear_cka(outputs: np.ndarray) -> np.ndarray:
    """float [E, E]: ||Y^T X||_F^2 / (||X^T X||_F ||Y^T Y||_F), columns centred, of outputs [E, T, D].

    1 for outputs that differ by a rotation and a scale (Kornblith et al. 2019, section 3).
    """
    centred = outputs.astype(np.float64) - outputs.mean(axis=1, keepdims=True)
    experts = len(centred)
    cross = np.zeros((experts, experts))
    for i in range(experts):
        for j in range(i, experts):
            cross[i, j] = cross[j, i] = np.square(centred[j].T @ centred[i]).sum()
    scale = np.sqrt(np.diag(cross))
    product = np.outer(scale, scale)
    return cross / np.where(product > 0, product, 1)


def off_diagonal_mean(matrix: np.ndarray) -> float:
    """The mean over pairs of different experts; NaN for one expert."""
    size = len(matrix)
    return float((matrix.sum() - np.trace(matrix)) / (size * (size - 1))) if size > 1 else float("nan")


@torch.no_grad()
def expert_similarity(experts: Experts, x_TD: Tensor | None = None) -> SimilarityTable:
    """Similarities of the experts of one of our layers; with inputs x [T, D] of their outputs as well.

    Raises ConfigError for inputs of another width.
    """
    matrices = [p.flatten(1) for name, p in experts.named_parameters() if name.endswith("_proj")]
    weights = weight_similarity(torch.cat(matrices, dim=1).float().cpu().numpy())
    if x_TD is None:
        return SimilarityTable(weights, None, None)
    outputs = expert_outputs(experts, x_TD)
    return SimilarityTable(weights, output_similarity(outputs), linear_cka(outputs))


@torch.no_grad()
def expert_outputs(experts: Experts, x_TD: Tensor) -> np.ndarray:
    """float32 [E, T, D]: what every expert makes of every token, with weight 1."""
    width = experts.config.d_model
    check(x_TD.shape[1] == width, "x", tuple(x_TD.shape), f"must be [T, {width}]")
    return np.stack(
        [
            experts(x_TD, _all_to(expert, x_TD, experts.config.num_experts)).float().cpu().numpy()
            for expert in range(experts.config.num_experts)
        ]
    )


def _all_to(expert: int, x_TD: Tensor, num_experts: int) -> Routing:
    """Every token to one expert."""
    scores_TE = x_TD.new_zeros(len(x_TD), num_experts, dtype=torch.float32)
    ids_T1 = torch.full((len(x_TD), 1), expert, device=x_TD.device)
    return Routing(ids_T1, torch.ones_like(ids_T1, dtype=torch.float32), scores_TE, scores_TE)
