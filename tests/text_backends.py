"""Small tokenizers of the kinds that models come with."""

from tiny_chain import spaced_tokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from moeworks.data.gguf_tokenizer import bpe_of_scores, byte_level_bpe
from moeworks.data.tokenizer import BYTE_CHARACTERS, build_tokenizer

CORPUS = [
    "the quick brown fox, again and again",
    "Zwölf Boxkämpfer, größer",
    "いろは にほへと",
    "a  b\n\tc 😀!",
]
BYTE_PIECES = [f"<0x{byte:02X}>" for byte in range(256)]
SPECIAL = "<|end|>"


def metaspace() -> Tokenizer:
    """Unigram with the Metaspace decoder, as in T5 and older Llama conversions."""
    backend = Tokenizer(models.Unigram())
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    characters = [*" \n\t,!äößのいろはにほへと😀", *map(chr, range(97, 123)), "Z", "B"]
    trainer = trainers.UnigramTrainer(
        vocab_size=120, special_tokens=["<unk>", SPECIAL], unk_token="<unk>", show_progress=False,
        initial_alphabet=characters,
    )  # fmt: skip
    backend.train_from_iterator(CORPUS * 9, trainer)
    return backend


def of_gguf(kind: str) -> Tokenizer:
    if kind == "gpt2":
        return byte_level_bpe([*BYTE_CHARACTERS, "ab", "Ġab"], ["a b", "Ġ ab"], "llama-bpe")
    pieces = ["<unk>", "<s>", "</s>", *BYTE_PIECES, "▁", "a", "b", "▁a", "ab", "▁ab"]
    return bpe_of_scores(pieces, [0.0 - number for number in range(len(pieces))], prefix=kind == "llama")


BACKENDS = {
    "metaspace": metaspace,
    "byte fallback": lambda: spaced_tokenizer([*BYTE_PIECES, "▁", *"abc!", "▁a", "▁b", "▁!"]),
    "gguf llama": lambda: of_gguf("llama"),
    "gguf without a prefix": lambda: of_gguf("llama without a prefix"),
    "gguf gpt2": lambda: of_gguf("gpt2"),
    "bpe of a run": lambda: build_tokenizer("bpe", 300, CORPUS).backend,
    "bytes of a run": lambda: build_tokenizer("bytes", 257, []).backend,
}
