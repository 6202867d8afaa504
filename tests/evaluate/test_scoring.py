"""Scores of given tokens, against passes over one row at a time."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_published import MIXTRAL, make

from moeworks.errors import ConfigError
from moeworks.evaluate.scoring import Row, score_rows, windows

MODEL = make(MIXTRAL).double()


def plain(row: Row) -> tuple[float, bool]:
    with torch.no_grad():
        logits = MODEL(torch.tensor([row.ids[:-1]])).logits_BLV[0].log_softmax(-1)
    places = range(len(row.ids) - 1 - row.predicted, len(row.ids) - 1)
    nats = -sum(float(logits[place, row.ids[place + 1]]) for place in places)
    return nats, all(int(logits[place].argmax()) == row.ids[place + 1] for place in places)


tokens = st.lists(st.integers(0, 39), min_size=2, max_size=33)


@given(st.lists(tokens, min_size=1, max_size=7), st.data(), st.sampled_from([1, 40, 8192]))
def test_batches_score_as_rows_alone(texts, data, batch_tokens):
    rows = [Row(ids, data.draw(st.integers(0, len(ids) - 1))) for ids in texts]
    scores = dict(score_rows(MODEL, rows, batch_tokens))
    assert sorted(scores) == list(range(len(rows)))
    for index, row in enumerate(rows):
        nats, greedy = plain(row)
        assert scores[index].nats == pytest.approx(nats, rel=1e-9, abs=1e-9)
        assert scores[index].greedy == greedy


@given(st.integers(1, 60), st.integers(1, 20), st.data())
def test_windows_predict_every_token_once(length, context, data):
    ids, stride = list(range(length)), data.draw(st.integers(1, context))
    rows = list(windows(ids, 1, context, stride))
    assert [token for row in rows for token in row.ids[len(row.ids) - row.predicted :]] == ids[1:]
    for row in rows:
        assert 2 <= len(row.ids) <= context + 1 and row.predicted < len(row.ids)
        before = len(row.ids) - row.predicted
        assert row.ids[0] == 0 or before >= min(context - stride + 1, row.ids[-1])


def test_what_cannot_be_is_refused():
    with pytest.raises(ConfigError, match="stride = 9: must lie between 1 and the context, 8"):
        list(windows([1, 2], 1, 8, 9))
    with pytest.raises(ConfigError, match="predicted = 2: of 2 tokens"):
        list(score_rows(MODEL, [Row([1, 2], 2)]))
    with pytest.raises(ConfigError, match="tokens = 34: exceed the model's context of 32"):
        list(score_rows(MODEL, [Row([1] * 34, 1)]))
