"""moeworks' own layer and decoder as subjects."""

import copy
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils.checkpoint import checkpoint

from moeworks.checkpoint import read_checkpoint, write_checkpoint
from moeworks.config import BalanceConfig, ModelConfig, MoEConfig, RunConfig, TrainConfig
from moeworks.config.choices import TopKChoice
from moeworks.config.model import CapacityConfig, RouterConfig
from moeworks.data.batches import Batch
from moeworks.doctor.low_rank import LowRank
from moeworks.doctor.subject import (
    Adapted,
    Block,
    Claims,
    ExpertTensor,
    Inputs,
    Seen,
    Step,
    Subject,
    Unavailable,
)
from moeworks.errors import ConfigError
from moeworks.layers.moe import MoE
from moeworks.layers.router import expert_bias_of
from moeworks.models.decoder import Decoder, moe_modules
from moeworks.models.weights import load_weights
from moeworks.ops import losses
from moeworks.ops.replay import Replay
from moeworks.ops.routing import Routing
from moeworks.parallel.world import World
from moeworks.pretrained import load
from moeworks.saving import save
from moeworks.train import step

ASKED = BalanceConfig(
    switch_coef=1, global_batch_coef=1, sequence_coef=1, z_coef=1, entropy_coef=1, importance_coef=1
)
"""The balance losses that the doctor holds against their definitions."""


class OurSubject(Subject):
    """What the layer and the decoder share."""

    def __init__(self, module: nn.Module, name: str, balance: BalanceConfig | None) -> None:
        self.name = name
        self._module = module
        biased = any(expert_bias_of(moe.router) is not None for moe in moe_modules(module))
        self._balance = balance or _usual_balance(module, biased)

    def model(self) -> nn.Module:
        # Configs are frozen: they need no copies.
        kept = {id(c): c for m in self._module.modules() if (c := getattr(m, "config", None)) is not None}
        return copy.deepcopy(self._module, kept).float().requires_grad_(True).eval()

    def blocks(self, model: nn.Module) -> tuple[Block, ...]:
        return tuple(_block(path, moe) for path, moe in self._layers(model))

    def output(self, model: nn.Module, inputs: Inputs) -> Tensor:
        return self.run(model, inputs).output

    def balance(self, model: nn.Module, inputs: Inputs) -> dict[str, Tensor]:
        return losses.balance_losses(self.run(model, inputs).routings, ASKED)

    def balance_by_default(self, model: nn.Module, inputs: Inputs) -> Tensor | None:
        found = losses.balance_losses(self.run(model, inputs).routings, self._balance)
        return None if not found else torch.as_tensor(losses.total_balance_loss(found, self._balance))

    def adapt(self, model: nn.Module) -> Adapted:
        places = [
            (moe.experts, name)
            for _, moe in self._layers(model)[: len(self.blocks(model))]
            for name, parameter in list(moe.experts.named_parameters())
            if parameter.dim() == 3
        ]
        before = {id(p) for p in model.parameters()}
        for experts, name in places:
            parametrize.register_parametrization(experts, name, LowRank(getattr(experts, name)))
        added = tuple(p for p in model.parameters() if id(p) not in before)

        def merge() -> nn.Module:
            for experts, name in places:
                parametrize.remove_parametrizations(experts, name, leave_parametrized=True)
            return model

        return Adapted(model, added, merge)

    def _layers(self, model: nn.Module) -> list[tuple[str, MoE]]:
        return [(path, module) for path, module in model.named_modules() if isinstance(module, MoE)]

    def _claims(self, router: RouterConfig, capacity: CapacityConfig, *, causal: bool = True) -> Claims:
        return _claims(router, capacity, self._balance, causal=causal)


class LayerSubject(OurSubject):
    """A lone MoE layer; a step is the usage that the README shows."""

    kind = "moeworks MoE layer"

    def __init__(self, layer: MoE, name: str = "MoE", balance: BalanceConfig | None = None) -> None:
        super().__init__(layer, name, balance)
        self.config: MoEConfig = layer.config
        self.claims = self._claims(layer.config, layer.config)
        self._reentrant: bool | None = None

    def inputs(self, rows: int = 2, length: int = 12, seed: int = 0) -> Inputs:
        generator = torch.Generator().manual_seed(seed)
        return Inputs(torch.randn(rows, length, self.config.d_model, generator=generator))

    def fresh(self, seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return MoE(self.config)

    def run(self, model: nn.Module, inputs: Inputs) -> Seen:
        dtype = next(model.parameters()).dtype
        x, types_BL = inputs.values.to(dtype), _types(self.config, inputs)
        if self._reentrant is None:
            y, routing = model(x, valid=inputs.valid_BL, token_types=types_BL)
            return Seen(y, (routing,))
        records: list[Routing] = []

        def work(x: Tensor) -> tuple[Tensor, ...]:
            y, routing = model(x, valid=inputs.valid_BL, token_types=types_BL)
            records.append(routing)
            return (y, *routing.tensors())

        y, *tensors = checkpoint(work, x.clone().requires_grad_(), use_reentrant=self._reentrant)
        return Seen(y, (records[0].with_tensors(tuple(tensors)),))

    def replay(self, model: nn.Module, inputs: Inputs, routings: tuple[Routing, ...]) -> Tensor:
        x = inputs.values.to(next(model.parameters()).dtype)
        forced, types_BL = Replay(routings, weights="recorded"), _types(self.config, inputs)
        return model(x, valid=inputs.valid_BL, token_types=types_BL, replay=forced)[0]

    @contextmanager
    def recomputing(self, model: nn.Module, *, reentrant: bool) -> Generator[None]:
        self._reentrant = reentrant
        try:
            yield
        finally:
            self._reentrant = None

    def step(self, model: nn.Module, batches: list[Inputs]) -> Step:
        reported, objective = torch.zeros(()), torch.zeros(())
        routers, statistics = step.routers_of(model), []
        for batch in batches:
            seen = self.run(model, batch)
            task = _squares(seen.output, batch) / len(batches)
            found = losses.balance_losses(seen.routings, self._balance)
            loss = task + losses.total_balance_loss(found, self._balance) / len(batches)
            loss.backward()
            reported, objective = reported + task.detach(), objective + loss.detach()
            statistics.append(step.router_statistics(routers, seen.routings, self._balance))
        step.update_routers(routers, step.summed_statistics(statistics), self._balance)
        return Step(reported, objective)

    def task(self, model: nn.Module, inputs: Inputs) -> Tensor:
        return _squares(self.output(model, inputs), inputs)

    def save_and_load(self, model: nn.Module, folder: Path) -> nn.Module:
        return _own_round_trip(model, self.fresh(seed=9), folder)


class DecoderSubject(OurSubject):
    """A decoder; a step is that of `moeworks train`."""

    kind = "moeworks decoder"

    def __init__(self, model: Decoder, name: str = "Decoder", balance: BalanceConfig | None = None) -> None:
        super().__init__(model, name, balance)
        self.config: ModelConfig = model.config
        self._origin = model.origin
        if not self.config.moe_layers:
            raise ConfigError(f"{name}: a dense model; it has no MoE layer to examine")
        self.claims = self._claims(model.config.router, model.config.capacity)
        train = TrainConfig(precision="float32", device="cpu", seq_len=min(16, self.config.max_seq_len))
        self._run_config = RunConfig(model=self.config, balance=self._balance, train=train)
        self.claims = replace(self.claims, step_wide_balance=not self._balance.switch_coef)

    def inputs(self, rows: int = 2, length: int = 12, seed: int = 0) -> Inputs:
        generator = torch.Generator().manual_seed(seed)
        length = min(length, self.config.max_seq_len)
        return Inputs(torch.randint(self.config.vocab_size, (rows, length), generator=generator))

    def fresh(self, seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return Decoder(self.config)

    def blocks(self, model: nn.Module) -> tuple[Block, ...]:
        # Those of MTP layers come last and have no part in a plain pass.
        return super().blocks(model)[: len(self.config.moe_layers)]

    def run(self, model: nn.Module, inputs: Inputs) -> Seen:
        types_BL = _types(self.config.router, inputs)
        made = model(inputs.values, valid_BL=inputs.valid_BL, token_types_BL=types_BL)
        return Seen(made.logits_BLV, made.routings)

    def replay(self, model: nn.Module, inputs: Inputs, routings: tuple[Routing, ...]) -> Tensor:
        forced, types_BL = Replay(routings, weights="recorded"), _types(self.config.router, inputs)
        options = {"valid_BL": inputs.valid_BL, "token_types_BL": types_BL}
        return model(inputs.values, **options, replay=forced).logits_BLV

    @contextmanager
    def recomputing(self, model: nn.Module, *, reentrant: bool) -> Generator[None]:
        if reentrant:
            raise Unavailable("the decoder recomputes without reentrance only")
        model.activation_checkpointing = True  # pyrefly: ignore
        try:
            yield
        finally:
            model.activation_checkpointing = False  # pyrefly: ignore

    def step(self, model: nn.Module, batches: list[Inputs]) -> Step:
        assert isinstance(model, Decoder)
        records = [_batch(batch, self.config.router) for batch in batches]
        routers = step.routers_of(model)
        result = step.accumulate_gradients(model, records, self._run_config, World(), routers)
        step.update_routers(routers, result.statistics, self._balance)
        added = sum(
            (getattr(self._balance, f"{name}_coef") * value for name, value in result.balance.items()),
            torch.zeros(()),
        )
        return Step(result.loss, result.loss + added)

    def balance_in_step(self, model: nn.Module, inputs: Inputs) -> Tensor | None:
        assert isinstance(model, Decoder)
        # On the step's random numbers, and with mixtures of attention, which a step balances too.
        (output,) = (
            model(batch.tokens_BL, valid_BL=batch.valid_BL, token_types_BL=batch.token_types_BL)
            for batch in step.micro_batches([_batch(inputs, self.config.router)], step.drawn_seed())
        )
        found = losses.balance_losses(step.balanced_routings(output, self._run_config), self._balance)
        return None if not found else torch.as_tensor(losses.total_balance_loss(found, self._balance))

    def task(self, model: nn.Module, inputs: Inputs) -> Tensor:
        assert isinstance(model, Decoder)
        if self.config.num_mtp_layers:
            raise Unavailable("its objective has a part of its MTP layers")
        return _cross_entropy(model, [_batch(inputs, self.config.router)])

    def save_and_load(self, model: nn.Module, folder: Path) -> nn.Module:
        assert isinstance(model, Decoder)
        model = _own_round_trip(model, self.fresh(seed=9), folder)
        assert isinstance(model, Decoder)
        model.origin = self._origin
        try:
            save(model, folder / "published")
        except ConfigError:  # a model that no published family can express
            return model
        return load(folder / "published", dtype=torch.float32)


def _usual_balance(module: nn.Module, biased: bool) -> BalanceConfig:
    """The default, without losses where no router can learn from them."""
    plain = BalanceConfig(bias_rule="sign" if biased else "none")
    if all(moe.config.choice.linear for moe in moe_modules(module)):
        return plain
    losses_off = {f.name: 0.0 for f in fields(plain) if f.name.endswith("_coef")}
    return replace(plain, **losses_off)  # pyrefly: ignore


def _block(path: str, moe: MoE) -> Block:
    experts = moe.experts
    count = moe.config.num_experts
    tensors = tuple(
        ExpertTensor(name, (parameter,), count)
        for name, parameter in experts.named_parameters()
        if name != "mixed_bias"
    )
    router = tuple(p for p in moe.router.parameters())
    return Block(path, count, router, expert_bias_of(moe.router), tensors)


def _claims(
    router: RouterConfig, capacity: CapacityConfig, balance: BalanceConfig, *, causal: bool
) -> Claims:
    plain = isinstance(router.choice, TopKChoice) and not router.pools
    coefs = [getattr(balance, f.name) for f in fields(balance) if f.name.endswith("_coef")]
    return Claims(
        choice=None if plain else f"{router.choice.kind} in pools" if router.pools else router.choice.kind,
        pooled=bool(router.pools),
        top_k=router.top_k,
        score=None if router.score == "sparsemixer" else router.score,
        renormalize=router.renormalize or _after_softmax(router),
        scale=router.routing_scale,
        num_groups=router.num_groups,
        top_k_groups=router.top_k_groups,
        group_score=router.group_score,
        weights_on=router.weights_on,
        capacity_factor=capacity.capacity_factor,
        min_capacity=capacity.min_capacity,
        drop_policy=capacity.drop_policy,
        drops_in_evaluation=capacity.eval_capacity_factor is not None,
        causal=causal and router.choice.looks_ahead(training=True) is None,
        chooses_by="logits" if router.score_order == "after_top_k" else "scores",
        bias_is_trained=router.selection_bias,
        balance_coef=max(coefs) or None,
    )


def _after_softmax(router: RouterConfig) -> bool:
    """A softmax over the chosen logits is a renormalised softmax over all."""
    return router.score == "softmax" and router.score_order == "after_top_k"


def _squares(output: Tensor, batch: Inputs) -> Tensor:
    """Mean square over valid tokens: a task for a layer without a vocabulary."""
    valid = torch.ones(output.shape[:2]) if batch.valid_BL is None else batch.valid_BL.to(output.dtype)
    return (output.square().mean(-1) * valid).sum() / valid.sum()


def _types(router: RouterConfig, inputs: Inputs) -> Tensor | None:
    """int64 [B, L], where experts are in pools: the types in turn by place, which rows have in common."""
    if not router.pools:
        return None
    rows, length = inputs.values.shape[:2]
    return (torch.arange(length) % len(router.pools)).expand(rows, length)


def _batch(inputs: Inputs, router: RouterConfig) -> Batch:
    tokens = inputs.values
    valid = torch.ones_like(tokens, dtype=torch.bool) if inputs.valid_BL is None else inputs.valid_BL
    zeros = torch.zeros_like(tokens)
    return Batch(tokens, tokens.roll(-1, dims=1), zeros, zeros, valid, _types(router, inputs))


def _cross_entropy(model: Decoder, batches: Sequence[Batch]) -> Tensor:
    """Mean nats over the valid tokens of all micro-batches, from the logits, on a step's random numbers."""
    total, tokens = torch.zeros(()), 0
    for batch in step.micro_batches(batches, step.drawn_seed()):
        options = {"valid_BL": batch.valid_BL, "token_types_BL": batch.token_types_BL}
        logits_BLV = model(batch.tokens_BL, **options).logits_BLV.float()
        picked = logits_BLV.log_softmax(-1).gather(-1, batch.targets_BL.unsqueeze(-1)).squeeze(-1)
        total = total - (picked * batch.valid_BL).sum()
        tokens += int(batch.valid_BL.sum())
    return total / tokens


def _own_round_trip(model: nn.Module, empty: nn.Module, folder: Path) -> nn.Module:
    made = write_checkpoint(folder / "step-00000001", {"model": model.state_dict()}, {})
    load_weights(empty, read_checkpoint(made).tensors["model"], str(made))
    return empty.eval()
