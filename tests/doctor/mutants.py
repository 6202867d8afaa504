"""Planted bugs in routing, experts and dispatch: each is a patch of moeworks itself.

A mutant names the pitfall that it plants, the check that must find it, and the subject that it is planted in.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from healthy import BIASED, GROUPED, layer_subject
from torch import Tensor, nn

from moeworks.config.model import CapacityConfig, RouterConfig
from moeworks.doctor.subject import Subject
from moeworks.layers import experts, moe, router
from moeworks.ops import dispatch, scoring
from moeworks.ops.experts import ExpertWeights
from moeworks.ops.routing import Routing, RoutingContext
from moeworks.ops.scoring import Scores

Patch = pytest.MonkeyPatch


@dataclass(frozen=True)
class Mutant:
    pitfall: int
    check: str
    plant: Callable[[Patch], None]
    subject: Callable[[], Subject]


MUTANTS: dict[str, Mutant] = {}


def mutant(
    pitfall: int, check: str, make: Callable[..., Subject] = layer_subject, **options: Any
) -> Callable[[Callable[[Patch], None]], None]:
    def keep(plant: Callable[[Patch], None]) -> None:
        MUTANTS[plant.__name__] = Mutant(pitfall, check, plant, lambda: make(**options))

    return keep


# Choice and weights.


@mutant(1, "router-gradient", top_k=1, renormalize=False)
def softmax_after_top_1(patch: Patch) -> None:
    patch.setattr(
        scoring,
        "routing_weights",
        lambda logits, probs, ids, config, **_: logits.gather(1, ids).softmax(-1),
    )


@mutant(1, "router-gradient", top_k=1, renormalize=False, **BIASED)
def renormalised_top_1(patch: Patch) -> None:
    def weights(logits: Tensor, probs: Tensor, ids: Tensor, config: RouterConfig, **_: Any) -> Tensor:
        chosen = probs.gather(1, ids)
        return chosen / chosen.sum(-1, keepdim=True)

    patch.setattr(scoring, "routing_weights", weights)


@mutant(2, "bias-not-in-weights", **BIASED)
def bias_in_the_weights(patch: Patch) -> None:
    plain = router.choose_top_k

    def choose(scores: Scores, context: RoutingContext) -> Routing:
        made = plain(scores, context)
        chosen = (made.router_probs_TE + scores.expert_bias_E).gather(1, made.expert_ids_TK)
        return replace(made, routing_weights_TK=chosen / chosen.sum(-1, keepdim=True))

    patch.setattr(router, "choose_top_k", choose)


@mutant(2, "underflow", **BIASED)
def renormalising_0_by_0(patch: Patch) -> None:
    def weights(logits: Tensor, probs: Tensor, ids: Tensor, config: RouterConfig, **_: Any) -> Tensor:
        chosen = probs.gather(1, ids)
        return chosen / chosen.sum(-1, keepdim=True)

    patch.setattr(scoring, "routing_weights", weights)


def masked_with_zero(choice_TE: Tensor, config: RouterConfig) -> Tensor:
    tokens = choice_TE.shape[0]
    grouped = choice_TE.view(tokens, config.num_groups, -1)
    best = grouped.topk(2, dim=-1).values.sum(-1).topk(config.top_k_groups, dim=-1).indices
    kept = torch.zeros(tokens, config.num_groups, dtype=torch.bool).scatter(1, best, True)
    return grouped.masked_fill(~kept.unsqueeze(-1), 0.0).view_as(choice_TE)


@mutant(3, "bias-shift", **BIASED, **GROUPED)
def losing_groups_masked_with_0(patch: Patch) -> None:
    patch.setattr(scoring, "mask_groups", masked_with_zero)


@mutant(4, "selection", **BIASED, **GROUPED)
def groups_by_their_best_expert(patch: Patch) -> None:
    plain = scoring.mask_groups
    patch.setattr(scoring, "mask_groups", lambda c, config: plain(c, replace(config, group_score="max")))


@mutant(5, "bias-float32", **BIASED)
def bias_cast_with_the_model(patch: Patch) -> None:
    patch.delattr(router.ExactBuffers, "_apply")


@mutant(6, "router-float32")
def router_in_the_dtype_of_the_model(patch: Patch) -> None:
    patch.setattr(router, "at_least_float32", lambda x: x)


@mutant(6, "dtype", input_jitter=0.1)
def jitter_that_upcasts(patch: Patch) -> None:
    plain = moe.MoE.forward

    def forward(self: moe.MoE, x: Tensor, **rest: Any) -> tuple[Tensor, Routing]:
        y, made = plain(self, x, **rest)
        return (y * torch.ones(1, dtype=torch.float32) if self.training else y), made

    patch.setattr(moe.MoE, "forward", forward)


@mutant(7, "bias-selects", **BIASED)
def bias_left_out_of_the_choice(patch: Patch) -> None:
    plain = router.choose_top_k
    patch.setattr(
        router, "choose_top_k", lambda scores, context: plain(replace(scores, expert_bias_E=None), context)
    )


@mutant(7, "weight-zero", expert_linear_bias=True)
def output_bias_without_its_weight(patch: Patch) -> None:
    plain = experts.Experts.forward

    def forward(self: experts.Experts, x: Tensor, made: Routing, shared: Any = None) -> Tensor:
        share = (made.routing_weights_TK.unsqueeze(-1) * self.down_bias[made.expert_ids_TK]).sum(1)
        return plain(self, x, made, shared) - share + self.down_bias[made.expert_ids_TK].sum(1)

    patch.setattr(experts.Experts, "forward", forward)


@mutant(8, "ties")
def ties_left_to_chance(patch: Patch) -> None:
    def top_k(values: Tensor, k: int) -> Tensor:
        return (values + 1e-6 * torch.rand_like(values)).topk(k, dim=-1).indices

    patch.setattr(scoring, "stable_top_k", top_k)


@mutant(26, "router-gradient")
def weights_cut_off_from_the_router(patch: Patch) -> None:
    plain = scoring.routing_weights
    patch.setattr(scoring, "routing_weights", lambda *args, **rest: plain(*args, **rest).detach())


# Dispatch, capacity and experts.


def all_experts_times_0(x: Tensor, made: Routing, weights: ExpertWeights, *_: Any) -> Tensor:
    gate, up = torch.einsum("td,erd->ter", x, weights.up_proj).chunk(2, dim=-1)
    each = torch.einsum("tef,edf->ted", F.silu(gate) * up, weights.down_proj)
    dense = torch.zeros(len(x), weights.num_experts).to(each)
    dense = dense.scatter(1, made.expert_ids_TK, made.routing_weights_TK.to(each))
    return (each * dense.unsqueeze(-1)).sum(1)


@mutant(29, "experts-idle")
def all_experts_computed_and_multiplied_by_0(patch: Patch) -> None:
    patch.setattr(experts, "run_experts", all_experts_times_0)


@mutant(29, "experts-learn")
def experts_behind_the_first_two_never_run(patch: Patch) -> None:
    """one_hot of a 0/1 mask, as in NLLB-MoE."""
    plain = experts.run_experts

    def run(x: Tensor, made: Routing, *rest: Any) -> Tensor:
        return plain(x, replace(made, expert_ids_TK=made.expert_ids_TK.clamp(max=1)), *rest)

    patch.setattr(experts, "run_experts", run)


@mutant(36, "experts-work")
def experts_numbered_from_the_wrong_end(patch: Patch) -> None:
    """The offset of a rank taken from num_experts in the place of the parallel size."""
    plain = experts.run_experts

    def run(x: Tensor, made: Routing, *rest: Any) -> Tensor:
        return plain(x, replace(made, expert_ids_TK=11 - made.expert_ids_TK), *rest)

    patch.setattr(experts, "run_experts", run)


@mutant(31, "capacity", capacity_factor=0.8)
def capacity_without_k(patch: Patch) -> None:
    plain = dispatch._capacity
    patch.setattr(dispatch, "_capacity", lambda made, factor, least: plain(made, factor / made.top_k, least))


@mutant(31, "one-token", capacity_factor=1.0, min_capacity=4)
def capacity_above_the_tokens_crashes(patch: Patch) -> None:
    plain = moe.apply_capacity

    def apply(made: Routing, config: CapacityConfig, *, training: bool) -> Routing:
        made.router_probs_TE.topk(config.min_capacity, dim=0)
        return plain(made, config, training=training)

    patch.setattr(moe, "apply_capacity", apply)


@mutant(32, "capacity", capacity_factor=0.8, drop_policy="probability")
def drops_by_logits_times_mask(patch: Patch) -> None:
    """Unchosen experts' 0 beats the chosen ones' negative logits."""

    def rank(made: Routing, policy: str) -> Tensor:
        chosen = torch.zeros_like(made.router_logits_TE).scatter(1, made.expert_ids_TK, 1.0)
        values = (made.router_logits_TE - 5) * chosen
        order = values.argsort(dim=0, descending=True, stable=True).argsort(dim=0)
        return order.gather(1, made.expert_ids_TK)

    patch.setattr(dispatch, "_rank_in_expert", rank)


@mutant(35, "eval-repeats")
def noise_in_evaluation(patch: Patch) -> None:
    plain = router.score_logits

    def noisy(logits: Tensor, *rest: Any, **options: Any) -> Scores:
        return plain(logits + 0.3 * torch.randn_like(logits), *rest, **options)

    patch.setattr(router, "score_logits", noisy)


@mutant(35, "experts-differ")
def experts_that_start_as_copies(patch: Patch) -> None:
    plain = experts.Experts.reset_parameters

    def reset(self: experts.Experts) -> None:
        plain(self)
        for parameter in self.parameters():
            with torch.no_grad():
                parameter.copy_(parameter[:1].clone().expand_as(parameter))

    patch.setattr(experts.Experts, "reset_parameters", reset)


@mutant(37, "padding", capacity_factor=1.0)
def padding_takes_capacity(patch: Patch) -> None:
    """Padding first, as where rows are padded on the left."""
    plain = moe.apply_capacity

    def apply(made: Routing, config: CapacityConfig, *, training: bool) -> Routing:
        return plain(replace(made, valid_T=None), config, training=training)

    patch.setattr(moe, "apply_capacity", apply)


@mutant(38, "causality", renormalize=False)
def experts_that_choose_their_tokens(patch: Patch) -> None:
    plain = router.choose_top_k

    def choose(scores: Scores, context: RoutingContext) -> Routing:
        made = plain(scores, context)
        best = made.router_probs_TE.topk(max(len(scores.logits_TE) // 6, 1), dim=0).indices
        taken = torch.zeros_like(scores.logits_TE).scatter(0, best, 1.0).gather(1, made.expert_ids_TK)
        return replace(made, routing_weights_TK=made.routing_weights_TK * taken)

    patch.setattr(router, "choose_top_k", choose)


@mutant(39, "recompute", **BIASED)
def recomputation_decides_anew(patch: Patch) -> None:
    plain = router.Router.forward

    def forward(self: router.Router, x: Tensor, *rest: Any) -> Routing:
        self.passes = getattr(self, "passes", 0) + 1
        noisy = self.training and self.passes % 2 == 0
        return plain(self, x + 0.5 * torch.randn_like(x) if noisy else x, *rest)

    patch.setattr(router.Router, "forward", forward)


@mutant(22, "eval-changes-nothing")
def a_counter_that_evaluation_moves(patch: Patch) -> None:
    count_in_forward(patch)


@mutant(21, "recompute")
def a_counter_that_recomputation_moves(patch: Patch) -> None:
    count_in_forward(patch, training_only=True)


def count_in_forward(patch: Patch, *, training_only: bool = False) -> None:
    """Counts of tokens in a buffer of the router, as many libraries keep them."""
    plain, build = router.Router.forward, router.Router.__init__

    def init(self: router.Router, config: RouterConfig, width: int, *rest: Any) -> None:
        build(self, config, width, *rest)
        self.register_buffer("counted", torch.zeros(config.num_routes), persistent=False)

    def forward(self: router.Router, x: Tensor, *rest: Any) -> Routing:
        made = plain(self, x, *rest)
        if torch.is_grad_enabled() or not training_only:
            self.counted += made.tokens_per_expert()
        return made

    patch.setattr(router.Router, "__init__", init)
    patch.setattr(router.Router, "forward", forward)


@mutant(42, "adapters")
def adapters_that_the_forward_pass_does_not_read(patch: Patch) -> None:
    plain = experts.Experts._inputs

    def inputs(self: experts.Experts, x: Tensor) -> tuple[Tensor, ExpertWeights]:
        x, made = plain(self, x)
        if hasattr(self, "parametrizations"):
            raw: nn.Module = self.parametrizations
            made = replace(made, up_proj=raw.gate_up_proj.original, down_proj=raw.down_proj.original)
        return x, made

    patch.setattr(experts.Experts, "_inputs", inputs)
