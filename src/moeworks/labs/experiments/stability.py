"""Lab 11: the router's precision and the z-loss, in bfloat16 at high learning rates."""

from moeworks.labs.curves import loss_against
from moeworks.labs.judging import Judgement, all_of, below
from moeworks.labs.lab import Arm, Budget, Column, Lab
from moeworks.labs.results import Results

_USUAL, _HIGH = 0.015, 0.075
_MUON = 10 / 3
"""Muon's learning rate as a multiple of AdamW's."""


def _arm(name: str, words: str, lr: float, **more: object) -> Arm:
    return Arm(
        name=name,
        words=words,
        overrides={
            "optimizer.lr": lr,
            "optimizer.muon_lr": _MUON * lr,
            "balance.z_coef": more.pop("z", 0.0),
            "train.precision": more.pop("precision", "bfloat16"),
        },
        router_in_bfloat16=bool(more.pop("low", False)),
    )


def _judge(results: Results) -> Judgement:
    return all_of(
        [
            below("float32 router: bits per byte less those of a bfloat16 router < 0",
                  results.difference("high, float32 router", "high, bfloat16 router")),
            below("z-loss: bits per byte less those without < 0",
                  results.difference("high, float32 router, z-loss", "high, float32 router")),
        ],
        note="Seeds that diverged count in the table; a difference is over the seeds that finished in both.",
    )  # fmt: skip


LAB = Lab(
    name="stability",
    claim="In bfloat16 at a high learning rate, a router in float32 and a z-loss make training stable and the"
    " loss lower.",
    source="Fedus et al. 2021 (Switch), section 2.4; Zoph et al. 2022 (ST-MoE), section 3",
    question="Held-out loss and divergence under bfloat16 autocast at five times the usual learning rate,"
    " with the router in float32 or bfloat16, with and without z-loss of 0.001.",
    baseline="high, float32 router",
    setting={"model.router.num_experts": 32},
    arms=(
        _arm("usual", f"float32, learning rate {_USUAL}", _USUAL, precision="float32"),
        _arm("high, all float32", f"float32, learning rate {_HIGH}", _HIGH, precision="float32"),
        _arm("high, float32 router", f"bfloat16, float32 router, {_HIGH}", _HIGH),
        _arm("high, float32 router, z-loss", "the same with z-loss", _HIGH, z=1e-3),
        _arm("high, bfloat16 router", f"bfloat16, bfloat16 router, {_HIGH}", _HIGH, low=True),
        _arm("high, bfloat16 router, z-loss", "the same with z-loss", _HIGH, low=True, z=1e-3),
    ),
    full=Budget(steps=350, seeds=3),
    columns=(Column(metric="diverged", title="diverged"), Column(metric="max_vio", title="MaxVio")),
    figures=(loss_against("tokens", "Loss over training", "training tokens"),),
    judge=_judge,
)
