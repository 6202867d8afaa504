"""Bytes and readable text of single tokens, which may be only a part of a character."""

import json
import re
from collections.abc import Iterable, Sequence
from typing import SupportsInt

from moeworks.data.model_tokenizer import Backend
from moeworks.data.tokenizer import BYTE_CHARACTERS

_BYTE_OF = {character: byte for byte, character in enumerate(BYTE_CHARACTERS)}
_HEX = re.compile(r"<0x([0-9A-Fa-f]{2})>")  # SentencePiece's byte fallback
_WORD_START = "▁"
CONTINUES = "◦"
"""Placeholder for a token whose bytes continue a character that an earlier token began."""


class Pieces:
    """The bytes of the tokens of one tokenizer.

    >>> import tokenizers
    >>> backend = tokenizers.Tokenizer(tokenizers.models.BPE({"<0xC3>": 0, "▁a": 1}, []))
    >>> Pieces(backend).of([0, 1, 7])
    [b'\\xc3', b' a', None]
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._special = set(backend.get_added_tokens_decoder())
        self._byte_level = '"ByteLevel"' in _decoder(backend)

    def of(self, ids: Iterable[SupportsInt]) -> list[bytes | None]:
        """The bytes of each id; None for one that the tokenizer does not have."""
        return [self._one(int(number)) for number in ids]

    def _one(self, number: int) -> bytes | None:
        piece = self._backend.id_to_token(number) if number >= 0 else None
        if piece is None:
            return None
        if number in self._special:
            return piece.encode("utf-8", "replace")
        if self._byte_level and all(character in _BYTE_OF for character in piece):
            return bytes(_BYTE_OF[character] for character in piece)
        if found := _HEX.fullmatch(piece):
            return bytes([int(found[1], 16)])
        return piece.replace(_WORD_START, " ").encode("utf-8", "replace")


def _decoder(backend: Backend) -> str:
    return json.dumps(json.loads(backend.to_str()).get("decoder"))


def readable(piece: bytes | None) -> str:
    """One token on its own: its text, with bytes that are no whole character as <E3>.

    >>> readable("né".encode()), readable(b"\\xc3"), readable(None)
    ('né', '<C3>', '<?>')
    """
    if piece is None:
        return "<?>"
    return piece.decode("utf-8", "surrogateescape").translate(_AS_HEX)


_AS_HEX = {0xDC00 + byte: f"<{byte:02X}>" for byte in range(128, 256)}


def texts_in_a_row(pieces: Sequence[bytes | None]) -> list[str]:
    """Tokens of a text, each with its own characters. One that several tokens make stands at the first of
    them, and those that only go on with it are CONTINUES. Bytes that make no character are as in `readable`.

    >>> texts_in_a_row([b"n", b"\\xc3", b"\\xa9!", b"\\xff"])
    ['n', 'é', '!', '<FF>']
    >>> texts_in_a_row([b"\\xe2", b"\\x82", b"\\xac"])
    ['€', '◦', '◦']
    """
    known = [piece or b"" for piece in pieces]
    owner = [place for place, piece in enumerate(known) for _ in piece]
    texts = ["" if piece else readable(pieces[i]) for i, piece in enumerate(known)]
    at = 0
    for character in b"".join(known).decode("utf-8", "surrogateescape"):
        escaped = "\udc80" <= character <= "\udcff"
        texts[owner[at]] += character.translate(_AS_HEX)
        at += 1 if escaped else len(character.encode())
    return [text or CONTINUES for text in texts]
