"""Greedy decoding that drafts with a model's own MTP layers and checks the drafts with the model.

Each step feeds the last token and drafts of the next ones. The model's own choice after each of them decides:
drafts are taken as long as they are what it chose, and its choice after the last of them comes on top; the
rest is forgotten. The output is that of plain greedy decoding (DeepSeek-V3, section 5.4.3, reports 85 to
90 % accepted first drafts).

Draft k comes from MTP layer k, as the layers were trained: it reads the stream of layer k - 1 at the same
position, and the token k places on. Further drafts come from the last layer over again, one position on each,
with its own stream in the place of one that is still to be computed (as in EAGLE, Li et al. 2024).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from moeworks.errors import check
from moeworks.layers.inputs import Slots, mixer_inputs, token_positions
from moeworks.models.block import BlockContext
from moeworks.models.cache import KVCache
from moeworks.models.decoder import Decoder
from moeworks.models.diagnose import not_finite_after


@dataclass
class Acceptance:
    """How many drafts came true, in all and by their place in a step."""

    drafted_at: list[int] = field(default_factory=list)
    """Number of first drafts of a step, of second ones, and so on."""
    accepted_at: list[int] = field(default_factory=list)
    """Number of these that were accepted; a draft is accepted only if those before it are."""

    @property
    def drafted(self) -> int:
        """Number of drafts in all places together."""
        return sum(self.drafted_at)

    @property
    def accepted(self) -> int:
        """Number of accepted drafts in all places together."""
        return sum(self.accepted_at)

    @property
    def rate(self) -> float:
        """Share of the drafts that the model chose too; 0 before the first."""
        return self.accepted / self.drafted if self.drafted else 0.0

    def count(self, drafted: int, accepted: int) -> None:
        """One step with so many drafts, of which the first `accepted` came true."""
        for counts, number in ((self.drafted_at, drafted), (self.accepted_at, accepted)):
            counts += [0] * (drafted - len(counts))
            for place in range(number):
                counts[place] += 1


class _Drafter:
    """The MTP layers of a model, each with a cache of its own for up to `max_len` positions."""

    def __init__(self, model: Decoder, max_len: int) -> None:
        self._model = model
        layer = model.config.mtp_like
        self._mixer = model.config.mixer(layer)
        place = next(model.parameters())
        self._held = [
            KVCache(model.config, 1, max_len, dtype=place.dtype, device=place.device).layers[layer]
            for _ in model.mtp
        ]
        self._waiting = [torch.empty(1, 0, model.config.d_model).to(place) for _ in model.mtp]
        """What each layer is to read at positions where the token that it reads too was not certain yet."""

    def draft(self, hidden_BLD: Tensor, ids: Sequence[int], count: int) -> list[int]:
        """`count` tokens, 1 or more, after `ids`, which are certain.

        `hidden` are the model's streams that are new; the last of them is that of the token before the last.
        """
        drafts: list[int] = []
        certain_BLD, guessed_BLD = hidden_BLD, hidden_BLD[:, :0]
        for number in range(min(count, len(self._held))):
            held = self._held[number]
            start = held.length
            known_BLD = torch.cat([self._waiting[number], certain_BLD], dim=1)
            # Position i of this layer reads token i + number + 1.
            final = max(len(ids) - 1 - number - start, 0)
            self._waiting[number] = known_BLD[:, final:]
            tokens = [*ids, *drafts][start + number + 1 :]
            read_BLD = self._read(number, torch.cat([known_BLD, guessed_BLD], dim=1), tokens)
            drafts.append(self._choice(read_BLD))
            if number + 1 == len(self._held):
                for _ in range(count - len(drafts)):
                    again_BLD = self._read(number, read_BLD[:, -1:], drafts[-1:])
                    drafts.append(self._choice(again_BLD))
                    read_BLD = again_BLD
            held.length = start + final  # pyrefly: ignore[read-only]
            certain_BLD, guessed_BLD = read_BLD[:, :final], read_BLD[:, final:]
        return drafts

    def _read(self, number: int, hidden_BLD: Tensor, tokens: Sequence[int]) -> Tensor:
        """The stream of an MTP layer, whose cache grows."""
        layer, held = self._model.mtp[number], self._held[number]
        next_BL = torch.tensor([tokens], device=hidden_BLD.device)
        slots = Slots(next_BL.shape[1], held.length, device=next_BL.device)
        inputs = mixer_inputs(self._mixer, self._model.config, slots, held.first_key)
        embedded = self._model.embed_tokens(next_BL)
        context = BlockContext(
            token_ids_BL=next_BL,
            token_types_BL=self._model.types_of(next_BL),
            positions_BL=token_positions(slots).expand_as(next_BL),
        )
        stream_BLD, _ = layer(hidden_BLD, embedded, inputs, context, held)
        return stream_BLD

    def _choice(self, stream_BLD: Tensor) -> int:
        return int(self._model.logits(stream_BLD[:, -1]).argmax())


@torch.no_grad()
def generate_ahead(
    model: Decoder,
    prompt_ids: Sequence[int],
    max_new_tokens: int,
    *,
    draft_tokens: int | None = None,
    stop_id: int | None = None,
    stop_ids: Sequence[int] = (),
    acceptance: Acceptance | None = None,
    prefill_chunk: int = 2048,
) -> Iterator[int]:
    """Yield the tokens that greedy decoding yields, up to `max_new_tokens` or until a stop.

    Args:
        draft_tokens: how many drafts a step checks; None: as many as there are MTP layers.
        stop_id, stop_ids: tokens that end the text; they are not yielded.
        acceptance: counts the drafts.
        prefill_chunk: the prompt is read in pieces of so many tokens.

    Raises ConfigError for a model without MTP layers, one whose caches cannot forget a position (windows,
    recurrences), and a text longer than max_seq_len; NotFiniteError for NaN or infinite logits.
    """
    acceptance = acceptance if acceptance is not None else Acceptance()
    stops = stop_ids if stop_id is None else (*stop_ids, stop_id)
    config, place = model.config, next(model.parameters())
    check(config.num_mtp_layers > 0, "model.num_mtp_layers", 0, "there is no layer to draft with")
    most = config.num_mtp_layers if draft_tokens is None else draft_tokens
    check(most >= 1, "draft_tokens", most, "must be at least 1")
    longest = len(prompt_ids) + max_new_tokens + 1
    check(longest <= config.max_seq_len, "positions", longest, f"exceed max_seq_len = {config.max_seq_len}")
    check(len(prompt_ids) > 0, "prompt_ids", prompt_ids, "there must be a token to start from")
    cache = KVCache(config, 1, longest, dtype=place.dtype, device=place.device)
    check(cache.forgets, "model.attention", config.attention, "its cache cannot forget a draft")
    drafter = _Drafter(model, longest)

    def row(*ids: int) -> Tensor:
        return torch.tensor([ids], device=place.device)

    pieces = row(*prompt_ids).split(prefill_chunk, dim=1)
    hidden_BLD = torch.cat([model(piece_BL, cache=cache).hidden_BLD for piece_BL in pieces], dim=1)
    ids = list(prompt_ids)
    chosen = _choices(model, model.logits(hidden_BLD[0, -1:]), ids)
    left = max_new_tokens
    while left:
        for token in chosen:
            if token in stops:
                return
            left -= 1
            yield token
        if not left:
            return
        ids += chosen
        count = min(most, left - 1)
        drafts = drafter.draft(hidden_BLD, ids, count) if count else []
        output = model(row(ids[-1], *drafts), cache=cache)
        own = _choices(model, output.logits_BLV[0], [*ids, *drafts])
        accepted = next((i for i, draft in enumerate(drafts) if own[i] != draft), count)
        acceptance.count(count, accepted)
        cache.forget(count - accepted)
        chosen, hidden_BLD = own[: accepted + 1], output.hidden_BLD[:, : accepted + 1]


def _choices(model: Decoder, logits_NV: Tensor, ids: Sequence[int]) -> list[int]:
    """The most probable token after each of the last N of `ids`. Raises NotFiniteError."""
    if not bool(torch.isfinite(logits_NV).all()):
        raise not_finite_after(model, ids, f"the logits after {len(ids)} tokens are not finite")
    return logits_NV.argmax(dim=-1).tolist()
