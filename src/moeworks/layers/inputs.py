"""What a mixer needs beside the tokens: angles, positions, and a mask of what a query may see."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from moeworks.config.mixers import GatedDeltaConfig, GQAConfig, MixerConfig, MLAConfig
from moeworks.config.model import ModelConfig
from moeworks.layers.rope import rope_angles
from moeworks.ops.attention import DocumentMask, document_mask, visible


@dataclass(frozen=True, eq=False)
class MixerInputs:
    """Inputs that all layers with the same mixer share in one forward pass."""

    rope: Tensor | None = None
    """float32 or float64 [2, L, dim/2], or [2, B, 1, L, dim/2] where rows start at different positions."""
    positions: Tensor | None = None
    """int64 [L] or [B, 1, L], counted from each row's first token that is no padding."""
    mask: DocumentMask | None = None
    """Mask of the keys that a query may see; None is all earlier positions."""
    document_ids_BS: Tensor | None = None
    """int64 document ids for recurrences, cached positions first; None: each row is one document."""
    padding_BL: Tensor | None = None
    """bool, True for padding at the start of a row; None if there is no padding."""


@dataclass(frozen=True, eq=False)
class Slots:
    """Where the L tokens of a forward pass stand in their rows."""

    length: int
    """Length L of a row."""
    start: int = 0
    """Number of earlier tokens, which the cache holds."""
    document_ids_BS: Tensor | None = None
    """int64 document ids of a packed batch, for slots 0 to `stop`; None: each row is one document."""
    left_padding_B: Tensor | None = None
    """int64, padding at the start of each row, in the cache or in these tokens; None: there is none."""
    dtype: torch.dtype = torch.float32
    """The dtype of rotary angles: float64 in a float64 model."""
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def stop(self) -> int:
        """Slots up to the last of these tokens."""
        return self.start + self.length


def mixer_inputs(mixer: MixerConfig, model: ModelConfig, slots: Slots, first_key: int = 0) -> MixerInputs:
    """The inputs of every layer with `mixer`; its cache holds the keys from slot `first_key` on."""
    documents = slots.document_ids_BS if mixer.mask_documents else None
    places = _places(slots)
    padding_BL = None if slots.left_padding_B is None else places[:, slots.start :] < 0
    if isinstance(mixer, GatedDeltaConfig):
        return MixerInputs(document_ids_BS=documents, padding_BL=padding_BL)
    if documents is not None and _knows_places(mixer):
        places = _document_positions(documents, places)
    if places.dim() == 2:
        places = places[:, None]
    queries, keys = places[..., slots.start :], places[..., first_key:]
    positions = queries if padding_BL is None else queries.clamp(min=0)
    return MixerInputs(
        rope=_angles(mixer, model, positions, slots),
        positions=positions,
        mask=_mask(mixer, slots, queries, keys, documents, first_key),
        document_ids_BS=documents,
        padding_BL=padding_BL,
    )


def token_positions(slots: Slots) -> Tensor:
    """int64 [L] or [B, L], counted from the start of each document, or from the first token of a row."""
    places = _places(slots)
    if slots.document_ids_BS is not None:
        places = _document_positions(slots.document_ids_BS, places)
    return places[..., slots.start :].clamp(min=0)


def _knows_places(mixer: MixerConfig) -> bool:
    """Whether absolute positions matter; they then count from the document's start."""
    if isinstance(mixer, MLAConfig):
        return mixer.temperature_floor is not None
    if not isinstance(mixer, GQAConfig):
        return False
    weighted = mixer.qk_norm and mixer.qk_norm_after_rope and mixer.qk_norm_kind != "l2"
    return weighted or mixer.chunk is not None or mixer.temperature_floor is not None


def _places(slots: Slots) -> Tensor:
    """int64 [S] or [B, S], slots counted from the first token of a row; negative for padding before it."""
    places_S = torch.arange(slots.stop, device=slots.device)
    return places_S if slots.left_padding_B is None else places_S - slots.left_padding_B[:, None]


def _document_positions(document_ids_BS: Tensor, places: Tensor) -> Tensor:
    """int64 [B, S]: `places`, [S] or [B, S], counted from the first token of each document."""
    places_BS = places.expand_as(document_ids_BS)
    starts_BS = torch.zeros_like(document_ids_BS)
    starts_BS[:, 1:] = places_BS[:, 1:] * (document_ids_BS[:, 1:] != document_ids_BS[:, :-1])
    return places_BS - starts_BS.cummax(dim=1).values


def _angles(mixer: MixerConfig, model: ModelConfig, positions: Tensor, slots: Slots) -> Tensor | None:
    if isinstance(mixer, GatedDeltaConfig) or not mixer.rope.enabled:
        return None
    if isinstance(mixer, MLAConfig):
        width = mixer.rope_head_dim
    else:
        width = model.gqa_head_dim(mixer) if isinstance(mixer, GQAConfig) else mixer.head_dim
    return rope_angles(positions, mixer.rope_theta, mixer.rope, width, longest=slots.stop, dtype=slots.dtype)


def _mask(
    mixer: MixerConfig,
    slots: Slots,
    queries: Tensor,
    keys: Tensor,
    documents_BS: Tensor | None,
    first_key: int,
) -> DocumentMask | None:
    """Mask of the keys that a query may see; None where plain causal attention over all keys is right."""
    window, chunk = (mixer.window, mixer.chunk) if isinstance(mixer, GQAConfig) else (None, None)
    if documents_BS is not None:
        documents_BS = documents_BS[:, first_key:]
    bounded = window is not None and slots.stop - first_key > window
    if chunk is not None:
        # Chunks count from the document's start: once keys are dropped, slots no longer tell chunk bounds.
        moved = documents_BS is not None and first_key > 0
        bounded = bounded or moved or first_key // chunk != (slots.stop - 1) // chunk
    if not bounded and slots.left_padding_B is None:
        return None if documents_BS is None else document_mask(documents_BS, slots.length)
    mask = visible(queries, keys, window=window, chunk=chunk)
    if documents_BS is not None:
        slots_S = torch.arange(first_key, slots.stop, device=slots.device)
        queries_L = slots_S[-slots.length :]
        mask = mask & (documents_BS[:, None, -slots.length :, None] == documents_BS[:, None, None, :])
        mask = mask & visible(queries_L, slots_S)
    if mask.dim() == 2:
        mask = mask[None, None]
    return DocumentMask(None, mask)
