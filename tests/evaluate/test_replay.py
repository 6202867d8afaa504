"""Texts read with the routing of a trace: against one pass a window, and traces that do not fit."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from random_layers import randomise_
from tiny_tokenizers import BOS, VOCAB, write_folder

from moeworks import Decoder, ModelConfig, Replay, RoutingTrace
from moeworks.config.model import ExpertsConfig, GQAConfig, LayerPatternConfig, RouterConfig
from moeworks.data.documents import Document
from moeworks.data.model_tokenizer import tokenizer_of
from moeworks.errors import DataError
from moeworks.evaluate.replay import TraceReplay
from moeworks.evaluate.texts import evaluate_texts
from moeworks.trace import token_columns
from moeworks.trace.block import TraceBlock
from moeworks.trace.record import model_header, record

CONTEXT = 24
DOCUMENTS = [
    Document("a short one", "b", "1"),
    Document("é" * 40, "a", "2"),
    Document("longer than a window, so that it is cut into several of them, and then some", "b", "3"),
]


CONFIG = ModelConfig(
    vocab_size=VOCAB,
    d_model=16,
    num_layers=3,
    max_seq_len=64,
    attention=GQAConfig(num_heads=2, num_kv_heads=1),
    pattern=LayerPatternConfig(first_dense=1),
    router=RouterConfig(num_experts=6, top_k=2),
    experts=ExpertsConfig(d_expert=8),
)


def random_decoder(seed: int, **router) -> Decoder:
    torch.manual_seed(seed)
    config = replace(CONFIG, router=replace(CONFIG.router, **router))
    return randomise_(Decoder(config).double(), std=0.2).eval()


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    folder = tmp_path_factory.mktemp("replay") / "m"
    write_folder(folder)  # for its tokenizer
    return random_decoder(0), tokenizer_of(folder, VOCAB)


@pytest.fixture(scope="module")
def teacher(student):
    return random_decoder(7)


def windows_of(document: Document) -> list[list[int]]:
    ids = [BOS, *document.text.encode()]
    return [ids[start : start + CONTEXT] for start in range(0, len(ids), CONTEXT)]


@torch.no_grad()
def traced(model, documents=DOCUMENTS, **header) -> RoutingTrace:
    """As `moeworks trace` records: contexts one after the other, those of a document not in order."""
    blocks, sequences = [], [(n, ids) for n, d in enumerate(documents) for ids in windows_of(d)]
    head = replace(model_header(model.config), **header)
    for number in sorted(range(len(sequences)), key=lambda i: -len(sequences[i][1])):
        document, ids = sequences[number]
        count = len(ids)
        tokens = token_columns(
            count, token_id=ids, document=np.full(count, document), sequence=np.full(count, number)
        )
        blocks.append(record(model(torch.tensor([ids])).routings, tokens, head))
    return RoutingTrace.from_blocks(head, blocks)


def test_a_model_reads_as_another_routed(student, teacher):
    model, tokenizer = student
    given = TraceReplay(traced(teacher), model.config, tokenizer, "t")
    assert given.context == CONTEXT
    found = evaluate_texts(model, tokenizer, DOCUMENTS, context=CONTEXT, stride=CONTEXT, replay=given)
    free = evaluate_texts(model, tokenizer, DOCUMENTS, context=CONTEXT, stride=CONTEXT)
    for domain, totals in found.items():
        nats = 0.0
        for document in DOCUMENTS:
            ids = [BOS, *document.text.encode()]
            for start in range(0, len(ids) - 1, CONTEXT):
                row = torch.tensor([ids[start : start + CONTEXT + 1]])
                with torch.no_grad():
                    routings = teacher(row[:, :CONTEXT]).routings
                    read = [r.expert_ids_TK[: row.shape[1] - 1] for r in routings]
                    logits = model(row[:, :-1], replay=Replay(read)).logits_BLV[0]
                loss = torch.nn.functional.cross_entropy(logits, row[0, 1:], reduction="sum")
                nats += float(loss) * (document.domain == domain)
        assert totals.nats == pytest.approx(nats, rel=1e-9)
        assert totals.nats != pytest.approx(free[domain].nats, rel=1e-6)


def test_its_own_trace_changes_nothing(student):
    model, tokenizer = student
    given = TraceReplay(traced(model), model.config, tokenizer, "t")
    options = dict(context=CONTEXT, stride=CONTEXT)
    found = evaluate_texts(model, tokenizer, DOCUMENTS, replay=given, **options)
    free = evaluate_texts(model, tokenizer, DOCUMENTS, **options)
    assert {name: t.nats for name, t in found.items()} == {name: t.nats for name, t in free.items()}
    # Overlapping windows and a limit on bytes find their tokens too.
    for extra in (dict(stride=5), dict(max_bytes=12)):
        chosen = evaluate_texts(model, tokenizer, DOCUMENTS, replay=given, **options | extra)
        assert sum(t.tokens for t in chosen.values()) > 0


def test_a_trace_of_something_else(student, teacher):
    model, tokenizer = student
    trace = traced(model)
    config = model.config

    def refusal(trace, documents=DOCUMENTS) -> str:
        with pytest.raises(DataError) as error:
            given = TraceReplay(trace, config, tokenizer, "t.parquet")
            evaluate_texts(model, tokenizer, documents, context=CONTEXT, stride=CONTEXT, replay=given)
        return str(error.value)

    more = traced(random_decoder(0, num_experts=8))
    assert "t.parquet: num_experts = 8: the model has 6, so it cannot be replayed" in refusal(more)
    assert "t.parquet: top_k = 3: the model has 2" in refusal(traced(random_decoder(0, top_k=3)))
    assert "t.parquet: layers = (0, 1): the model has (1, 2)" in refusal(traced(model, layers=(0, 1)))
    assert "t.parquet: tokenizer = 'other': the model has" in refusal(
        traced(model, tokenizer_fingerprint="other")
    )
    changed = [DOCUMENTS[0], replace(DOCUMENTS[1], text="e" + DOCUMENTS[1].text), DOCUMENTS[2]]
    told = refusal(trace, changed)
    assert "t.parquet: document 1 (2): token 1 is 101 here and 195 in the trace, which is of another" in told
    longer = [*DOCUMENTS[:2], replace(DOCUMENTS[2], text=DOCUMENTS[2].text + "!")]
    size = len(DOCUMENTS[2].text) + 1
    assert f"document 2 (3): the trace has {size} tokens of it, and here it has {size + 1}" in refusal(
        trace, longer
    )
    assert "document 2 (3): the trace has none of it" in refusal(traced(model, DOCUMENTS[:2]))
    nameless = TraceBlock(
        replace(trace.tokens, token_id=np.full_like(trace.tokens.token_id, -1)),
        tuple(trace.layer(layer) for layer in trace.header.layers),
    )
    unknown = RoutingTrace.from_blocks(trace.header, [nameless])
    assert "t.parquet: does not know its token ids" in refusal(unknown)
