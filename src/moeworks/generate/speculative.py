"""Greedy decoding that drafts with a model's own MTP layer and checks the draft with the model.

Each step feeds the last token and a draft of the next one. The model's own choice after the last token
decides: if it is the draft, the step yields two tokens; if not, one, and the draft is forgotten. The output
is that of plain greedy decoding (DeepSeek-V3, section 5.4.3, reports 85 to 90 % accepted drafts).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from moeworks.errors import check
from moeworks.layers.inputs import Slots, mixer_inputs, token_positions
from moeworks.models.block import BlockContext
from moeworks.models.cache import KVCache
from moeworks.models.decoder import Decoder


@dataclass
class Acceptance:
    """How many drafts came true."""

    drafted: int = 0
    accepted: int = 0

    @property
    def rate(self) -> float:
        """Share of the drafts that the model chose too; 0 before the first."""
        return self.accepted / self.drafted if self.drafted else 0.0


class _Drafter:
    """The first MTP layer of a model, with a cache of its own."""

    def __init__(self, model: Decoder, cache: KVCache) -> None:
        self._model, self._cache = model, cache
        self._layer = model.config.mtp_like
        self._mixer = model.config.mixer(self._layer)

    def draft(self, hidden_BLD: Tensor, next_BL: Tensor) -> int:
        """The token after the last of `next`, which follow the positions of `hidden`."""
        layer, held = self._model.mtp[0], self._cache.layers[self._layer]
        slots = Slots(next_BL.shape[1], held.length, device=next_BL.device)
        inputs = mixer_inputs(self._mixer, self._model.config, slots, held.first_key)
        embedded = self._model.embed_tokens(next_BL)
        places = token_positions(slots).expand_as(next_BL)
        context = BlockContext(token_ids_BL=next_BL, positions_BL=places)
        stream, _ = layer(hidden_BLD, embedded, inputs, context, held)
        return int(self._model.logits(stream[:, -1]).argmax())


@torch.no_grad()
def generate_ahead(
    model: Decoder,
    prompt_ids: Sequence[int],
    max_new_tokens: int,
    *,
    stop_id: int | None = None,
    stop_ids: Sequence[int] = (),
    acceptance: Acceptance | None = None,
    prefill_chunk: int = 2048,
) -> Iterator[int]:
    """Yield the tokens that greedy decoding yields, up to `max_new_tokens` or until a stop.

    `stop_id` and `stop_ids` end the text and are not yielded; the prompt is read in pieces of `prefill_chunk`
    tokens; `acceptance`, if given, counts the drafts. Raises ConfigError for a model without MTP layers, one
    whose caches cannot forget a position (windows, recurrences), and a text longer than max_seq_len.
    """
    acceptance = acceptance if acceptance is not None else Acceptance()
    stops = stop_ids if stop_id is None else (*stop_ids, stop_id)
    config, place = model.config, next(model.parameters())
    check(config.num_mtp_layers > 0, "model.num_mtp_layers", 0, "there is no layer to draft with")
    longest = len(prompt_ids) + max_new_tokens + 1
    check(longest <= config.max_seq_len, "positions", longest, f"exceed max_seq_len = {config.max_seq_len}")
    check(len(prompt_ids) > 0, "prompt_ids", prompt_ids, "there must be a token to start from")
    cache, own = (KVCache(config, 1, longest, dtype=place.dtype, device=place.device) for _ in range(2))
    check(cache.forgets, "model.attention", config.attention, "its cache cannot forget a draft")
    drafter = _Drafter(model, own)

    def row(*ids: int) -> Tensor:
        return torch.tensor([ids], device=place.device)

    pieces = row(*prompt_ids).split(prefill_chunk, dim=1)
    hidden = torch.cat([model(piece_BL, cache=cache).hidden_BLD for piece_BL in pieces], dim=1)
    chosen = [int(model.logits(hidden[:, -1:]).argmax())]
    follow = row(*prompt_ids[1:], *chosen)
    left = max_new_tokens
    while left:
        for token in chosen[:left]:
            if token in stops:
                return
            left -= 1
            yield token
        if not left:
            return
        draft = drafter.draft(hidden, follow)
        output = model(row(chosen[-1], draft), cache=cache)
        first, second = output.logits_BLV[0].argmax(dim=-1).tolist()
        acceptance.drafted += 1
        if first == draft:
            acceptance.accepted += 1
            chosen, hidden = [first, second], output.hidden_BLD
        else:
            cache.forget(1)
            chosen, hidden = [first], output.hidden_BLD[:, :1]
        follow = row(*chosen)
