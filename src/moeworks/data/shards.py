"""From documents to token stores on disk, once per corpus.

The corpus is streamed three times and never held: to hash it (which names its folder in the cache), to train
the tokenizer, and to tokenise. A cached corpus is hashed only when a file's size or time has changed.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from moeworks.config import CorpusConfig
from moeworks.data import cache
from moeworks.data.corpus import iter_documents, source_signature
from moeworks.data.documents import Document, document_digest
from moeworks.data.split import CorpusScan, scan
from moeworks.data.store import StoreWriter, TokenStore, open_store
from moeworks.data.tokenizer import Tokenizer, build_tokenizer, load_tokenizer
from moeworks.errors import DataError
from moeworks.files import write_atomically

FORMAT = 1
"""Version of the files in the cache; a change makes older folders unused."""
BPE_BYTES = 64_000_000
"""BPE is trained on about this much of the training side, spread evenly."""
_BATCH_BYTES = 1_000_000  # text tokenised at a time; it takes up to a hundred times this in memory
_SIDES = ("train", "validation")

Progress = Callable[[str], None]


@dataclass(frozen=True)
class PreparedCorpus:
    """A corpus ready to train on."""

    tokenizer: Tokenizer
    domains: tuple[str, ...]
    """Domain labels, sorted; domain ids are positions in it."""
    train: TokenStore
    validation: TokenStore
    fingerprint: str
    """Fingerprint; equal exactly if tokenizer, domains and all stored documents are equal."""


def prepare(
    data: tuple[str, ...], config: CorpusConfig, vocab_size: int, *, progress: Progress | None = None
) -> PreparedCorpus:
    """Tokenise the corpus, or find it in the cache.

    `data` is as for iter_documents, `vocab_size` the most tokens the model has room for, and `progress` is
    called with a line of text now and then. The result lies, memory-mapped, in <cache_dir>/corpora/<key>;
    the key is a hash of all documents and settings. Several processes may prepare the same corpus at once.
    A damaged folder is built again. Raises DataError for a corpus, tokenizer or cache that cannot be used.
    """
    tell = progress or (lambda message: None)
    root = cache.corpora_folder(config.cache_dir)
    settings = _settings(config, vocab_size)
    signature = _signature(data, config, settings)
    known = _read_shortcut(root, signature)
    prepared = _load_cached(root / known, tell) if known else None
    if prepared is None:
        found, skipped = _scan(data, config, tell)
        folder = root / _hash([found.content_hash, settings])
        prepared = _load_cached(folder, tell) or _build(folder, data, config, vocab_size, found, tell)
        _write_shortcut(root, signature, folder.name)
        if skipped:
            tell(f"skipped {skipped.total()} files that are not text")
    return prepared


def load_prepared(folder: Path) -> PreparedCorpus:
    """Open a folder of the cache. Raises DataError when a file of it is missing or altered."""
    meta = cache.read_meta(folder)
    domains, vocab_size = tuple(meta["domains"]), meta["vocab_size"]
    train, validation = (open_store(folder / side, vocab_size, len(domains)) for side in _SIDES)
    tokenizer = load_tokenizer(folder / "tokenizer.json")
    return PreparedCorpus(tokenizer, domains, train, validation, cache.meta_checksum(meta))


def _hash(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:32]


def _settings(config: CorpusConfig, vocab_size: int) -> list[object]:
    """Everything besides the documents that determines the stored files."""
    kind = config.tokenizer
    if kind not in ("bpe", "bytes"):
        kind = load_tokenizer(kind).fingerprint
    return [FORMAT, kind, vocab_size, config.validation_fraction]


def _signature(data: tuple[str, ...], config: CorpusConfig, settings: list[object]) -> str | None:
    sources = source_signature(data)
    return None if sources is None else _hash([sources, settings, config.text_field, config.domain_field])


def _shortcut(root: Path, signature: str) -> Path:
    return root / f"{signature}.key"


def _read_shortcut(root: Path, signature: str | None) -> str | None:
    if signature is None or not _shortcut(root, signature).is_file():
        return None
    key = _shortcut(root, signature).read_bytes().decode("ascii", "replace")
    return key if cache.is_key(key) and (root / key / "meta.json").is_file() else None


def _write_shortcut(root: Path, signature: str | None, key: str) -> None:
    if signature is not None:
        write_atomically(_shortcut(root, signature), key.encode())


def _load_cached(folder: Path, tell: Progress) -> PreparedCorpus | None:
    if not folder.is_dir():
        return None
    try:
        return load_prepared(folder)
    except DataError as error:
        tell(f"the cached corpus is damaged and is built again: {error}")
        cache.discard(folder)
        return None


def _scan(data: tuple[str, ...], config: CorpusConfig, tell: Progress) -> tuple[CorpusScan, Counter[str]]:
    skipped: Counter[str] = Counter()
    found = scan(iter_documents(data, config, skipped), config.validation_fraction)
    tell(
        f"corpus: {found.num_documents} documents, {found.num_bytes / 1e6:.1f} MB, "
        f"{len(found.domains)} domains"
    )
    return found, skipped


def _build(
    folder: Path,
    data: tuple[str, ...],
    config: CorpusConfig,
    vocab_size: int,
    found: CorpusScan,
    tell: Progress,
) -> PreparedCorpus:
    if config.tokenizer == "bpe":
        tell(f"training a tokenizer of {vocab_size} tokens")
    sample = _training_sample(iter_documents(data, config), found)
    tokenizer = build_tokenizer(config.tokenizer, vocab_size, sample)
    with cache.building(folder) as temporary:
        checksums = _tokenise(temporary, iter_documents(data, config), tokenizer, found, tell)
        tokenizer.save(temporary / "tokenizer.json")
        checksums["tokenizer.json"] = cache.file_checksum(temporary / "tokenizer.json")
        meta = {"format": FORMAT, "vocab_size": tokenizer.vocab_size, "domains": list(found.domains)}
        cache.write_meta(temporary, meta, checksums)
    return load_prepared(folder)


def _training_sample(documents: Iterator[Document], found: CorpusScan) -> Iterator[str]:
    """Texts of the training side, about BPE_BYTES of them, in a fixed and even spread."""
    share = min(1.0, BPE_BYTES / max(found.num_training_bytes, 1))
    seen = taken = 0
    for document in documents:
        for held_out, text in found.split.assign(document.text):
            if not held_out:
                if taken <= share * seen:
                    taken += len(text.encode())
                    yield text
                seen += len(text.encode())


def _tokenise(
    folder: Path, documents: Iterator[Document], tokenizer: Tokenizer, found: CorpusScan, tell: Progress
) -> dict[str, str]:
    """Write both stores below `folder`; returns the checksums of their files by relative path."""
    sizes = (tokenizer.vocab_size, tokenizer.end_of_text_id)
    with (
        StoreWriter(folder / "train", *sizes) as train,
        StoreWriter(folder / "validation", *sizes) as validation,
    ):
        _fill(train, validation, documents, tokenizer, found, tell)
    writers = dict(zip(_SIDES, (train, validation), strict=True))
    for side, writer in writers.items():
        if writer.num_documents == 0:
            raise DataError(f"the corpus is too small: its {side} side holds no token")
        tell(f"{side}: {writer.num_documents} documents, {writer.num_tokens} tokens")
    return {f"{side}/{name}": value for side, w in writers.items() for name, value in w.checksums().items()}


def _fill(
    train: StoreWriter,
    validation: StoreWriter,
    documents: Iterator[Document],
    tokenizer: Tokenizer,
    found: CorpusScan,
    tell: Progress,
) -> None:
    content, done, told = hashlib.sha256(), 0, 0
    for batch in _batches(documents, _BATCH_BYTES):
        for document in batch:
            content.update(document_digest(document))
        parts = _assign(batch, found)
        encoded = tokenizer.encode_batch([text for _, text, _ in parts])
        for (held_out, text, domain), tokens in zip(parts, encoded, strict=True):
            size = len(text.encode())
            (validation if held_out else train).append(tokens, size, domain)
            done += size
        tenths = 10 * done // found.num_bytes
        if tenths > told:
            tell(f"tokenising: {10 * tenths} %")
            told = tenths
    if content.hexdigest() != found.content_hash:
        raise DataError("the corpus changed while it was read: start again when its files are at rest")


def _assign(batch: list[Document], found: CorpusScan) -> list[tuple[bool, str, int]]:
    """Parts of all documents, each as (whether it is for validation, text, domain id)."""
    # A domain that the scan did not see means that the corpus changed, which _fill reports at its end.
    ids = {name: index for index, name in enumerate(found.domains)}
    return [
        (held_out, text, ids.get(document.domain, 0))
        for document in batch
        for held_out, text in found.split.assign(document.text)
    ]


def _batches(documents: Iterator[Document], size: int) -> Iterator[list[Document]]:
    """Consecutive documents in lists of about `size` characters."""
    while first := next(documents, None):
        batch, total = [first], len(first.text)
        while total < size and (document := next(documents, None)):
            batch.append(document)
            total += len(document.text)
        yield batch
