"""Whether experts take certain domains or words, beside what chance and the words alone would give."""

from dataclasses import dataclass

import numpy as np

from moeworks.analyse.bootstrap import Interval, Resampling, bootstrap, document_codes
from moeworks.errors import check
from moeworks.trace import RoutingTrace
from moeworks.trace.counts import count_groups


@dataclass(frozen=True, eq=False)
class DomainTable:
    """Domain specialisation of every layer, expert and domain (D), and its nulls."""

    layers: tuple[int, ...]
    domains: tuple[str, ...]
    tokens: np.ndarray
    """int64 [D]: tokens of each domain."""
    specialisation: np.ndarray
    """float [l, E, D]: N_{i,D} / N_D, the share of the domain's tokens that expert i works on (OLMoE,
    Muennighoff et al. 2024, section 4.3). Sums to K over experts; uniform is K/E."""
    null_low: np.ndarray
    """float [l, E, D]: the lower end of the band when the labels are permuted over documents."""
    null_high: np.ndarray
    """float [l, E, D]: its upper end."""
    token_only: np.ndarray | None
    """float [l, E, D]: what a router gives that knows nothing but the token id: sum_x N_{x,D}/N_D p(i|x),
    with p(i|x) from all domains. None where token ids are not known."""

    def outside(self) -> np.ndarray:
        """int64 [l]: cells outside the null band."""
        return self.beyond().sum((1, 2))

    def beyond(self) -> np.ndarray:
        """bool [l, E, D]: whether a cell is outside the null band."""
        return (self.specialisation < self.null_low) | (self.specialisation > self.null_high)

    def preference(self) -> np.ndarray:
        """float [l, E, D]: specialisation over the expert's share of all tokens; 1 is no preference.

        A busy expert has a large share of every domain without preferring any. NaN for experts without a
        token.
        """
        overall = (self.specialisation * self.tokens).sum(axis=2, keepdims=True) / self.tokens.sum()
        shape = self.specialisation.shape
        return np.divide(self.specialisation, overall, out=np.full(shape, np.nan), where=overall > 0)


def domain_specialisation(
    trace: RoutingTrace, *, permutations: int = 200, level: float = 0.95, seed: int = 0
) -> DomainTable:
    """Specialisation with two nulls: labels permuted over documents, and the token-id-only router.

    Whole documents change labels, so that each domain keeps its number of documents and the tokens of a
    document stay together. Raises ConfigError when the trace has a document in two domains.
    """
    tokens, experts = trace.tokens, trace.header.num_experts
    codes, documents = document_codes(trace)
    label = document_labels(trace, codes, documents)
    used = np.unique(label)
    places = np.searchsorted(used, label)
    orders = permuted_labels(places, permutations, seed)
    lengths = np.bincount(codes, minlength=documents)
    known = bool((tokens.token_id >= 0).all()) and len(tokens) > 0
    found, low, high, only = [], [], [], []
    for layer in trace.header.layers:
        ids = trace.ids(layer)
        counts = count_groups(ids, codes, documents, experts)
        found.append(_by_label(counts, lengths, places, len(used)))
        drawn = np.stack([_by_label(counts, lengths, order, len(used)) for order in orders])
        low.append(np.quantile(drawn, (1 - level) / 2, axis=0))
        high.append(np.quantile(drawn, (1 + level) / 2, axis=0))
        if known:
            only.append(_token_only(ids, tokens.token_id, places[codes], len(used), experts))
    return DomainTable(
        layers=trace.header.layers,
        domains=tuple(tokens.domains[code] for code in used),
        tokens=np.bincount(places[codes], minlength=len(used)),
        specialisation=np.stack(found),
        null_low=np.stack(low),
        null_high=np.stack(high),
        token_only=np.stack(only) if known else None,
    )


def bootstrap_specialisation(
    trace: RoutingTrace, layer: int, resampling: Resampling | None = None
) -> Interval:
    """The interval [E, D] of a layer's domain specialisation, over documents; D as in DomainTable.

    It says how exactly a share is known; whether it differs from the other domains' is what the null band
    says.
    """
    codes, documents = document_codes(trace)
    label = document_labels(trace, codes, documents)
    used = np.unique(label)
    belongs = label[:, None] == used  # [documents, D]
    counts = count_groups(trace.ids(layer), codes, documents, trace.header.num_experts)
    lengths = np.bincount(codes, minlength=documents)
    per_document = [counts[:, :, None] * belongs[:, None, :], lengths[:, None, None] * belongs[:, None, :]]
    # A domain that no drawn document has is left at 0.
    return bootstrap(per_document, lambda total, count: total / np.maximum(count, 1), resampling)


def document_labels(trace: RoutingTrace, codes: np.ndarray, documents: int) -> np.ndarray:
    """int [documents]: the domain of each. Raises ConfigError when one has two."""
    label = np.zeros(documents, trace.tokens.domain.dtype)
    label[codes] = trace.tokens.domain
    mixed = int((label[codes] != trace.tokens.domain).sum())
    check(mixed == 0, "tokens.domain", f"{mixed} tokens", "differ in domain from others of their document")
    return label


def permuted_labels(label: np.ndarray, permutations: int, seed: int) -> list[np.ndarray]:
    """The labels of documents in random orders."""
    check(permutations >= 1, "permutations", permutations, "must be at least 1")
    rng = np.random.default_rng(seed)
    return [rng.permutation(label) for _ in range(permutations)]


def _by_label(counts: np.ndarray, lengths: np.ndarray, label: np.ndarray, labels: int) -> np.ndarray:
    """float [E, D] from counts [documents, E] and lengths [documents]."""
    belongs = (label == np.arange(labels)[:, None]).astype(np.float64)
    return ((belongs @ counts) / np.maximum(belongs @ lengths, 1)[:, None]).T


def _token_only(
    ids: np.ndarray, token_id: np.ndarray, label: np.ndarray, labels: int, experts: int
) -> np.ndarray:
    _, word = np.unique(token_id, return_inverse=True)
    words = int(word.max()) + 1
    chance = count_groups(ids, word, words, experts) / np.bincount(word)[:, None]
    often = np.bincount(label * words + word, minlength=labels * words).reshape(labels, words)
    return (often / often.sum(axis=1, keepdims=True) @ chance).T


@dataclass(frozen=True, eq=False)
class VocabularyTable:
    """Vocabulary specialisation of one layer: X token ids that occur often enough."""

    layer: int
    token_ids: np.ndarray
    """int [X]."""
    counts: np.ndarray
    """int64 [X]: N_x."""
    specialisation: np.ndarray
    """float [X, E]: N_{i,x} / N_x (OLMoE, Muennighoff et al. 2024, section 4.4); rows sum to K."""
    null_mean: np.ndarray
    """float [E]: N_i / T, what permuting the token ids over the tokens gives on average."""
    null_std: np.ndarray
    """float [X, E]: the standard deviation of that: sqrt(p (1 - p) / N_x (T - N_x) / (T - 1)), exact for
    drawing N_x of T tokens without replacement."""

    def z(self) -> np.ndarray:
        """float [X, E]: (specialisation - null_mean) / null_std; 0 where the null does not vary."""
        spread = np.where(self.null_std > 0, self.null_std, 1)
        return np.where(self.null_std > 0, (self.specialisation - self.null_mean) / spread, 0)

    def top_tokens(self, expert: int, number: int = 10) -> np.ndarray:
        """int [number]: the token ids that stand out most (by z) for an expert."""
        order = np.argsort(-self.z()[:, expert], kind="stable")
        return self.token_ids[order[:number]]


def vocabulary_specialisation(trace: RoutingTrace, layer: int, *, min_count: int = 10) -> VocabularyTable:
    """For every token id with at least `min_count` occurrences (a token seen once always scores 1).

    Raises ConfigError when token ids are not known.
    """
    token_id = trace.tokens.token_id
    check(bool((token_id >= 0).all()), "tokens.token_id", -1, "must be known for all tokens")
    check(min_count >= 1, "min_count", min_count, "must be at least 1")
    ids, experts, total = trace.ids(layer), trace.header.num_experts, len(token_id)
    words, word, often = np.unique(token_id, return_inverse=True, return_counts=True)
    table = count_groups(ids, word, len(words), experts)
    kept = often >= min_count
    share = table.sum(axis=0) / max(total, 1)
    number = often[kept].astype(np.float64)[:, None]
    variance = share * (1 - share) / number * (total - number) / max(total - 1, 1)
    return VocabularyTable(
        layer=layer,
        token_ids=words[kept],
        counts=often[kept],
        specialisation=table[kept] / number,
        null_mean=share,
        null_std=np.sqrt(variance),
    )
