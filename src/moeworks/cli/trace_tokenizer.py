"""The tokenizer that a trace's token ids belong to."""

import hashlib
from pathlib import Path

from moeworks.data.model_tokenizer import Backend, read_backend, tokenizer_of
from moeworks.data.pieces import Pieces
from moeworks.errors import ConfigError, MoeworksError
from moeworks.trace import TraceHeader

_ANY_SIZE = 1 << 31


def find_pieces(header: TraceHeader, tokenizer: Path | None, model: Path | None) -> tuple[Pieces | None, str]:
    """The tokens' texts, and why there are none.

    `tokenizer` or else `model` is where to look; without both the path that the trace names its model
    by, if it is still there. Raises ConfigError for a given one that is not the trace's by its
    fingerprint, and DataError for one that cannot be read; one that only the trace names is left out
    with a reason.
    """
    path = tokenizer or model
    if path is not None:
        backend = _read(path)
        if not _fits(backend, header):
            field = "tokenizer" if tokenizer else "model"
            raise ConfigError(f"{field} = {str(path)!r}: its tokenizer is not the one of the trace")
        return Pieces(backend), ""
    named = Path(header.model)
    if not named.exists():
        return None, ""
    try:
        backend = _read(named)
    except MoeworksError as error:
        return None, str(error)
    if not _fits(backend, header):
        return None, f"{named} has another tokenizer by now"
    return Pieces(backend), ""


def _fits(backend: Backend, header: TraceHeader) -> bool:
    if header.tokenizer_fingerprint is None:
        return True
    return hashlib.sha256(backend.to_str().encode()).hexdigest() == header.tokenizer_fingerprint


def _read(path: Path) -> Backend:
    """The tokenizer of a tokenizer.json, of a folder with one or a tokenizer.model, of a checkpoint, or of a
    GGUF file."""
    if path.suffix == ".gguf" or (path / "tokenizer.model").is_file():
        return tokenizer_of(path, _ANY_SIZE).backend
    if not path.is_dir():
        return read_backend(path)
    if (path / "checkpoint.json").is_file():
        return read_backend(path.resolve().parent.parent / "tokenizer.json")
    return read_backend(path / "tokenizer.json")
