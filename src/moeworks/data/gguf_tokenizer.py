"""The tokenizer inside a GGUF file: byte-level BPE ("gpt2"), and pieces with scores ("llama").

Names of the fields and of the ways to cut text before merging are llama.cpp's.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers

from moeworks.errors import DataError, nearest, require
from moeworks.gguf_file import gguf_parts

_CONTROL, _USER_DEFINED = 3, 4  # token types
_WORD_LIKE = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)  # Llama 3's
_SINGLE_DIGITS = _WORD_LIKE.replace(r"\p{N}{1,3}", r"\p{N}")  # Qwen 2's


class NoTokenizerError(DataError):
    """A GGUF file that holds no tokenizer at all."""


@dataclass(frozen=True, eq=False)
class GgufTokenizer:
    """Description of the tokenizer in a GGUF file."""

    backend: tokenizers.Tokenizer
    pieces: Sequence[str]
    """The token of each id."""
    special_ids: Mapping[str, int]
    """Ids of the special tokens that the file names, by "bos", "eos", "unknown" and so on."""
    add_bos: bool
    chat_template: str | None


def read_gguf_tokenizer(path: Path) -> GgufTokenizer:
    """Read the tokenizer of a GGUF file. Raises DataError if there is none, or if its kind is unknown."""
    gguf, first = require("gguf", extra="gguf"), gguf_parts(path)[0]
    try:
        fields = gguf.GGUFReader(first).fields
        given = {
            name.removeprefix("tokenizer."): value.contents()
            for name, value in fields.items()
            if name.startswith("tokenizer.")
        }
    except Exception as error:  # the package raises whatever its parsing runs into
        raise DataError(f"{path}: not a readable GGUF file: {error}") from error
    kind, pieces = given.get("ggml.model"), given.get("ggml.tokens")
    if kind is None:
        raise NoTokenizerError(f"{path}: holds no tokenizer: it has no tokenizer.ggml.model")
    if kind not in ("gpt2", "llama") or not isinstance(pieces, list):
        raise DataError(f"{path}: tokenizer.ggml.model = {kind!r}: only gpt2 and llama are read")
    if kind == "gpt2":
        backend = byte_level_bpe(pieces, given.get("ggml.merges") or [], str(given.get("ggml.pre", "gpt-2")))
    else:
        prefix = bool(given.get("ggml.add_space_prefix", True))
        backend = bpe_of_scores(pieces, given.get("ggml.scores") or [], prefix=prefix)
    types = given.get("ggml.token_type") or []
    _add_special(backend, pieces, types)
    return GgufTokenizer(
        backend,
        pieces,
        _special_ids(given, len(pieces)),
        bool(given.get("ggml.add_bos_token", kind == "llama")),
        given.get("chat_template"),
    )


def byte_level_bpe(pieces: Sequence[str], merges: Sequence[str], cut: str) -> tokenizers.Tokenizer:
    """Byte-level BPE; `cut` names how text is split before merging. Raises DataError if it is unknown."""
    if cut not in _CUTS:
        raise DataError(f"tokenizer.ggml.pre = {cut!r}: {nearest(cut, _CUTS)}")
    pairs = [(left, right) for left, _, right in (merge.partition(" ") for merge in merges)]
    try:
        vocab = {piece: number for number, piece in enumerate(pieces)}
        backend = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=pairs))
    except Exception as error:  # tokenizers raises plain Exception
        raise DataError(f"tokenizer.ggml.merges: they do not fit the tokens: {error}") from error
    normalizer, steps, regex = _CUTS[cut]
    if normalizer is not None:
        backend.normalizer = normalizer
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=regex)
    backend.pre_tokenizer = pre_tokenizers.Sequence([*steps, last])
    backend.decoder = decoders.ByteLevel()
    return backend


def bpe_of_scores(
    pieces: Sequence[str], scores: Sequence[float], *, prefix: bool = True
) -> tokenizers.Tokenizer:
    """Pieces with scores, "▁" for a space, as sentencepiece's BPE: of all pairs the best-scored one merges.

    Bytes have pieces of their own, "<0x0A>"; `prefix` puts a space before a text. Raises DataError.
    """
    if len(scores) != len(pieces):
        raise DataError(f"tokenizer.ggml.scores: {len(scores)} of them for {len(pieces)} tokens")
    vocab = {piece: number for number, piece in enumerate(pieces)}
    ranked = []
    for piece, number in vocab.items():
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in vocab and right in vocab:
                ranked.append((-scores[number], number, vocab[left], vocab[right], (left, right)))
    merges = [pair for *_, pair in sorted(ranked)]
    unknown = next((piece for piece in ("<unk>",) if piece in vocab), None)
    backend = tokenizers.Tokenizer(
        models.BPE(vocab=vocab, merges=merges, unk_token=unknown, fuse_unk=True, byte_fallback=True)
    )
    spaces: list[Any] = [normalizers.Replace(" ", "▁")]
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), *spaces] if prefix else spaces)
    steps: list[Any] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefix else steps)
    return backend


def _add_special(backend: tokenizers.Tokenizer, pieces: Sequence[str], types: Sequence[int]) -> None:
    kinds = list(zip(pieces, types, strict=False))
    own = [AddedToken(p, special=False, normalized=False) for p, t in kinds if t == _USER_DEFINED]
    control = [AddedToken(p, special=True, normalized=False) for p, t in kinds if t == _CONTROL]
    backend.add_tokens(own)
    backend.add_special_tokens(control)


def _special_ids(given: Mapping[str, Any], size: int) -> dict[str, int]:
    ids = {}
    for kind in ("bos", "eos", "unknown", "padding"):
        number = given.get(f"ggml.{kind}_token_id")
        if number is not None:
            if not 0 <= number < size:
                raise DataError(f"tokenizer.ggml.{kind}_token_id = {number}: there are {size} tokens")
            ids[kind] = int(number)
    return ids


def _split(pattern: str) -> Any:
    return pre_tokenizers.Split(Regex(pattern), "isolated")


_CUTS: dict[str, tuple[Any, list[Any], bool]] = {
    "gpt-2": (None, [], True),
    "default": (None, [], True),
    "olmo": (None, [], True),
    "smollm": (None, [pre_tokenizers.Digits(individual_digits=True)], True),
    "llama-bpe": (None, [_split(_WORD_LIKE)], False),
    "qwen2": (normalizers.NFC(), [_split(_SINGLE_DIGITS)], False),
}
"""Normalizer, steps before bytes become characters, and whether GPT-2's own pattern cuts then."""
