"""Planted bugs in balance losses, the bias update, the training step and checkpoints."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from healthy import BIASED, decoder_subject
from mutants import Patch, mutant
from torch import Tensor

from moeworks import BalanceConfig, pretrained
from moeworks.doctor.ours import ASKED
from moeworks.layers import router
from moeworks.layers.moe import MoE
from moeworks.ops import losses
from moeworks.ops.routing import Routing, count_assignments
from moeworks.train import step

PER_BATCH = BalanceConfig(switch_coef=0.1, global_batch_coef=0)


def both(patch: Patch, name: str, value: Any) -> None:
    """Where it is defined and where the training step has imported it."""
    patch.setattr(losses, name, value)
    patch.setattr(step, name, value)


@mutant(9, "balance-per-layer", decoder_subject)
def layers_thrown_together(patch: Patch) -> None:
    plain = losses.balance_losses

    def pooled(routings: Sequence[Routing], config: BalanceConfig, totals: Any = None) -> dict[str, Tensor]:
        tensors = [torch.cat(parts) for parts in zip(*(r.tensors() for r in routings), strict=True)]
        return plain([routings[0].with_tensors(tuple(tensors))], config)

    both(patch, "balance_losses", pooled)


@mutant(10, "balance-on")
def off_unless_asked_for(patch: Patch) -> None:
    plain = losses.balance_losses
    both(
        patch,
        "balance_losses",
        lambda routings, config, totals=None: plain(routings, config, totals) if config is ASKED else {},
    )


@mutant(11, "balance-definition")
def softmax_taken_twice(patch: Patch) -> None:
    patch.setattr(losses, "_normalised_probs", lambda made: made.router_probs_TE.softmax(dim=1))


@mutant(12, "balance-gradient")
def a_constant(patch: Patch) -> None:
    plain = losses.mean_probs
    patch.setattr(losses, "mean_probs", lambda made, step=None: plain(made, step).detach())


@mutant(12, "balance-definition", **BIASED)
def scores_that_do_not_sum_to_1(patch: Patch) -> None:
    patch.setattr(losses, "_normalised_probs", lambda made: made.router_probs_TE)


@mutant(12, "balance-definition")
def logits_in_the_place_of_probabilities(patch: Patch) -> None:
    patch.setattr(losses, "_normalised_probs", lambda made: made.router_logits_TE)


@mutant(13, "balance-definition", capacity_factor=0.5)
def load_after_dropping(patch: Patch) -> None:
    def counts(made: Routing) -> Tensor:
        kept = made.expert_ids_TK[made.kept_TK]
        return count_assignments(kept.unsqueeze(1), made.num_experts)

    patch.setattr(losses, "load_counts", counts)


@mutant(13, "balance-definition", **BIASED)
def load_of_the_biased_choice(patch: Patch) -> None:
    patch.setattr(losses, "load_counts", lambda made: made.tokens_per_expert())


@mutant(14, "balance-padding")
def padding_in_the_loss(patch: Patch) -> None:
    patch.setattr(losses, "_valid", lambda made: torch.ones_like(made.router_probs_TE[:, 0]))


@mutant(14, "bias-padding", decoder_subject, **BIASED)
def padding_in_the_counts(patch: Patch) -> None:
    patch.setattr(
        Routing, "tokens_per_expert", lambda self: count_assignments(self.expert_ids_TK, self.num_experts)
    )


@mutant(15, "balance-definition")
def a_batch_taken_for_one_sequence(patch: Patch) -> None:
    plain = losses.sequence_loss
    patch.setattr(losses, "sequence_loss", lambda made: plain(replace(made, sequence_ids_T=None)))


@mutant(16, "micro-batches", decoder_subject, balance=PER_BATCH)
def as_often_as_there_are_micro_batches(patch: Patch) -> None:
    patch.setattr(step, "STEP_WIDE", frozenset({"switch"}))


@mutant(16, "objective", decoder_subject)
def computed_and_thrown_away(patch: Patch) -> None:
    patch.setattr(step, "total_balance_loss", lambda found, config: 0.0)


@mutant(17, "recompute", decoder_subject, balance=PER_BATCH)
def losses_recorded_again_by_recomputation(patch: Patch) -> None:
    plain_pass, plain_losses, recorded = MoE.forward, step.balance_losses, []

    def forward(self: MoE, x: Tensor, **rest: Any) -> tuple[Tensor, Routing]:
        if torch.is_grad_enabled():
            recorded.append(self)
        return plain_pass(self, x, **rest)

    def balance(routings: Sequence[Routing], config: BalanceConfig, totals: Any = None) -> dict[str, Tensor]:
        # Those that the last step's recomputation recorded are still there.
        found = {n: v * len(recorded) / len(routings) for n, v in plain_losses(routings, config).items()}
        recorded.clear()
        return found

    def twice(*args: Any, **rest: Any) -> step.StepLosses:
        plain_step(*args, **rest)
        return plain_step(*args, **rest)

    plain_step = step.accumulate_gradients
    patch.setattr(MoE, "forward", forward)
    patch.setattr(step, "balance_losses", balance)
    patch.setattr(step, "accumulate_gradients", twice)


@mutant(18, "stateless")
def a_list_that_is_never_cleared(patch: Patch) -> None:
    plain, recorded = losses.switch_loss, []

    def loss(made: Routing, totals: Any = None) -> Tensor:
        recorded.append(plain(made, totals))
        return torch.stack(recorded).mean()

    patch.setattr(losses, "switch_loss", loss)


@mutant(19, "balance-definition")
def mean_in_the_place_of_the_sum(patch: Patch) -> None:
    """mean(f * P): smaller by the square of the number of experts, as in fairscale."""
    plain = losses.switch_loss
    patch.setattr(losses, "switch_loss", lambda made, s=None: plain(made, s) / made.num_experts**2)


@mutant(19, "balance-definition")
def shares_that_sum_to_k(patch: Patch) -> None:
    plain = losses.switch_loss
    patch.setattr(losses, "switch_loss", lambda made, s=None: plain(made, s) * made.top_k)


@mutant(20, "reported-loss", decoder_subject)
def reported_with_the_balance_loss(patch: Patch) -> None:
    plain = step._detached

    def detached(made: Any, entropy: Tensor, balance: dict[str, Tensor], *rest: Any) -> step.StepLosses:
        return plain(made, entropy + 0.01 * sum(balance.values()), balance, *rest)

    patch.setattr(step, "_detached", detached)


@mutant(22, "bias-evaluation", decoder_subject, **BIASED)
def evaluation_in_the_counts(patch: Patch) -> None:
    seen: dict[int, Tensor] = {}
    plain = MoE.forward

    def forward(self: MoE, x: Tensor, **rest: Any) -> tuple[Tensor, Routing]:
        y, made = plain(self, x, **rest)
        seen[id(self.router)] = seen.get(id(self.router), 0) + made.tokens_per_expert()
        return y, made

    def update(routers: Sequence[router.Router], statistics: Any, config: BalanceConfig) -> None:
        for each in routers:
            bias = each.expert_bias
            bias.copy_(losses.updated_expert_bias(bias, seen.pop(id(each)), config))

    patch.setattr(MoE, "forward", forward)
    patch.setattr(step, "update_routers", update)


@mutant(23, "bias-moves", decoder_subject, **BIASED)
def only_the_first_layer_is_updated(patch: Patch) -> None:
    plain = router.updated_expert_bias
    done: list[int] = []

    def update(bias: Tensor, counts: Tensor, config: BalanceConfig) -> Tensor:
        done.append(1)
        return plain(bias, counts, config) if len(done) % 2 else bias

    patch.setattr(router, "updated_expert_bias", update)


@mutant(23, "bias-moves", **BIASED)
def a_bias_that_nobody_moves(patch: Patch) -> None:
    patch.setattr(step, "update_routers", lambda *_: None)


@mutant(23, "bias-moves", **BIASED)
def moved_towards_the_load(patch: Patch) -> None:
    plain = router.updated_expert_bias
    patch.setattr(router, "updated_expert_bias", lambda b, c, config: 2 * b - plain(b, c, config))


@mutant(24, "bias-per-step", decoder_subject, **BIASED)
def moved_by_every_micro_batch(patch: Patch) -> None:
    plain = MoE.forward

    def forward(self: MoE, x: Tensor, **rest: Any) -> tuple[Tensor, Routing]:
        y, made = plain(self, x, **rest)
        if self.training and torch.is_grad_enabled():
            config = BalanceConfig(bias_rule="sign")
            bias = self.router.expert_bias
            bias.copy_(losses.updated_expert_bias(bias, made.tokens_per_expert(), config))
        return y, made

    patch.setattr(MoE, "forward", forward)
    patch.setattr(step, "update_routers", lambda *_: None)


@mutant(28, "micro-batches", decoder_subject)
def the_last_micro_batch_is_lost(patch: Patch) -> None:
    plain = step.accumulate_gradients

    def accumulate(model: Any, batches: Any, *rest: Any) -> step.StepLosses:
        return plain(model, batches[:-1] or batches, *rest)

    patch.setattr(step, "accumulate_gradients", accumulate)


@mutant(40, "round-trip", decoder_subject)
def experts_in_the_order_of_strings(patch: Patch) -> None:
    plain = pretrained.fill

    def fill(weights: Any, config: Any, state: dict[str, Tensor], *rest: Any) -> None:
        plain(weights, config, state, *rest)
        for name, tensor in state.items():
            if ".experts." in name:
                tensor.copy_(tensor[sorted(range(len(tensor)), key=str)].clone())

    patch.setattr(pretrained, "fill", fill)


@mutant(41, "round-trip", decoder_subject)
def experts_left_at_their_random_start(patch: Patch) -> None:
    plain = pretrained.fill

    def fill(weights: Any, config: Any, state: dict[str, Tensor], *rest: Any) -> None:
        plain(weights, config, state, *rest)
        for name, tensor in state.items():
            if name.endswith("experts.down_proj"):
                torch.nn.init.normal_(tensor, std=0.1)

    patch.setattr(pretrained, "fill", fill)
