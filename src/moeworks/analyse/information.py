"""Does an expert know a domain, or a word? Mutual information, in bits."""

from dataclasses import dataclass

import numpy as np

from moeworks.analyse.distributions import rank_p_value
from moeworks.analyse.intervals import document_codes
from moeworks.analyse.specialisation import document_labels, permuted_labels
from moeworks.errors import check
from moeworks.trace import RoutingTrace
from moeworks.trace.block import count_filled, filled_slots
from moeworks.trace.counts import count_groups

_DENSE = 1 << 24  # cells that are counted in an array; more are counted by sorting


@dataclass(frozen=True, eq=False)
class InformationTable:
    """Plug-in estimates [l] in bits, and what they are when domains mean nothing.

    The expert is one of a token's K, each alike. Plug-in estimates are too high, the more so the rarer the
    tokens: read the excess over the null, not the value.
    """

    layers: tuple[int, ...]
    expert_entropy: np.ndarray
    """H(expert)."""
    domain: np.ndarray
    """I(expert; domain)."""
    domain_null: np.ndarray
    """Its mean with the labels permuted over documents."""
    token: np.ndarray | None
    """I(expert; token id); None where token ids are not known."""
    domain_given_token: np.ndarray | None
    """I(expert; domain | token id) = H(expert | token id) - H(expert | token id, domain)."""
    domain_given_token_null: np.ndarray | None
    """Its mean with the labels permuted over documents: what rare tokens alone give."""
    domain_p_value: float
    """Share of the permutations whose I(expert; domain), the mean over layers, is as large."""
    domain_given_token_p_value: float | None
    """Share of the permutations whose I(expert; domain | token id), the mean over layers, is as large."""

    def excess(self) -> np.ndarray:
        """float [l]: I(expert; domain) over its null, not below 0."""
        return np.maximum(self.domain - self.domain_null, 0)

    def excess_given_token(self) -> np.ndarray:
        """float [l]: I(expert; domain | token id) over its null: what is known beyond the words."""
        check(self.domain_given_token is not None, "tokens.token_id", -1, "must be known for all tokens")
        assert self.domain_given_token is not None
        assert self.domain_given_token_null is not None
        return np.maximum(self.domain_given_token - self.domain_given_token_null, 0)


def mutual_information(trace: RoutingTrace, *, permutations: int = 19, seed: int = 0) -> InformationTable:
    """Information about the domain, the token id, and the domain given the token id, layer by layer.

    The null permutes the labels over whole documents. Raises ConfigError for a document in two domains.
    """
    codes, documents = document_codes(trace)
    label = document_labels(trace, codes, documents)
    labels = int(label.max()) + 1 if documents else 1
    orders = [label, *permuted_labels(label, permutations, seed)]
    domains = [order[codes].astype(np.int64) for order in orders]
    known = bool((trace.tokens.token_id >= 0).all())
    words = np.unique(trace.tokens.token_id, return_inverse=True)[1].astype(np.int64)
    pairs = (
        [np.unique(words * labels + domain, return_inverse=True)[1] for domain in domains] if known else []
    )
    rows = []
    mean_about, mean_beyond = np.zeros((2, 1 + permutations))
    for layer in trace.header.layers:
        ids = trace.ids(layer)
        experts = trace.header.num_experts
        alone = conditional_entropy(ids, np.zeros(len(ids), np.int64), experts)
        about = [alone - conditional_entropy(ids, domain, experts) for domain in domains]
        mean_about += about
        row = [alone, about[0], float(np.mean(about[1:]))]
        if known:
            by_word = conditional_entropy(ids, words, experts)
            beyond = [by_word - conditional_entropy(ids, pair, experts) for pair in pairs]
            mean_beyond += beyond
            row += [alone - by_word, beyond[0], float(np.mean(beyond[1:]))]
        rows.append(row)
    columns = list(np.array(rows).T)
    given = columns[3:] if known else [None, None, None]
    return InformationTable(
        trace.header.layers,
        *columns[:3],
        *given,
        domain_p_value=rank_p_value(mean_about[0], mean_about[1:]),
        domain_given_token_p_value=rank_p_value(mean_beyond[0], mean_beyond[1:]) if known else None,
    )


def conditional_entropy(ids: np.ndarray, condition: np.ndarray, num_experts: int) -> float:
    """H(expert | condition) in bits, of ids [T, K] and one whole number from 0 a token, [T].

    Equal to (sum_c n_c log n_c - sum_{c,e} n_{c,e} log n_{c,e}) / n, n the assignments; no empty slots.
    """
    filled = count_filled(ids, num_experts)
    total = int(filled.sum())
    if not total:
        return 0.0
    conditions = int(condition.max()) + 1
    per_condition = np.bincount(condition, filled, minlength=conditions)
    if conditions * num_experts <= _DENSE:
        cells = count_groups(ids, condition, conditions, num_experts)
    else:
        used = filled_slots(ids, num_experts)
        cells = np.unique((condition[:, None] * num_experts + ids)[used], return_counts=True)[1]
    return float((_n_log_n(per_condition) - _n_log_n(cells)) / total)


def _n_log_n(counts: np.ndarray) -> float:
    present = counts[counts > 0].astype(np.float64)
    return float((present * np.log2(present)).sum())
