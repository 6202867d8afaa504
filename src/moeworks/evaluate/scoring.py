"""How probable given tokens are: rows of tokens, of which the last ones are to be predicted."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from moeworks.errors import NotFiniteError, check
from moeworks.models.decoder import Decoder, DecoderOutput
from moeworks.models.diagnose import not_finite
from moeworks.ops.replay import Replay

_AT_ONCE = 256  # predictions whose logits are made together: those of a whole row may take gigabytes


@dataclass(frozen=True)
class Row:
    """Tokens, the last `predicted` of which are scored, each after those before it."""

    ids: Sequence[int]
    predicted: int
    token_type: int | None = None
    """Type of all tokens, for models with pools of experts; None is the model's `token_type`."""
    start: int = 0
    """Place of the first token in its text."""
    experts: np.ndarray | None = None
    """int [layers, tokens, K]: the experts that the tokens are to have; of all rows of a call, or none."""
    name: str = "a text"
    """What messages call it."""


@dataclass(frozen=True)
class Score:
    """Score of one row."""

    nats: float
    """Summed cross-entropy of the predicted tokens."""
    greedy: bool
    """Each predicted token is the most probable one at its place."""


def windows(ids: Sequence[int], prefix: int, context: int, stride: int) -> Iterator[Row]:
    """Rows that together predict each token of `ids` once, but for the first `prefix` of them.

    A row has at most `context` + 1 tokens, so that the model reads `context` of them. Each starts `stride`
    tokens after the one before; where the context is longer, the tokens in between are seen again.

    Raises ConfigError for a stride that is not between 1 and the context.
    """
    check(1 <= stride <= context, "stride", stride, f"must lie between 1 and the context, {context}")
    done = prefix
    for start in count(0, stride):
        end = min(start + context + 1, len(ids))
        if end > done:
            yield Row(ids[start:end], end - done, start=start)
            done = end
        if end == len(ids):
            return


def score_rows(model: Decoder, rows: Sequence[Row], batch_tokens: int = 8192) -> Iterator[tuple[int, Score]]:
    """Yield the index of a row and its score, longest rows first, batches of about `batch_tokens` at once.

    Raises ConfigError for a row without a token before those to predict, or longer than the context, and
    NotFiniteError for one whose loss is NaN or infinite.
    """
    limit = model.config.max_seq_len
    for row in rows:
        check(0 <= row.predicted < len(row.ids), "predicted", row.predicted, f"of {len(row.ids)} tokens")
        check(len(row.ids) <= limit + 1, "tokens", len(row.ids), f"exceed the model's context of {limit}")
    order = sorted(range(len(rows)), key=lambda index: -len(rows[index].ids))
    while order:
        width = max(len(rows[order[0]].ids) - 1, 1)
        # Experts of limited capacity would make a row's score depend on the others.
        alone = model.config.capacity.eval_capacity_factor is not None
        size = 1 if alone else max(batch_tokens // width, 1)
        chosen, order = order[:size], order[size:]
        yield from zip(chosen, _score_batch(model, [rows[index] for index in chosen], width), strict=True)


@torch.no_grad()
def _score_batch(model: Decoder, rows: Sequence[Row], width: int) -> list[Score]:
    device = next(model.parameters()).device
    tokens_BL = torch.zeros(len(rows), width, dtype=torch.int64)
    targets_BL = torch.zeros_like(tokens_BL)
    valid_BL, wanted_BL = (torch.zeros(len(rows), width, dtype=torch.bool) for _ in range(2))
    for number, row in enumerate(rows):
        ids, length = torch.tensor(row.ids, dtype=torch.int64), len(row.ids) - 1
        tokens_BL[number, :length], targets_BL[number, :length] = ids[:-1], ids[1:]
        valid_BL[number, :length] = True
        wanted_BL[number, length - row.predicted : length] = True
    hidden_BLD = _forward(model, rows, tokens_BL, valid_BL).hidden_BLD
    scores = [
        _score(model, hidden_LD[wanted_L.to(device)], targets_L[wanted_L].to(device))
        for hidden_LD, targets_L, wanted_L in zip(hidden_BLD, targets_BL, wanted_BL, strict=True)
    ]
    for number, (row, score) in enumerate(zip(rows, scores, strict=True)):
        if not math.isfinite(score.nats):
            raise _not_finite(model, row, tokens_BL[number : number + 1, : len(row.ids) - 1])
    return scores


def _forward(model: Decoder, rows: Sequence[Row], tokens_BL: Tensor, valid_BL: Tensor) -> DecoderOutput:
    device = next(model.parameters()).device
    return model(
        tokens_BL.to(device),
        valid_BL=None if bool(valid_BL.all()) else valid_BL.to(device),
        token_types_BL=_types(model, rows, tokens_BL),
        replay=_replay(rows, tokens_BL.shape[1]),
    )


def _not_finite(model: Decoder, row: Row, tokens_1L: Tensor) -> NotFiniteError:
    return not_finite(
        model,
        f"the loss on {row.name} is not finite",
        lambda: _forward(model, [row], tokens_1L, torch.ones_like(tokens_1L, dtype=torch.bool)),
        lambda _, place: f"token {row.start + place}",
    )


def _types(model: Decoder, rows: Sequence[Row], tokens_BL: Tensor) -> Tensor | None:
    """int64 [B, L]; None where no row has a type, or one has none and the model neither."""
    types = [model.token_type if row.token_type is None else row.token_type for row in rows]
    if None in types:
        return None
    return torch.tensor(types, device=next(model.parameters()).device)[:, None].expand_as(tokens_BL)


def _replay(rows: Sequence[Row], width: int) -> Replay | None:
    """The experts of the tokens that are read; those of padding do not matter."""
    given = [row.experts for row in rows if row.experts is not None]
    if not given:
        return None
    check(len(given) == len(rows), "experts", len(given), f"must be given for all {len(rows)} rows or none")
    layers, _, top_k = given[0].shape
    ids_lBLK = torch.arange(top_k).repeat(layers, len(rows), width, 1)
    for number, (row, experts) in enumerate(zip(rows, given, strict=True)):
        read = len(row.ids) - 1
        ids_lBLK[:, number, :read] = torch.from_numpy(experts[:, :read].astype(np.int64))
    return Replay(tuple(ids_lBLK.flatten(1, 2)))


def _score(model: Decoder, hidden_ND: Tensor, targets_N: Tensor) -> Score:
    nats, greedy = 0.0, True
    for states, targets in zip(hidden_ND.split(_AT_ONCE), targets_N.split(_AT_ONCE), strict=True):
        logits = model.logits(states)
        logits = logits if logits.dtype == torch.float64 else logits.float()
        nats += float(F.cross_entropy(logits, targets, reduction="none").double().sum())
        greedy = greedy and bool((logits.argmax(dim=-1) == targets).all())
    return Score(nats, greedy)
