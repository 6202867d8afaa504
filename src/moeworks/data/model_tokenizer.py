"""The tokenizer that belongs to a model on disk: of a run, of a published checkpoint, or of a GGUF file."""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import dropwhile
from pathlib import Path
from typing import Any, SupportsIndex

import tokenizers

from moeworks.checkpoint import read_checkpoint
from moeworks.checkpoint.source import read_json
from moeworks.config.generate import sampling_advice
from moeworks.data.chat import chat_variables, mark_spelled, render_chat, split_marked
from moeworks.data.gguf_tokenizer import read_gguf_tokenizer
from moeworks.data.sentencepiece_tokenizer import SentencePieceTokenizer, read_sentencepiece
from moeworks.data.tokenizer import Tokenizer, load_tokenizer
from moeworks.errors import CheckpointError, ConfigError, DataError
from moeworks.pretrained import find_checkpoint, published_config

Backend = tokenizers.Tokenizer | SentencePieceTokenizer
Json = dict[str, Any]

_NAMED = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")


@dataclass(frozen=True, eq=False)
class ModelTokenizer:
    """Tokenizer of a model, with the tokens that frame a text and the chat template."""

    backend: Backend
    start_ids: tuple[int, ...] = ()
    """Tokens that every text begins with."""
    stop_ids: tuple[int, ...] = ()
    """Tokens that end a text."""
    chat_template: str | None = None
    """jinja source that writes a conversation as one text."""
    special_tokens: Mapping[str, str] = field(default_factory=dict)
    """Special tokens by the names that chat templates use: bos_token, eos_token and so on."""
    sampling: Mapping[str, Any] = field(default_factory=dict)
    """Fields of SamplingConfig that the model's makers recommend (generation_config.json)."""
    ignored_advice: tuple[str, ...] = ()
    """Recommended settings that cannot be followed, each with the reason."""

    @property
    def fingerprint(self) -> str:
        """sha256 over everything that determines token ids."""
        return hashlib.sha256(self.backend.to_str().encode()).hexdigest()

    def encode(self, text: str) -> list[int]:
        """The tokens of `text` alone; special tokens that it spells out are ordinary text."""
        return self._encode(text, spelled=True)

    def encode_marked(self, text: str) -> list[int]:
        """The tokens of `text` alone; special tokens that it spells out are those tokens."""
        return self._encode(text, spelled=False)

    def encode_prompt(self, text: str) -> list[int]:
        """Start tokens and `text`; the token that ends texts where both are empty."""
        return [*self.start_ids, *self.encode(text)] or list(self.prefix_ids)

    def encode_chat(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        """A conversation, up to where the model answers.

        A control token that a message spells out is ordinary text: only the template places those. Raises
        ConfigError without a chat template, and for a token that the tokenizer cannot read as text.
        """
        marked = mark_spelled(messages, self._control_tokens())
        ids: list[int] = []
        for number, (piece, spelled) in enumerate(split_marked(self.chat_text(marked))):
            encode = self._encode_spelled if spelled else self.encode_marked
            ids += encode(piece) if number == 0 else self._continued(piece, encode)
        if not ids:
            raise ConfigError("chat: the chat template makes an empty text of these messages")
        return ids

    def chat_text(self, messages: Sequence[Mapping[str, Any]], *, answer: bool = True) -> str:
        """The conversation as the chat template writes it, and, with `answer`, the opening of one.

        Raises ConfigError without a chat template, DataError for one that fails.
        """
        if self.chat_template is None:
            raise ConfigError("chat: this model comes without a chat template; give it a plain text")
        variables = {**self.special_tokens, **chat_variables(messages, answer=answer)}
        return render_chat(self.chat_template, variables)

    def _control_tokens(self) -> list[str]:
        """Special tokens, and added tokens in the chat template other than white space."""
        template, found = self.chat_template or "", []
        for added in self.backend.get_added_tokens_decoder().values():
            text, special = (added, True) if isinstance(added, str) else (added.content, added.special)
            if text and (special or (text in template and not text.isspace())):
                found.append(text)
        return found

    def _encode_spelled(self, text: str) -> list[int]:
        """The tokens of `text` without any added token. Raises ConfigError if that is impossible."""
        backend = self.backend
        if isinstance(backend, SentencePieceTokenizer):
            ids = backend.encode_plain(text)
        else:
            normal = text if backend.normalizer is None else backend.normalizer.normalize_str(text)
            pieces = [normal]
            if backend.pre_tokenizer is not None:
                pieces = [piece for piece, _ in backend.pre_tokenizer.pre_tokenize_str(normal)]
            ids = [token.id for piece in pieces for token in backend.model.tokenize(piece)]
        token = text.removeprefix("\n")
        if backend.token_to_id(token) in ids:
            raise ConfigError(
                f"chat: a message spells {token!r}, which this tokenizer cannot read as text; remove it there"
            )
        return ids

    def _continued(self, piece: str, encode: Callable[[str], list[int]]) -> list[int]:
        """The tokens of a piece from the middle of a text: after a line end no space is put before it."""
        line_end = self.encode_marked("\n")
        ids = encode("\n" + piece)
        return ids[len(line_end) :] if ids[: len(line_end)] == line_end else encode(piece)

    def decode(self, ids: Iterable[SupportsIndex]) -> str:
        """The text of `ids`; bytes that are no whole UTF-8 character become U+FFFD."""
        return self.backend.decode([int(token) for token in ids], skip_special_tokens=False)

    def without_frame(self, ids: Sequence[int]) -> list[int]:
        """`ids` without the start and stop tokens at their beginning."""
        frame = {*self.start_ids, *self.stop_ids}
        return list(dropwhile(frame.__contains__, ids))

    @property
    def prefix_ids(self) -> tuple[int, ...]:
        """Tokens that predict a text's first token: the start tokens, or else the token that ends texts."""
        return self.start_ids or self.stop_ids[:1]

    @property
    def size(self) -> int:
        """One more than the largest id."""
        return max(self.backend.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    def _encode(self, text: str, *, spelled: bool) -> list[int]:
        self.backend.encode_special_tokens = spelled
        return self.backend.encode(text, add_special_tokens=False).ids


def tokenizer_of(path: str | Path, vocab_size: int) -> ModelTokenizer:
    """The tokenizer of the model that `moeworks.load(path)` gives, whose vocabulary has `vocab_size` tokens.

    Raises DataError when it is missing or bad, CheckpointError when it is not the model's.
    """
    path = Path(path)
    if path.suffix == ".gguf":
        found = _of_gguf(path)
    elif published_config(path) is not None:
        found = _of_published(path)
    else:
        found = _of_run(find_checkpoint(path))
    if found.size > vocab_size:
        raise CheckpointError(
            f"{path}: the tokenizer has {found.size} tokens, the model only {vocab_size}; they do not belong"
            " together"
        )
    return found


def run_tokenizer(checkpoint: Path) -> Tokenizer:
    """The tokenizer of a run's checkpoint.

    Raises DataError when it is missing or bad, CheckpointError when it is not the one that the model was
    trained with.
    """
    path = tokenizer_file(checkpoint)
    tokenizer = load_tokenizer(path)
    trained_with = read_checkpoint(checkpoint, verify=False).state["tokenizer"]
    if tokenizer.fingerprint != trained_with["fingerprint"]:
        raise CheckpointError(
            f"{path}: its vocabulary of {tokenizer.vocab_size} does not fit the checkpoint, whose model was"
            f" trained with another tokenizer, of {trained_with['vocab_size']}"
        )
    return tokenizer


def tokenizer_file(checkpoint: Path) -> Path:
    """The tokenizer.json of the run that a checkpoint belongs to."""
    return checkpoint.resolve().parent.parent / "tokenizer.json"


def _of_run(checkpoint: Path) -> ModelTokenizer:
    tokenizer = run_tokenizer(checkpoint)
    end = tokenizer.end_of_text_id
    return ModelTokenizer(tokenizer.backend, (end,), (end,))


def _of_gguf(path: Path) -> ModelTokenizer:
    read = read_gguf_tokenizer(path)
    names = {"unknown": "unk", "padding": "pad"}  # of GGUF, and of templates
    named = {
        f"{names.get(kind, kind)}_token": read.pieces[number] for kind, number in read.special_ids.items()
    }
    start = (read.special_ids["bos"],) if read.add_bos and "bos" in read.special_ids else ()
    stop = (read.special_ids["eos"],) if "eos" in read.special_ids else ()
    return ModelTokenizer(read.backend, start, stop, read.chat_template, named)


def _of_published(folder: Path) -> ModelTokenizer:
    config = _optional_json(folder / "tokenizer_config.json")
    backend, config = _backend(folder, config)
    named = {name: text for name in _NAMED if (text := _content(config.get(name))) is not None}
    advice = sampling_advice(_optional_json(folder / "generation_config.json"))
    return ModelTokenizer(
        backend,
        _start_ids(backend, config, named),
        _stop_ids(folder, backend, named),
        _chat_template(folder, config),
        named,
        advice.fields,
        advice.ignored,
    )


def _backend(folder: Path, config: Json) -> tuple[Backend, Json]:
    """The tokenizer, and its tokenizer_config.json completed from the model file."""
    path, model = folder / "tokenizer.json", folder / "tokenizer.model"
    if path.is_file() or not model.is_file():
        return read_backend(path), config
    backend = read_sentencepiece(folder, config)
    given = {key: value for key, value in config.items() if value is not None}
    # As transformers' tokenizers of such files do, texts begin with BOS unless the config says otherwise.
    return backend, {"add_bos_token": True, **backend.special_tokens, **given}


def read_backend(path: Path) -> tokenizers.Tokenizer:
    """The tokenizer in a tokenizer.json, without padding and truncation. Raises DataError."""
    try:
        backend = tokenizers.Tokenizer.from_buffer(path.read_bytes())
    except FileNotFoundError as error:
        raise DataError(
            f"{path}: missing, and there is no tokenizer.model; transformers makes one of other kinds:"
            " AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"
        ) from error
    except OSError as error:
        raise DataError(f"{path}: the tokenizer cannot be read: {error.strerror}") from error
    except Exception as error:  # tokenizers raises plain Exception for some of what it cannot parse
        raise DataError(f"{path}: not a tokenizer.json: {error}") from error
    backend.no_padding()
    backend.no_truncation()
    return backend


def _optional_json(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _content(token: object) -> str | None:
    """The text of a special token, which is written as such or as a record with its `content`."""
    text = token.get("content") if isinstance(token, Mapping) else token
    return text if isinstance(text, str) else None


def _start_ids(backend: Backend, config: Mapping[str, Any], named: Mapping[str, str]) -> tuple[int, ...]:
    """Tokens that tokenizer.json puts before a text, or else the BOS that tokenizer_config.json asks for."""
    if config.get("add_bos_token") is False:
        return ()
    alone = backend.encode("a", add_special_tokens=False).ids
    framed = backend.encode("a", add_special_tokens=True).ids
    for start in range(len(framed) - len(alone) + 1):
        if framed[start : start + len(alone)] == alone and start > 0:
            return tuple(framed[:start])
    bos = backend.token_to_id(named["bos_token"]) if "bos_token" in named else None
    return (bos,) if config.get("add_bos_token") is True and bos is not None else ()


def _stop_ids(folder: Path, backend: Backend, named: Mapping[str, str]) -> tuple[int, ...]:
    """End tokens of generation_config.json, or else of config.json, and the tokenizer's own."""
    stops: list[int] = []
    for name in ("generation_config.json", "config.json"):
        given = _optional_json(folder / name).get("eos_token_id")
        listed = given if isinstance(given, list) else [given]
        stops = [
            token for token in listed if isinstance(token, int) and not isinstance(token, bool) and token >= 0
        ]
        if stops:
            break
    own = backend.token_to_id(named["eos_token"]) if "eos_token" in named else None
    return tuple(dict.fromkeys([*([] if own is None else [own]), *stops]))


def _chat_template(folder: Path, config: Mapping[str, Any]) -> str | None:
    """The default template: of chat_template.jinja, or of tokenizer_config.json, there alone or by name."""
    for file in (folder / "chat_template.jinja", folder / "additional_chat_templates" / "default.jinja"):
        try:
            return file.read_text(encoding="utf-8")
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:
            raise DataError(f"{file}: cannot be read: {error}") from error
    template = config.get("chat_template")
    if isinstance(template, list):  # several, each with a name
        template = {str(t.get("name")): t.get("template") for t in template if isinstance(t, Mapping)}
    if isinstance(template, Mapping):
        template = template.get("default")
    return template if isinstance(template, str) else None
