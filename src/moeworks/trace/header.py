"""What a trace says about itself: the model, the engine, and which columns there are."""

import json
from dataclasses import dataclass
from typing import Literal, get_args

from moeworks.config.codec import from_dict, to_dict
from moeworks.errors import ConfigError, DataError, check

FORMAT = "moeworks.routing-trace"
VERSION = 1
"""Goes up when a reader of the older version would misread a newer file (docs/trace-format.md)."""

VERSION_WITH_EMPTY_SLOTS = 2
"""That of traces with empty slots alone: all others are written as version 1, which older readers know."""

METADATA_KEY = b"moeworks.trace"
"""The key of the header in the metadata of the Arrow schema and of the Parquet file."""

LayerField = Literal["weights", "kept", "entropy", "margin", "logits"]
LAYER_FIELDS: tuple[LayerField, ...] = get_args(LayerField)
"""What a layer may hold beside its expert ids, in the order of the columns."""


@dataclass(frozen=True, kw_only=True)
class TraceHeader:
    """One per trace; all layers have the same number of experts and the same top_k."""

    num_experts: int
    """E: ids lie in 0 .. num_experts - 1. Zero-computation experts count, shared ones do not."""
    top_k: int
    """K, the experts of a token in a layer; with empty slots the most of them."""
    layers: tuple[int, ...]
    """The MoE layers by their index in the model, dense layers counted, ascending."""
    fields: tuple[LayerField, ...] = ()
    """Which optional columns every layer has."""
    empty_slots: bool = False
    """Whether tokens may have fewer than top_k experts: their last slots then hold the id num_experts."""
    model: str = "unknown"
    """Name or path of the model."""
    model_fingerprint: str | None = None
    """A hash of the model's weights or of its checkpoint, where the recorder knows one."""
    engine: str = "unknown"
    """The program that computed the routing, with its version."""
    tokenizer_fingerprint: str | None = None
    """sha256 of the tokenizer's JSON: what the token ids mean."""
    step: int | None = None
    """The training step that the model was at."""
    note: str = ""
    """Anything that a reader should know, e.g. what a converter could not tell."""

    def __post_init__(self) -> None:
        most = 65_536 - self.empty_slots
        check(1 <= self.num_experts <= most, "num_experts", self.num_experts, f"must lie in 1 .. {most}")
        check(
            1 <= self.top_k <= self.num_experts,
            "top_k",
            self.top_k,
            f"must lie between 1 and num_experts = {self.num_experts}",
        )
        ascending = all(a < b for a, b in zip(self.layers, self.layers[1:], strict=False))
        check(bool(self.layers) and ascending, "layers", self.layers, "must be ascending, and at least one")
        check(self.layers[0] >= 0, "layers", self.layers, "must not be negative")
        in_order = [name for name in LAYER_FIELDS if name in self.fields]
        check(list(self.fields) == in_order, "fields", self.fields, f"must be in the order {LAYER_FIELDS}")

    @property
    def num_ids(self) -> int:
        """Ids that a slot may hold: those of the experts, and num_experts where slots may be empty."""
        return self.num_experts + self.empty_slots

    def encode(self) -> bytes:
        """The header as it stands in the metadata: JSON in UTF-8."""
        values = to_dict(self)
        version = VERSION_WITH_EMPTY_SLOTS if self.empty_slots else VERSION
        if not self.empty_slots:
            del values["empty_slots"]
        content = {"format": FORMAT, "version": version, **values}
        return json.dumps(content, ensure_ascii=False, sort_keys=True).encode()


def decode_header(metadata: dict[bytes, bytes] | None, source: str) -> TraceHeader:
    """The header in a schema's metadata. Raises DataError, naming `source`, when there is no good one."""
    content = (metadata or {}).get(METADATA_KEY)
    if content is None:
        raise DataError(f"{source}: not a routing trace: its metadata has no {METADATA_KEY.decode()!r}")
    try:
        values = json.loads(content)
        kind, version = values.pop("format"), values.pop("version")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{source}: the header of the trace is damaged: {error!r}") from error
    if kind != FORMAT or version not in (VERSION, VERSION_WITH_EMPTY_SLOTS):
        known = f"{VERSION} and {VERSION_WITH_EMPTY_SLOTS}"
        raise DataError(f"{source}: is {kind} version {version}; this program reads {FORMAT} {known}")
    if (version == VERSION_WITH_EMPTY_SLOTS) != (values.get("empty_slots") is True):
        empty = values.get("empty_slots")
        raise DataError(f"{source}: the header is damaged: version {version} with empty_slots = {empty!r}")
    try:
        return from_dict(TraceHeader, values)
    except ConfigError as error:
        raise DataError(f"{source}: the header of the trace is damaged: {error}") from error
