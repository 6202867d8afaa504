"""Which experts are chosen together."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from moeworks.analyse.intervals import document_codes
from moeworks.trace import RoutingTrace

_CHUNK = 1 << 22  # entries of the membership matrix that are held at a time
_STRETCHES = 50  # stretches of text that the dispersion is estimated from
_STRETCH_TOKENS = 64  # with few documents: tokens in a row that stand for one


@dataclass(frozen=True, eq=False)
class CoactivationTable:
    """One matrix per layer; the diagonal is 0."""

    layers: tuple[int, ...]
    pairs: np.ndarray
    """int64 [l, E, E]: N_ij, tokens whose top-k holds both i and j."""
    rate: np.ndarray
    """float [l, E, E]: N_ij / N_i (OLMoE, Muennighoff et al. 2024, section 4.2), over all pairs of a token's
    top-k, so that rows sum to K - 1. Rows of experts without a token are 0."""
    baseline: np.ndarray
    """float [l, E, E]: (K - 1) N_j / sum_{m != i} N_m, what rate would be if the K - 1 experts beside i were
    drawn by load, whatever i is. Rows sum to K - 1."""
    dispersion: np.ndarray
    """float [l]: variance over mean of a pair's counts between documents, pooled over pairs; 1 where tokens
    choose independently, more where a document keeps to its pairs. At least 1."""

    def lift(self) -> np.ndarray:
        """float [l, E, E]: rate / baseline; above 1 a pair meets more often than its loads say."""
        return self.rate / np.where(self.baseline > 0, self.baseline, 1)


def coactivation(trace: RoutingTrace) -> CoactivationTable:
    """Co-activation of every pair of experts in every layer.

    Published code of OLMoE counts only pairs of adjacent ranks, for K = 8 a quarter of them; this counts
    all, as its paper defines.
    """
    experts, layers = trace.header.num_experts, trace.header.layers
    pairs = np.stack([count_pairs(trace.ids(layer), experts) for layer in layers])
    tokens = np.einsum("lii->li", pairs).astype(np.float64)  # N_i
    off = pairs * (1 - np.eye(experts, dtype=np.int64))
    others = tokens.sum(axis=1)[:, None, None] - tokens[:, :, None]
    rate = off / np.where(tokens > 0, tokens, 1)[:, :, None]
    partners = off.sum(axis=2) / np.where(tokens > 0, tokens, 1)  # K - 1 where no slot is empty
    baseline = partners[:, :, None] * tokens[:, None, :] / np.where(others > 0, others, 1)
    baseline = baseline * (1 - np.eye(experts))
    stretches = _stretches(trace)
    dispersion = [_dispersion(trace.ids(layer), stretches, experts) for layer in layers]
    return CoactivationTable(layers, off, rate, baseline, np.array(dispersion))


def _stretches(trace: RoutingTrace) -> list[np.ndarray]:
    """Tokens of up to _STRETCHES documents; with few documents, of stretches of a text."""
    codes, documents = document_codes(trace)
    if documents < _STRETCHES // 2:
        codes = np.arange(len(codes)) // _STRETCH_TOKENS
    order = np.argsort(codes, kind="stable")
    starts = np.flatnonzero(np.diff(codes[order], prepend=-1))
    parts = np.split(order, starts[1:])
    chosen = np.linspace(0, len(parts) - 1, min(_STRETCHES, len(parts))).round().astype(int)
    return [parts[place] for place in chosen]


def _dispersion(ids: np.ndarray, stretches: list[np.ndarray], num_experts: int) -> float:
    """Pearson's statistic of the stretches' pair counts over its degrees of freedom, pooled over pairs."""
    if len(stretches) < 2:
        return 1.0
    counts = np.stack([count_pairs(ids[rows], num_experts) for rows in stretches]).astype(np.float64)
    counts *= 1 - np.eye(num_experts)
    lengths = np.array([len(rows) for rows in stretches])[:, None, None]
    expected = lengths * counts.sum(axis=0) / lengths.sum()
    total = expected.sum()
    ratio = np.square(counts - expected).sum() / total if total else 1.0
    return max(1.0, float(ratio * len(stretches) / (len(stretches) - 1)))


def count_pairs(ids: np.ndarray, num_experts: int) -> np.ndarray:
    """int64 [E, E]: tokens that chose both i and j; N_i on the diagonal."""
    total = np.zeros((num_experts, num_experts), np.int64)
    for chosen in membership(ids, num_experts):
        total += np.rint(chosen.T @ chosen).astype(np.int64)
    return total


def membership(ids: np.ndarray, num_experts: int) -> Iterator[np.ndarray]:
    """float32 [chunk, E] of 0 and 1, some tokens at a time: whether the token chose the expert.

    Sums of products are exact: a chunk has fewer than 2^24 tokens.
    """
    step = max(_CHUNK // num_experts, 1)
    for start in range(0, len(ids), step):
        part = ids[start : start + step]
        chosen = np.zeros((len(part), num_experts + 1), np.float32)  # the last column: empty slots
        np.put_along_axis(chosen, part.astype(np.int64), 1, axis=1)
        yield chosen[:, :num_experts]
