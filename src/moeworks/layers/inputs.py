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
    """What all layers with one mixer share in one forward pass."""

    rope: Tensor | None = None
    """float32 [2, L, dim/2], or [2, B, 1, L, dim/2] where rows start at different positions."""
    positions: Tensor | None = None
    """int64 [L] or [B, 1, L], counted from each row's first token that is no padding."""
    mask: DocumentMask | None = None
    """What a query may see; None: all earlier positions."""
    document_ids_BL: Tensor | None = None
    """int64, for recurrences; None: a row is one document."""
    padding_BL: Tensor | None = None
    """bool, True for padding at the start of a row; None: there is none."""


@dataclass(frozen=True, eq=False)
class Slots:
    """Where the L tokens of a forward pass stand in their rows."""

    length: int
    """L."""
    start: int = 0
    """Tokens before them, in the cache."""
    document_ids_BL: Tensor | None = None
    """Documents of a packed batch, without a cache."""
    left_padding_B: Tensor | None = None
    """int64, padding at the start of each row, in the cache or in these tokens; None: there is none."""
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def stop(self) -> int:
        """Slots up to the last of these tokens."""
        return self.start + self.length


def mixer_inputs(mixer: MixerConfig, model: ModelConfig, slots: Slots, first_key: int = 0) -> MixerInputs:
    """The inputs of every layer with `mixer`; its cache holds the keys from slot `first_key` on."""
    places_L = torch.arange(slots.start, slots.stop, device=slots.device)
    documents = slots.document_ids_BL if mixer.mask_documents else None
    padding_BL = None
    if slots.left_padding_B is not None:
        padding_BL = places_L - slots.left_padding_B[:, None] < 0
    if isinstance(mixer, GatedDeltaConfig):
        return MixerInputs(document_ids_BL=documents, padding_BL=padding_BL)
    keys_S = torch.arange(first_key, slots.stop, device=slots.device)
    if slots.left_padding_B is not None:
        queries, keys = (p - slots.left_padding_B[:, None] for p in (places_L, keys_S))
        queries, keys = queries[:, None], keys[:, None]
    elif documents is not None and _knows_places(mixer):
        queries = keys = _document_positions(documents)[:, None]
    else:
        queries, keys = places_L, keys_S
    positions = queries if padding_BL is None else queries.clamp(min=0)
    return MixerInputs(
        rope=_angles(mixer, model, positions, slots.stop),
        positions=positions,
        mask=_mask(mixer, slots, queries, keys, documents, first_key),
        document_ids_BL=documents,
        padding_BL=padding_BL,
    )


def token_positions(slots: Slots) -> Tensor:
    """int64 [L] or [B, L], counted from the start of each document, or from the first token of a row."""
    if slots.document_ids_BL is not None:
        return _document_positions(slots.document_ids_BL)
    places_L = torch.arange(slots.start, slots.stop, device=slots.device)
    if slots.left_padding_B is None:
        return places_L
    return (places_L - slots.left_padding_B[:, None]).clamp(min=0)


def _knows_places(mixer: MixerConfig) -> bool:
    """Whether positions matter beyond their distances: then they count from a document's start."""
    if isinstance(mixer, MLAConfig):
        return mixer.temperature_floor is not None
    if not isinstance(mixer, GQAConfig):
        return False
    weighted = mixer.qk_norm and mixer.qk_norm_after_rope and mixer.qk_norm_kind != "l2"
    return weighted or mixer.chunk is not None or mixer.temperature_floor is not None


def _document_positions(document_ids_BL: Tensor) -> Tensor:
    """int64 [B, L], counted from the first token of each document."""
    places_L = torch.arange(document_ids_BL.shape[1], device=document_ids_BL.device)
    starts_BL = torch.zeros_like(document_ids_BL)
    starts_BL[:, 1:] = places_L[1:] * (document_ids_BL[:, 1:] != document_ids_BL[:, :-1])
    return places_L - starts_BL.cummax(dim=1).values


def _angles(mixer: MixerConfig, model: ModelConfig, positions: Tensor, longest: int) -> Tensor | None:
    if isinstance(mixer, GatedDeltaConfig) or not mixer.rope.enabled:
        return None
    if isinstance(mixer, MLAConfig):
        width = mixer.rope_head_dim
    else:
        width = model.gqa_head_dim(mixer) if isinstance(mixer, GQAConfig) else mixer.head_dim
    return rope_angles(positions, mixer.rope_theta, mixer.rope, width, longest=longest)


def _mask(
    mixer: MixerConfig,
    slots: Slots,
    queries: Tensor,
    keys: Tensor,
    documents_BL: Tensor | None,
    first_key: int,
) -> DocumentMask | None:
    """None where plain causal attention over all keys is right."""
    window, chunk = (mixer.window, mixer.chunk) if isinstance(mixer, GQAConfig) else (None, None)
    bounded = (window is not None and slots.stop - first_key > window) or (
        chunk is not None and first_key // chunk != (slots.stop - 1) // chunk
    )
    if not bounded and slots.left_padding_B is None:
        return None if documents_BL is None else document_mask(documents_BL)
    mask = visible(queries, keys, window=window, chunk=chunk)
    if documents_BL is not None:
        mask = mask & (documents_BL[:, None, :, None] == documents_BL[:, None, None, :])
        mask = mask & visible(*(torch.arange(slots.length, device=slots.device),) * 2)
    if mask.dim() == 2:
        mask = mask[None, None]
    return DocumentMask(None, mask)
