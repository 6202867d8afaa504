"""A whole training step of one Qwen3-MoE-shaped model: moeworks beside transformers with torch's AdamW."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from moeworks.config import (
    BalanceConfig,
    ExpertsConfig,
    GQAConfig,
    ModelConfig,
    OptimizerConfig,
    RouterConfig,
    RunConfig,
    TrainConfig,
)
from moeworks.config.count import count_parameters
from moeworks.ops.backends import BACKENDS, Backend
from suite.peers import loaded, required
from suite.registry import Arm, Case, Operation, Sampler, Settings, register
from suite.sampling import per_second
from suite.trainers import QUICK_DATA, our_trainer

AUX_COEF = 0.001
"""Of transformers' balance loss, which is K at balance where ours is 1."""
TRANSFORMERS = "transformers"
MATHS = "the first loss"


def run_config(settings: Settings) -> RunConfig:
    """About 30 M parameters, 64 experts of which a token uses 8, on Python's own library."""
    config = RunConfig(
        model=ModelConfig(
            vocab_size=8192,
            d_model=256,
            num_layers=4,
            max_seq_len=256,
            tie_embeddings=False,
            attention=GQAConfig(num_heads=4, num_kv_heads=2, head_dim=64, mask_documents=False),
            router=RouterConfig(num_experts=64, top_k=8),
            experts=ExpertsConfig(d_expert=128),
        ),
        balance=BalanceConfig(global_batch_coef=8 * AUX_COEF),
        optimizer=OptimizerConfig(name="adamw", lr=3e-4, schedule="constant", warmup_steps=0),
        train=TrainConfig(batch_size=8, seq_len=256, device="cpu", threads=settings.threads),
    )
    if not settings.quick:
        return config
    tiny = replace(
        config.model,
        vocab_size=512,
        d_model=32,
        num_layers=2,
        attention=replace(config.model.attention, head_dim=8),
        router=RouterConfig(num_experts=8, top_k=2),
        experts=ExpertsConfig(d_expert=16),
    )
    return replace(
        config,
        **QUICK_DATA,
        model=tiny,
        balance=BalanceConfig(global_batch_coef=2 * AUX_COEF),
        train=replace(config.train, batch_size=2, seq_len=32),
    )


def train_cases(settings: Settings) -> list[Case]:
    """One model."""
    config = run_config(settings)
    count, model, train = count_parameters(config.model), config.model, config.train
    name = f"{count.total / 1e6:.1f} M parameters, E {model.moe.num_experts}, k {model.moe.top_k}"
    shape = {
        "parameters": count.total,
        "active": count.active,
        "D": model.d_model,
        "layers": model.num_layers,
        "V": model.vocab_size,
        "E": model.moe.num_experts,
        "K": model.moe.top_k,
        "F": model.moe.d_expert,
        "B": train.batch_size,
        "L": train.seq_len,
    }
    return [Case(name, shape)]


def train_arms(case: Case, settings: Settings) -> list[Arm]:
    """Ours on each backend; transformers with AdamW as it comes and with torch's fused one."""
    ours = [
        Arm(
            name=f"moeworks {backend}",
            build=partial(_build_ours, cast(Backend, backend), settings),
            ours=True,
            maths=MATHS,
        )
        for backend in BACKENDS
    ]
    theirs = [
        Arm(name=TRANSFORMERS + suffix, build=partial(_build_theirs, fused, settings), maths=MATHS)
        for suffix, fused in (("", None), (", fused AdamW", True))
    ]
    return [*ours, *theirs]


def _build_ours(backend: Backend, settings: Settings) -> Sampler:
    trainer = our_trainer(run_config(settings), backend)
    losses: list[float] = []

    def step() -> None:
        losses.append(float(trainer.step().losses.loss))

    return _sampler(step, losses, settings)


def _build_theirs(fused: bool | None, settings: Settings) -> Sampler:
    config = run_config(settings)
    trainer = our_trainer(config)  # for the same initial weights and batches
    model, loader = transformers_model(config.model, trainer.model), trainer.loader
    del trainer
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=config.optimizer.lr,
        betas=(config.optimizer.beta1, config.optimizer.beta2),
        eps=config.optimizer.eps,
        weight_decay=config.optimizer.weight_decay,
        fused=fused,
    )
    losses: list[float] = []

    def step() -> None:
        batch = loader.batch(len(losses))
        optimizer.zero_grad()
        output = model(
            input_ids=batch.tokens_BL,
            labels=batch.targets_BL,
            shift_labels=batch.targets_BL.masked_fill(~batch.valid_BL, -100),
            use_cache=False,
        )
        output.loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), config.optimizer.clip_norm)
        optimizer.step()
        losses.append(float(output.loss.detach() - AUX_COEF * output.aux_loss.detach()))

    return _sampler(step, losses, settings)


def _sampler(step: Callable[[], None], losses: list[float], settings: Settings) -> Sampler:
    train = run_config(settings).train
    return Sampler(per_second(step, train.batch_size * train.seq_len, settings), lambda: [losses[0]])


def transformers_model(config: ModelConfig, model: nn.Module) -> Any:
    """Qwen3MoeForCausalLM with the weights of our decoder and its default experts implementation."""
    qwen = required("transformers.models.qwen3_moe.modeling_qwen3_moe")
    theirs = qwen.Qwen3MoeForCausalLM(
        qwen.Qwen3MoeConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.d_model,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.attention.num_heads,
            num_key_value_heads=config.attention.num_kv_heads,
            head_dim=config.head_dim,
            max_position_embeddings=config.max_seq_len,
            rms_norm_eps=config.norm_eps,
            rope_parameters={"rope_type": "default", "rope_theta": config.attention.rope_theta},
            tie_word_embeddings=config.tie_embeddings,
            moe_intermediate_size=config.moe.d_expert,
            num_experts=config.moe.num_experts,
            num_experts_per_tok=config.moe.top_k,
            norm_topk_prob=True,
            output_router_logits=True,
            router_aux_loss_coef=AUX_COEF,
        )
    )
    weights: dict[str, Tensor] = {_their_name(name): value for name, value in model.named_parameters()}
    assert weights.keys() == dict(theirs.named_parameters()).keys()
    return loaded(theirs, weights).train()


_NAMES = {
    "embed.": "model.embed_tokens.",
    "layers.": "model.layers.",
    "final_norm.": "model.norm.",
    "attention_norm.": "input_layernorm.",
    "mlp_norm.": "post_attention_layernorm.",
    "attention.": "self_attn.",
    "router.": "gate.",
}


def _their_name(name: str) -> str:
    for own, theirs in _NAMES.items():
        name = name.replace(own, theirs)
    return name


register(
    Operation(
        name="train_step",
        summary="Forward, loss with balance loss, backward, clipping and AdamW of one Qwen3-MoE-shaped model",
        unit="tokens/s",
        reference=TRANSFORMERS,
        higher_is_better=True,
        cases=train_cases,
        arms=train_arms,
    )
)
