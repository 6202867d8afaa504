"""A model whose greedy continuation is a given chain of tokens, and a tokenizer like Mixtral's."""

from collections.abc import Mapping, Sequence

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from moeworks import Decoder
from moeworks.config import ModelConfig
from moeworks.config.mixers import GQAConfig
from moeworks.config.model import ExpertsConfig
from moeworks.config.router import RouterConfig


def chain_model(vocab_size: int, following: Mapping[int, int], max_seq_len: int = 64) -> Decoder:
    """After token t comes following[t]: embeddings are one-hot, attention and experts write nothing."""
    config = ModelConfig(
        vocab_size=vocab_size, d_model=vocab_size + vocab_size % 2, num_layers=1, max_seq_len=max_seq_len,
        tie_embeddings=False, attention=GQAConfig(num_heads=1, num_kv_heads=1),
        router=RouterConfig(num_experts=2, top_k=2), experts=ExpertsConfig(d_expert=4),
    )  # fmt: skip
    model = Decoder(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.fill_(1.0 if "norm" in name else 0.0)
        model.embed.weight.copy_(torch.eye(vocab_size, config.d_model))
        assert model.lm_head is not None
        for token, after in following.items():
            model.lm_head.weight[after, token] = 10.0
    return model


def spaced_tokenizer(pieces: Sequence[str]) -> Tokenizer:
    """<unk>, <s>, </s> and `pieces`, "▁" for a space and one before the text; "<0xF0>" is a byte."""
    vocab = {piece: number for number, piece in enumerate(["<unk>", "<s>", "</s>", *pieces])}
    backend = Tokenizer(
        models.BPE(vocab, [], unk_token="<unk>", byte_fallback=True, fuse_unk=True, ignore_merges=True)
    )
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    words = [pre_tokenizers.Split("▁", "merged_with_next"), pre_tokenizers.Split("!", "isolated")]
    backend.pre_tokenizer = pre_tokenizers.Sequence(words)
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens([AddedToken(t, special=True) for t in ("<unk>", "<s>", "</s>")])
    return backend
