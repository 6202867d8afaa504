"""The tokenizer of a folder that has a SentencePiece `tokenizer.model` and no tokenizer.json.

The sentencepiece package reads and applies it (a wheel of some MB that needs no other package): its ids are
right by construction, while merges of a BPE of the tokenizers package cannot say how it breaks ties. What it
does not know are tokens that stand beside the model (added_tokens_decoder in tokenizer_config.json, or
added_tokens.json), and control symbols that a text spells out, as chat templates do: text is cut there first.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moeworks.errors import DataError, require

_NO_PREFIX = b"\x1a\x02\x18\x00"
"""normalizer_spec { add_dummy_prefix: false }: protobuf merges it into the message that it is appended to."""


@dataclass(frozen=True)
class Added:
    """A token that is cut out of a text before sentencepiece sees it."""

    number: int
    special: bool
    """Whether it is a special token, cut out only where texts may spell those."""
    lstrip: bool = False
    """Whether white space before it belongs to it."""
    rstrip: bool = False
    """Whether white space after it belongs to it."""


@dataclass(frozen=True)
class Encoded:
    """Result of `encode`, with the fields of the tokenizers package."""

    ids: list[int]


class SentencePieceTokenizer:
    """A model file with the tokens beside it, behind those methods of `tokenizers.Tokenizer` that are used.

    Raises DataError for a file that is none, and MissingDependencyError without the package.
    """

    encode_special_tokens = False
    """Whether special tokens that a text spells out are ordinary text."""

    def __init__(self, path: Path, added: Mapping[str, Added], *, prefix_again: bool = True) -> None:
        """`prefix_again`: text after an added or special token begins with the dummy space, too."""
        package = require("sentencepiece", extra="sentencepiece")
        try:
            model = path.read_bytes() or b"\0"  # without a byte, the package would wait for a later load
            self._first = package.SentencePieceProcessor(model_proto=model)
            later = model if prefix_again else model + _NO_PREFIX
            self._later = package.SentencePieceProcessor(model_proto=later)
        except OSError as error:
            raise DataError(f"{path}: the tokenizer cannot be read: {error}") from error
        except Exception as error:  # of C++, for what it cannot parse
            raise DataError(f"{path}: not a SentencePiece model: {error}") from error
        self._size: int = self._first.vocab_size()
        control = {
            self._first.id_to_piece(number): Added(number, special=True)
            for number in range(self._size)
            if self._first.is_control(number)
        }
        self._added = {**control, **added}
        self._texts = {token.number: text for text, token in self._added.items()}
        self._cut_all = _cut(self._added)
        self._cut_own = _cut({text: token for text, token in self._added.items() if not token.special})

    def encode(self, text: str, *, add_special_tokens: bool = False) -> Encoded:
        """The ids of `text`; it never adds special tokens: the model file does not say which."""
        pattern = self._cut_own if self.encode_special_tokens else self._cut_all
        ids: list[int] = []
        place, processor = 0, self._first
        for match in pattern.finditer(text) if pattern is not None else ():
            ids += processor.encode(text[place : match.start()])
            ids.append(self._added[match[match.lastgroup or 0]].number)
            place, processor = match.end(), self._later
        return Encoded(ids + processor.encode(text[place:]))

    def encode_plain(self, text: str) -> list[int]:
        """The ids of `text` as if there were no added tokens."""
        return self._later.encode(text)

    def decode(self, ids: Iterable[int], *, skip_special_tokens: bool = False) -> str:
        """The text of `ids`: bytes that are no whole UTF-8 character become U+FFFD, unknown ids nothing."""
        parts: list[str] = []
        run: list[int] = []
        processor = self._first
        for number in ids:
            if number not in self._texts:
                if 0 <= number < self._size:
                    run.append(number)
                continue
            parts.append(processor.decode(run))
            run, processor = [], self._later
            if not (skip_special_tokens and self._added[self._texts[number]].special):
                parts.append(self._texts[number])
        return "".join(parts) + processor.decode(run)

    def get_vocab(self, with_added_tokens: bool = True) -> dict[str, int]:
        """Ids by piece."""
        pieces = {self._first.id_to_piece(number): number for number in range(self._size)}
        return pieces | {text: token.number for text, token in self._added.items() if with_added_tokens}

    def to_str(self) -> str:
        """Everything that determines ids, as text, which therefore differs between tokenizers."""
        added = {text: vars(token) for text, token in self._added.items()}
        models = [p.serialized_model_proto().hex() for p in (self._first, self._later)]
        return json.dumps({"models": models, "added": added, "decoder": None}, sort_keys=True)

    def get_added_tokens_decoder(self) -> dict[int, str]:
        """Control symbols and tokens beside the model: texts by id."""
        return dict(self._texts)

    def id_to_token(self, number: int) -> str | None:
        """The piece or added token of an id."""
        own = self._first.id_to_piece(number) if 0 <= number < self._size else None
        return self._texts.get(number, own)

    def token_to_id(self, token: str) -> int | None:
        """The id of a piece or an added token."""
        return self.get_vocab().get(token)

    @property
    def special_tokens(self) -> dict[str, str]:
        """The model's own bos_token, eos_token …"""
        ids = {name: getattr(self._first, f"{name}_id")() for name in ("bos", "eos", "unk", "pad")}
        return {f"{name}_token": self._first.id_to_piece(i) for name, i in ids.items() if i >= 0}


def read_sentencepiece(folder: Path, config: Mapping[str, Any]) -> SentencePieceTokenizer:
    """The tokenizer.model of a folder; `config` is its tokenizer_config.json. Raises DataError."""
    path = folder / "tokenizer.model"
    # transformers' word: a "legacy" tokenizer begins with the dummy space anew after every special token.
    return SentencePieceTokenizer(
        path, _added_tokens(folder, config), prefix_again=config.get("legacy") is not False
    )


def _added_tokens(folder: Path, config: Mapping[str, Any]) -> dict[str, Added]:
    named = {v for v in config.values() if isinstance(v, str)}
    found: dict[str, Added] = {}
    beside = folder / "added_tokens.json"
    try:
        if beside.is_file():
            for text, number in json.loads(beside.read_text(encoding="utf-8")).items():
                found[text] = Added(int(number), special=text in named)
        for number, entry in (config.get("added_tokens_decoder") or {}).items():
            found[entry["content"]] = Added(
                int(number), bool(entry.get("special")), bool(entry.get("lstrip")), bool(entry.get("rstrip"))
            )
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(f"{folder}: its added tokens cannot be read: {error!r}") from error
    for text, token in found.items():
        if not text or token.number < 0:
            raise DataError(f"{folder}: added token {text!r} = {token.number}: must be a text with an id")
    return found


def _cut(tokens: Mapping[str, Added]) -> re.Pattern[str] | None:
    """Where a text is cut: at the longest token that fits. The group that matched holds the token's text."""
    if not tokens:
        return None
    longest_first = sorted(tokens.items(), key=lambda item: -len(item[0]))
    parts = [
        (r"\s*" if token.lstrip else "")
        + f"(?P<t{place}>{re.escape(text)})"
        + (r"\s*" if token.rstrip else "")
        for place, (text, token) in enumerate(longest_first)
    ]
    return re.compile("|".join(parts))
