"""Whether experts take certain domains or words, beside what chance and the words alone would give."""

from dataclasses import dataclass

import numpy as np

from moeworks.analyse.distributions import rank_p_value
from moeworks.analyse.intervals import Interval, document_codes, ratio_interval
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
    """float [l, E, D]: the lower end of the band that 95 % of label permutations over documents lie in. It is
    that of one cell: of many cells one in twenty lies outside by chance."""
    null_high: np.ndarray
    """float [l, E, D]: its upper end."""
    outside_p_value: float
    """Share of the permutations with as many cells outside the band: whether domains matter at all. Cells
    and layers depend on each other as in the trace."""
    excess: np.ndarray
    """float [l, E, D]: specialisation above its mean over permutations, in their standard deviations."""
    excess_limit: float
    """What 5 % of the permutations exceed somewhere: a cell beyond it, above or below, is no chance find."""
    token_only: np.ndarray | None
    """float [l, E, D]: what a router gives that knows nothing but the token id: sum_x N_{x,D}/N_D p(i|x),
    with p(i|x) from all domains. None where token ids are not known."""

    def outside(self) -> np.ndarray:
        """int64 [l]: cells outside the null band."""
        return self.beyond().sum((1, 2))

    def beyond(self) -> np.ndarray:
        """bool [l, E, D]: whether a cell is outside its own null band."""
        return (self.specialisation < self.null_low) | (self.specialisation > self.null_high)

    def preferred(self) -> np.ndarray:
        """bool [l, E, D]: whether the expert prefers the domain beyond what chance gives any of all cells."""
        return self.excess > self.excess_limit

    def preference(self) -> np.ndarray:
        """float [l, E, D]: specialisation over the expert's share of all tokens; 1 is no preference.

        A busy expert has a large share of every domain without preferring any. NaN for experts without a
        token.
        """
        overall = (self.specialisation * self.tokens).sum(axis=2, keepdims=True) / self.tokens.sum()
        shape = self.specialisation.shape
        return np.divide(self.specialisation, overall, out=np.full(shape, np.nan), where=overall > 0)


def domain_specialisation(
    trace: RoutingTrace, *, permutations: int = 199, level: float = 0.95, seed: int = 0
) -> DomainTable:
    """Specialisation with two nulls: labels permuted over documents, and the token-id-only router.

    Whole documents change labels, so that each domain keeps its number of documents and the tokens of a
    document stay together. The same permutations serve all layers. Raises ConfigError when the trace has a
    document in two domains.
    """
    tokens, experts = trace.tokens, trace.header.num_experts
    codes, documents = document_codes(trace)
    label = document_labels(trace, codes, documents)
    used = np.unique(label)
    places = np.searchsorted(used, label)
    orders = permuted_labels(places, permutations, seed)
    lengths = np.bincount(codes, minlength=documents)
    known = bool((tokens.token_id >= 0).all()) and len(tokens) > 0
    found, low, high, only, excess = [], [], [], [], []
    outside, largest = np.zeros((2, 1 + permutations))
    for layer in trace.header.layers:
        ids = trace.ids(layer)
        counts = count_groups(ids, codes, documents, experts)
        # The actual labels are one of the permutations, so that all are treated alike.
        each = np.stack([_by_label(counts, lengths, order, len(used)) for order in (places, *orders)])
        found.append(each[0])
        low.append(np.quantile(each, (1 - level) / 2, axis=0))
        high.append(np.quantile(each, (1 + level) / 2, axis=0))
        outside += ((each < low[-1]) | (each > high[-1])).sum(axis=(1, 2))
        spread = each.std(axis=0)
        # Domains of one document have few different permutations, and rounding is no spread.
        scaled = np.where(spread > 1e-9, (each - each.mean(axis=0)) / np.maximum(spread, 1e-9), 0)
        largest = np.maximum(largest, np.abs(scaled).max(axis=(1, 2)))
        excess.append(scaled[0])
        if known:
            only.append(_token_only(ids, tokens.token_id, places[codes], len(used), experts))
    return DomainTable(
        layers=trace.header.layers,
        domains=tuple(tokens.domains[code] for code in used),
        tokens=np.bincount(places[codes], minlength=len(used)),
        specialisation=np.stack(found),
        null_low=np.stack(low),
        null_high=np.stack(high),
        outside_p_value=rank_p_value(float(outside[0]), outside[1:]),
        excess=np.stack(excess),
        excess_limit=float(np.quantile(largest, level, method="higher")),
        token_only=np.stack(only) if known else None,
    )


def specialisation_interval(trace: RoutingTrace, layer: int) -> Interval:
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
    tokens = lengths[:, None, None] * belongs[:, None, :]
    return ratio_interval(counts[:, :, None] * belongs[:, None, :], tokens)


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
