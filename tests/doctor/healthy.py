"""Layers and decoders for the doctor: sound ones."""

from typing import Any

import torch

from moeworks import BalanceConfig, Decoder, ModelConfig, MoE, MoEConfig
from moeworks.config import ExpertsConfig, GQAConfig, RouterConfig
from moeworks.config.layout import LayerPatternConfig
from moeworks.doctor.ours import DecoderSubject, LayerSubject
from moeworks.doctor.shrink import enliven_

BIASED = dict(score="sigmoid", selection_bias=True)
GROUPED = dict(num_groups=4, top_k_groups=2, top_k=3)


def layer_subject(balance: BalanceConfig | None = None, **options: Any) -> LayerSubject:
    """A layer with 12 experts, unless options say otherwise."""
    torch.manual_seed(0)
    config = MoEConfig(**{**dict(d_model=16, d_expert=12, num_experts=12, top_k=2), **options})
    layer = MoE(config)
    enliven_(torch.nn.ModuleList([layer]))
    return LayerSubject(layer, "layer", balance)


def decoder_subject(balance: BalanceConfig | None = None, **router: Any) -> DecoderSubject:
    """A decoder of a dense layer and two MoE layers with 12 experts."""
    torch.manual_seed(0)
    model = Decoder(
        ModelConfig(
            vocab_size=97,
            d_model=32,
            num_layers=3,
            max_seq_len=64,
            attention=GQAConfig(num_heads=2, num_kv_heads=1),
            pattern=LayerPatternConfig(explicit=(1, 2)),
            router=RouterConfig(**{**dict(num_experts=12, top_k=2), **router}),
            experts=ExpertsConfig(d_expert=12),
        )
    )
    enliven_(model)
    return DecoderSubject(model, "decoder", balance)
