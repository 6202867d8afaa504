"""Routers from configs and of one's own: what they are handed, what they may leave empty, what is refused."""

from dataclasses import replace

import pytest
import torch
from native_cases import needs_native
from random_layers import assert_same, gradients, make_config, random_moe
from torch import nn

from moeworks import BalanceConfig, MoE, Routing, balance_losses, total_balance_loss
from moeworks.config.choices import CustomChoice
from moeworks.errors import ConfigError
from moeworks.layers.router import RouterModule
from moeworks.layers.routers import build_router, register_router
from moeworks.ops.routing import RoutingContext
from moeworks.ops.scoring import choose_top_k, routing_of, score_logits

NAMES = ("switch", "sequence", "device", "communication", "entropy", "importance", "z")
LOSSES = BalanceConfig(**{f"{name}_coef": 1.0 for name in NAMES}, num_devices=2)


class Nearest(nn.Module):
    """The experts whose centres lie closest."""

    def __init__(self, config, d_model: int) -> None:
        super().__init__()
        self.config = config
        self.centres = nn.Parameter(torch.randn(config.num_routes, d_model))

    def forward(self, x_TD, context):
        distance_TE = (x_TD[:, None] - self.centres.to(x_TD.dtype)).square().sum(-1)
        return choose_top_k(score_logits(-distance_TE, self.config), context)


def some_empty(config):
    """A function that gives token t of a batch t modulo K + 1 of its best experts."""

    def route(x_TD, context: RoutingContext) -> Routing:
        scores = score_logits(x_TD[:, : config.num_routes], config)
        ids_TK = choose_top_k(scores, context).expert_ids_TK
        count_T1 = (torch.arange(len(ids_TK)) % (config.slots + 1))[:, None]
        empty_TK = torch.arange(config.slots) >= count_T1
        return routing_of(scores, ids_TK.masked_fill(empty_TK, config.num_routes), context, variable=True)

    return route


def test_a_class_of_ones_own_is_a_router_like_any_other():
    config = make_config()
    torch.manual_seed(0)
    moe = MoE(config, router=Nearest(config, 8)).double()
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    valid = torch.ones(2, 5, dtype=torch.bool)
    valid[1, 3:] = False
    y, routing = moe(x, valid=valid)
    losses = balance_losses([routing], LOSSES)
    (y.sum() + total_balance_loss(losses, LOSSES)).backward()
    assert moe.router.route.centres.grad.abs().sum() > 0
    assert routing.tokens_per_expert().sum() == 2 * 8
    assert routing.sequence_ids_T.tolist() == [0] * 5 + [1] * 5


def test_a_registered_name_makes_it_a_config():
    register_router("nearest", Nearest)
    config = make_config(choice=CustomChoice(name="nearest"))
    first, second = MoE(config).router, MoE(config).router
    assert isinstance(first.route, Nearest)
    assert first.route is not second.route
    with pytest.raises(ConfigError, match=r"router.choice.name = 'nearer': must be registered .* 'nearest'"):
        build_router(make_config(choice=CustomChoice(name="nearer")), 8)


def test_what_a_router_is_handed():
    seen = []

    def route(x_TD, context):
        seen.append((x_TD.dtype, context))
        return choose_top_k(score_logits(x_TD[:, :6], make_config()), context)

    moe = MoE(make_config(), router=route).bfloat16()
    ids, types = torch.arange(10).view(2, 5), torch.ones(2, 5, dtype=torch.int64)
    moe(torch.randn(2, 5, 8, dtype=torch.bfloat16), token_ids=ids, token_types=types)
    ((dtype, context),) = seen
    assert dtype == torch.float32
    assert context.token_ids_T.tolist() == list(range(10))
    assert context.token_types_T.tolist() == [1] * 10
    assert context.positions_T.tolist() == [0, 1, 2, 3, 4] * 2
    assert context.sequence_ids_T.tolist() == [0] * 5 + [1] * 5
    with pytest.raises(ConfigError, match=r"token_ids = \(5, 2\): must have the leading dimensions"):
        moe(torch.randn(2, 5, 8, dtype=torch.bfloat16), token_ids=ids.t())


def test_what_it_must_return():
    x = torch.randn(3, 8)
    config = make_config()
    good = choose_top_k(score_logits(torch.randn(3, 6), config), RoutingContext())
    with pytest.raises(ConfigError, match="must return a Routing"):
        MoE(config, router=lambda x_TD, context: good.expert_ids_TK)(x)
    with pytest.raises(ConfigError, match=r"\(tokens, slots\) = \(3, 3\)"):
        MoE(replace(config, top_k=3), router=lambda x_TD, context: good)(x)
    with pytest.raises(ConfigError, match="for each of the 7 experts"):
        MoE(replace(config, num_experts=7), router=lambda x_TD, context: good)(x)


# Empty slots.


@pytest.mark.parametrize("backend", ["reference", "sorted", pytest.param("native", marks=needs_native)])
@pytest.mark.parametrize("options", [{}, dict(num_identity_experts=2), dict(expert_linear_bias=True)])
def test_every_backend_skips_empty_slots(backend, options):
    config = make_config(top_k=3, **options)
    router = some_empty(config)
    want_moe = random_moe(config)
    want_moe.router = MoE(config, router=router).router
    moe = MoE(config, backend=backend, router=router).double()
    moe.load_state_dict(want_moe.state_dict())
    if backend == "native":
        moe, want_moe = moe.float(), want_moe.float()
    dtype = torch.float32 if backend == "native" else torch.float64
    x = torch.randn(9, 8, dtype=dtype, requires_grad=True)
    y, routing = moe(x)
    assert routing.kept_TK.sum(1).tolist() == [t % 4 for t in range(9)]
    routing = moe(x)[1]  # with a graph of its own
    per_token = []
    for token in range(9):
        total = torch.zeros(8, dtype=dtype)
        for slot in range(token % 4):
            expert = int(routing.expert_ids_TK[token, slot])
            weight = routing.routing_weights_TK[token, slot]
            one = replace(
                routing,
                expert_ids_TK=torch.tensor([[expert]]),
                routing_weights_TK=weight.view(1, 1),
                router_logits_TE=routing.router_logits_TE[:1],
                router_probs_TE=routing.router_probs_TE[:1],
                kept_TK=None,
                sequence_ids_T=None,
                variable=False,
            )
            if expert < config.num_experts:
                total = total + want_moe.experts(x[token : token + 1], one)[0]
            else:
                total = total + weight * x[token]
        per_token.append(total)
    want = torch.stack(per_token)
    tolerance = 1e-5 if backend == "native" else 1e-12
    torch.testing.assert_close(y, want, rtol=tolerance, atol=tolerance)
    got_grads = gradients(y.square().sum(), moe, x)
    assert_same(got_grads, gradients(want.square().sum(), want_moe, x), 10 * tolerance)


def test_empty_slots_count_nowhere():
    config = make_config(top_k=3)
    moe = MoE(config, router=some_empty(config)).double()
    x = torch.randn(2, 4, 8, dtype=torch.float64)
    valid = torch.ones(2, 4, dtype=torch.bool)
    valid[1, 3] = False  # the token that fills all three slots
    _, routing = moe(x, valid=valid)
    assert routing.num_assignments() == 2 * (0 + 1 + 2 + 3) - 3
    assert routing.tokens_per_expert().sum() == 9
    assert routing.dropped_fraction() == 0
    assert (routing.routing_weights_TK[~routing.filled_TK] == 0).all()
    torch.testing.assert_close(
        routing.routing_weights_TK.sum(1), torch.tensor([0.0, 1, 1, 1] * 2, dtype=torch.float64)
    )


def test_capacity_drops_experts_and_no_empty_slots():
    config = make_config(top_k=3, capacity_factor=0.5)
    moe = MoE(config, router=some_empty(config)).double()
    _, routing = moe(torch.randn(8, 8, dtype=torch.float64).abs())
    assigned = int(routing.num_assignments())
    kept = int(routing.kept_TK.sum())
    assert assigned == 12
    capacity = 1  # ceil(0.5 * 12 / 6)
    assert kept == sum(min(int(c), capacity) for c in routing.tokens_per_expert())
    assert routing.dropped_fraction().item() == pytest.approx((assigned - kept) / assigned)
    assert not (routing.kept_TK & ~routing.filled_TK).any()


def test_losses_of_a_variable_number_are_1_at_balance():
    config = make_config(num_experts=4, top_k=2)
    ids = torch.tensor([[0, 1], [2, 4], [3, 4], [4, 4]])
    scores = score_logits(torch.zeros(4, 4, dtype=torch.float64, requires_grad=True), config)
    routing = routing_of(scores, ids, RoutingContext(), variable=True)
    for name, loss in balance_losses([routing], replace(LOSSES, z_coef=0.0)).items():
        assert loss.item() == pytest.approx(1.0), name


# State.


class Counting(RouterModule):
    """Counts the assignments that it has seen, once per step."""

    def __init__(self, config) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("seen", torch.zeros(config.num_routes))

    def forward(self, x_TD, context):
        return choose_top_k(score_logits(x_TD[:, : self.config.num_routes].float(), self.config), context)

    def statistics(self, routing, balance):
        return {"seen": routing.tokens_per_expert()}

    def update(self, sums, balance):
        self.seen += sums["seen"]


def test_state_stays_float32_and_moves_by_update_alone():
    router = Counting(make_config())
    moe = MoE(make_config(), router=router).bfloat16()
    assert moe.router is router
    assert router.seen.dtype == torch.float32
    for _ in range(3):
        _, routing = moe(torch.randn(5, 8, dtype=torch.bfloat16))
    assert router.seen.sum() == 0
    router.update(router.statistics(routing, BalanceConfig()), BalanceConfig())
    assert router.seen.sum() == 10
