"""Tokenizers, all of them one tokenizer.json: bytes, byte-level BPE, and whatever a user brings."""

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import SupportsIndex

import numpy as np
import tokenizers
from tokenizers import Regex, decoders, models, pre_tokenizers, trainers

from moeworks.errors import DataError
from moeworks.files import write_atomically

END_OF_TEXT = "<|endoftext|>"
_END_OF_TEXT_NAMES = (END_OF_TEXT, "</s>", "<|end_of_text|>", "<|end▁of▁sentence|>", "<eos>", "<|im_end|>")
_SMALLEST_VOCAB = 257  # 256 bytes and the end of text

# Pieces that BPE merges within. As GPT-4's, but line ends take the indentation of the next line along (all
# but one space of it, which belongs to the word), and so does the punctuation before them: "):\n       " can
# become one token. Trained and measured at 2048 tokens on Python's library (held-out files), this gives 3.14
# bytes per token; GPT-2's pattern 3.04, GPT-4's 2.99, and line ends with indentation but no punctuation 3.06.
_INDENTED_LINE_END = r"\s*[\r\n]+(?:[ \t]+(?=[ \t]))?"
_PIECES = (
    r"[^\r\n\p{L}\p{N}]?\p{L}+"
    r"|\p{N}{1,3}"
    rf"| ?[^\s\p{{L}}\p{{N}}]+(?:{_INDENTED_LINE_END})?"
    rf"|{_INDENTED_LINE_END}"
    r"|\s+(?!\S)"
    r"|\s+"
)


class Tokenizer:
    """Text to token ids and back.

    Special tokens that a text spells out ("<|endoftext|>") are encoded as ordinary text: only the writer of
    a token store places them.
    """

    def __init__(self, backend: tokenizers.Tokenizer, end_of_text_id: int) -> None:
        backend.no_padding()
        backend.no_truncation()
        backend.encode_special_tokens = True
        self._backend = backend
        self.end_of_text_id = end_of_text_id
        self.vocab_size: int = max(backend.get_vocab(with_added_tokens=True).values()) + 1

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """One int64 array of token ids per text, without any special token added."""
        encoded = self._backend.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(item.ids, dtype=np.int64) for item in encoded]

    def encode(self, text: str) -> np.ndarray:
        """The int64 token ids of one text."""
        return self.encode_batch([text])[0]

    def decode(self, ids: Iterable[SupportsIndex]) -> str:
        """The text of `ids`; bytes that are no whole UTF-8 character become U+FFFD."""
        return self._backend.decode([int(token) for token in ids], skip_special_tokens=False)

    @property
    def backend(self) -> tokenizers.Tokenizer:
        """The tokenizers library's own object."""
        return self._backend

    def save(self, path: str | Path) -> None:
        """Write tokenizer.json, atomically."""
        write_atomically(Path(path), self._json().encode())

    @property
    def fingerprint(self) -> str:
        """sha256 over the JSON form."""
        return hashlib.sha256(self._json().encode()).hexdigest()

    def _json(self) -> str:
        return self._backend.to_str()


def build_tokenizer(kind: str, vocab_size: int, texts: Iterable[str]) -> Tokenizer:
    """The tokenizer that CorpusConfig.tokenizer names, with at most `vocab_size` tokens.

    "bpe" trains byte-level BPE of vocab_size tokens on `texts` (fewer when they hold fewer pairs), "bytes"
    has a token per byte and <|endoftext|> as number 256, anything else is the path of a tokenizer.json.
    Raises DataError when the tokenizer does not fit vocab_size, or its file is missing or bad.
    """
    if kind in ("bpe", "bytes") and vocab_size < _SMALLEST_VOCAB:
        raise DataError(
            f"model.vocab_size = {vocab_size}: the tokenizer {kind!r} needs at least {_SMALLEST_VOCAB}"
        )
    if kind == "bpe":
        return _train_bpe(vocab_size, texts)
    if kind == "bytes":
        return _byte_tokenizer()
    tokenizer = load_tokenizer(kind)
    if tokenizer.vocab_size > vocab_size:
        raise DataError(
            f"{kind}: its {tokenizer.vocab_size} tokens do not fit model.vocab_size = {vocab_size}"
        )
    return tokenizer


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Read a tokenizer.json. Raises DataError when it is missing, bad, or has no end-of-text token."""
    try:
        content = Path(path).expanduser().read_bytes()
    except OSError as error:
        raise DataError(f"{path}: the tokenizer cannot be read: {error.strerror}") from error
    try:
        backend = tokenizers.Tokenizer.from_buffer(content)
    except ValueError as error:
        raise DataError(f"{path}: not a tokenizer.json: {error}") from error
    for name in _END_OF_TEXT_NAMES:
        number = backend.token_to_id(name)
        if number is not None:
            return Tokenizer(backend, number)
    raise DataError(f"{path}: has no end-of-text token; known names: {' '.join(_END_OF_TEXT_NAMES)}")


def _train_bpe(vocab_size: int, texts: Iterable[str]) -> Tokenizer:
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=BYTE_CHARACTERS,
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return Tokenizer(backend, 0)  # special tokens come first


def _byte_tokenizer() -> Tokenizer:
    vocab = {character: byte for byte, character in enumerate(BYTE_CHARACTERS)}
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([END_OF_TEXT])
    return Tokenizer(backend, len(vocab))


def _byte_characters() -> list[str]:
    """The character that stands for each byte in byte-level vocabularies, as GPT-2 chose them.

    Printable bytes stand for themselves, the others for the characters from U+0100 on.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) if byte in printable else chr(0x100 + others.index(byte)) for byte in range(256)]


BYTE_CHARACTERS = _byte_characters()
