"""The tokenizer that belongs to a model on disk: of a run, of a published checkpoint, or of a GGUF file."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, SupportsIndex

import tokenizers

from moeworks.checkpoint import read_checkpoint
from moeworks.checkpoint.source import read_json
from moeworks.config.generate import SamplingConfig
from moeworks.data.chat import render_chat
from moeworks.data.gguf_tokenizer import read_gguf_tokenizer
from moeworks.data.sentencepiece_tokenizer import SentencePieceTokenizer, read_sentencepiece
from moeworks.data.tokenizer import Tokenizer, load_tokenizer
from moeworks.errors import CheckpointError, ConfigError, DataError, check
from moeworks.pretrained import find_checkpoint, published_config

Backend = tokenizers.Tokenizer | SentencePieceTokenizer
Json = dict[str, Any]

_NAMED = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")
_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


@dataclass(frozen=True, eq=False)
class ModelTokenizer:
    """Text to what a model reads, and back."""

    backend: Backend
    start_ids: tuple[int, ...] = ()
    """Tokens that every text begins with."""
    stop_ids: tuple[int, ...] = ()
    """Tokens that end a text."""
    chat_template: str | None = None
    """jinja source that writes a conversation as one text."""
    special_tokens: Mapping[str, str] = field(default_factory=dict)
    """bos_token, eos_token …: what chat templates know by these names."""
    sampling: Mapping[str, Any] = field(default_factory=dict)
    """Fields of SamplingConfig that the model's makers recommend (generation_config.json)."""

    @property
    def fingerprint(self) -> str:
        """sha256 over all that decides about ids."""
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
        """A conversation, up to where the model answers. Raises ConfigError without a chat template."""
        ids = self.encode_marked(self.chat_text(messages))
        if not ids:
            raise ConfigError("chat: the chat template makes an empty text of these messages")
        return ids

    def chat_text(self, messages: Sequence[Mapping[str, Any]], *, answer: bool = True) -> str:
        """The conversation as the chat template writes it, and, with `answer`, the opening of one.

        Raises ConfigError without a chat template, DataError for one that fails.
        """
        if self.chat_template is None:
            raise ConfigError("chat: this model comes without a chat template; give it a plain text")
        variables = {**self.special_tokens, "messages": list(messages), "add_generation_prompt": answer}
        return render_chat(self.chat_template, variables)

    def decode(self, ids: Iterable[SupportsIndex]) -> str:
        """The text of `ids`; bytes that are no whole UTF-8 character become U+FFFD."""
        return self.backend.decode([int(token) for token in ids], skip_special_tokens=False)

    @property
    def prefix_ids(self) -> tuple[int, ...]:
        """What a text's first token is predicted from: the start tokens, or else the one that ends texts."""
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
    _check_sampling(path, found.sampling)
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
    named = {f"{kind}_token": read.pieces[number] for kind, number in read.special_ids.items()}
    start = (read.special_ids["bos"],) if read.add_bos and "bos" in read.special_ids else ()
    stop = (read.special_ids["eos"],) if "eos" in read.special_ids else ()
    return ModelTokenizer(read.backend, start, stop, read.chat_template, named)


def _of_published(folder: Path) -> ModelTokenizer:
    config = _optional_json(folder / "tokenizer_config.json")
    backend, config = _backend(folder, config)
    named = {name: text for name in _NAMED if (text := _content(config.get(name))) is not None}
    return ModelTokenizer(
        backend,
        _start_ids(backend, config, named),
        _stop_ids(folder, backend, named),
        _chat_template(folder, config),
        named,
        _sampling(_optional_json(folder / "generation_config.json")),
    )


def _backend(folder: Path, config: Json) -> tuple[Backend, Json]:
    """The tokenizer, and its tokenizer_config.json with what that leaves to the model file."""
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
    """What tokenizer.json puts before a text, or else the BOS token that tokenizer_config.json asks for."""
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
    """The ends that generation_config.json names, or else config.json; and the tokenizer's own."""
    stops: list[int] = []
    for name in ("generation_config.json", "config.json"):
        given = _optional_json(folder / name).get("eos_token_id")
        listed = given if isinstance(given, list) else [given]
        stops = [token for token in listed if isinstance(token, int) and not isinstance(token, bool)]
        if stops:
            break
    own = backend.token_to_id(named["eos_token"]) if "eos_token" in named else None
    return tuple(dict.fromkeys([*([] if own is None else [own]), *stops]))


def _chat_template(folder: Path, config: Mapping[str, Any]) -> str | None:
    file = folder / "chat_template.jinja"
    if file.is_file():
        try:
            return file.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise DataError(f"{file}: cannot be read: {error}") from error
    template = config.get("chat_template")
    if isinstance(template, list):  # several, each with a name
        templates = {str(t.get("name")): t.get("template") for t in template if isinstance(t, Mapping)}
        template = templates.get("default")
    return template if isinstance(template, str) else None


def _sampling(config: Mapping[str, Any]) -> dict[str, Any]:
    found = {name: config[name] for name in _SAMPLING if config.get(name) is not None}
    if found.get("top_k") == 0:  # transformers' word for all
        del found["top_k"]
    return {"temperature": 0.0} if config.get("do_sample") is False else found


def _check_sampling(path: Path, sampling: Mapping[str, Any]) -> None:
    try:
        for name, value in sampling.items():
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            check(number, name, value, "is no number")
        SamplingConfig(**sampling)
    except ConfigError as error:
        raise DataError(f"{path / 'generation_config.json'}: {error}") from error
