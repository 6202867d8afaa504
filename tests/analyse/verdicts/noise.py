"""Traces of noise, in which no verdict has anything to tell, and of effects that are planted."""

import numpy as np

from moeworks.trace import LayerColumns, RoutingTrace, TraceBlock, TraceHeader, token_columns

EXPERTS, TOP_K, LAYERS = 16, 2, 2
KINDS = ("even", "uneven", "topics", "one-document", "short-texts", "sticky")


def drawn(rng: np.random.Generator, liking: np.ndarray) -> np.ndarray:
    """uint8 [T, K]: the largest of liking [T, E] and Gumbel noise, a draw without replacement."""
    return np.argsort(-(liking + rng.gumbel(size=liking.shape)), axis=1)[:, :TOP_K].astype(np.uint8)


def trace_of_layers(
    layers: list[np.ndarray], document: np.ndarray, rng: np.random.Generator, label: np.ndarray | None = None
) -> RoutingTrace:
    """A trace whose words mean nothing; without `label` documents have one of two by chance, half of them
    each."""
    if label is None:
        label = rng.permutation(np.arange(int(document.max()) + 1) % 2)
    header = TraceHeader(num_experts=EXPERTS, top_k=TOP_K, layers=tuple(range(len(layers))))
    tokens = token_columns(
        len(document), sequence=document, domain=label[document], domains=("a", "b"),
        token_id=rng.integers(30, size=len(document)),
    )  # fmt: skip
    return RoutingTrace.from_blocks(header, [TraceBlock(tokens, tuple(map(LayerColumns, layers)))])


def noise(kind: str, seed: int) -> RoutingTrace:
    """A trace of one of KINDS.

    even, uneven   tokens choose independently, by loads that are even or with a MaxVio of 0.43
    topics         documents have likings of their own, shared by layers, unrelated to their labels
    one-document   even, and all one text
    short-texts    even, in texts of 60 tokens
    sticky         even, but runs of four tokens choose alike
    """
    rng = np.random.default_rng([seed, KINDS.index(kind)])
    documents, length = {"one-document": (1, 1200), "short-texts": (12, 60)}.get(kind, (24, 60))
    document = np.repeat(np.arange(documents), length)
    liking = np.zeros((len(document), EXPERTS))
    topics = rng.normal(size=(documents, 2))[document]
    if kind == "uneven":
        liking += np.linspace(0, np.log(2.3), EXPERTS)
    layers = []
    for _ in range(LAYERS):
        own = topics @ rng.normal(size=(2, EXPERTS)) if kind == "topics" else 0
        ids = drawn(rng, liking + own)
        layers.append(ids[np.arange(len(ids)) // 4 * 4] if kind == "sticky" else ids)
    return trace_of_layers(layers, document, rng)
