"""Lab 2: what happens without balancing, and what each way of balancing costs."""

from moeworks.labs.curves import load_film, load_over_training, metric_figure
from moeworks.labs.judging import Judgement, above, all_of, below
from moeworks.labs.lab import Arm, Budget, Column, Lab
from moeworks.labs.results import Results

MARGIN = 0.01
"""Bits per byte that a balanced model may lose and still count as no worse."""


def _off(**on: float | str) -> dict[str, float | str]:
    return {"balance.global_batch_coef": 0.0, **{f"balance.{name}": value for name, value in on.items()}}


def _bias(rate: float, score: str) -> dict[str, object]:
    return {
        **_off(bias_rule="sign", bias_rate=rate),
        "model.router.selection_bias": True,
        "model.router.score": score,
    }


def _judge(results: Results) -> Judgement:
    gap = results.metric_difference
    return all_of(
        [
            above("without balancing, share of dead experts > 0.05", results.metric("none", "dead"), 0.05),
            above("MaxVio without balancing less that of switch-0.01 > 0.5",
                  gap("none", "switch-0.01", "max_vio"), 0.5),
            below("switch-0.01: share of dead experts < 0.05", results.metric("switch-0.01", "dead"), 0.05),
            below("loss-free bias: share of dead experts < 0.05", results.metric("bias", "dead"), 0.05),
            below(f"switch-0.01: bits per byte less those without balancing < {MARGIN}",
                  results.difference("switch-0.01"), MARGIN),
            above("switch-1: bits per byte less those of switch-0.01 > 0",
                  results.difference("switch-1", "switch-0.01")),
        ]
    )  # fmt: skip


LAB = Lab(
    name="balance",
    claim="Without balancing some experts die; a small balance loss or the loss-free bias keeps all of them"
    " at work at no cost in loss, and too strong a balance loss costs.",
    source="Shazeer et al. 2017, section 4; Fedus et al. 2021 (Switch), section 2.2; Wang et al. 2024",
    question="Dead experts (under 1 % of the balanced share), MaxVio of single steps over the last quarter of"
    " training, and held-out loss, for each way of balancing.",
    baseline="none",
    setting={
        "model.router.num_experts": 32,
        "model.router.top_k": 1,
        "model.router.renormalize": False,
        "model.experts.d_expert": 96,
    },
    arms=(
        Arm(name="none", words="no balancing", overrides=_off()),
        Arm(name="switch-0.001", words="Switch loss, 0.001", overrides=_off(switch_coef=0.001)),
        Arm(name="switch-0.01", words="Switch loss, 0.01", overrides=_off(switch_coef=0.01)),
        Arm(name="switch-0.1", words="Switch loss, 0.1", overrides=_off(switch_coef=0.1)),
        Arm(name="switch-1", words="Switch loss, 1", overrides=_off(switch_coef=1.0)),
        Arm(name="sequence", words="sequence-wise loss, 0.01", overrides=_off(sequence_coef=0.01)),
        Arm(name="bias", words="loss-free bias, u = 0.01", overrides=_bias(0.01, "softmax")),
        Arm(name="bias, sigmoid", words="the same with sigmoid scores", overrides=_bias(0.01, "sigmoid")),
    ),
    full=Budget(steps=400, seeds=3),
    columns=(
        Column(metric="max_vio", title="MaxVio"),
        Column(metric="dead", title="dead share", digits=3),
        Column(metric="load_entropy", title="load entropy", digits=3),
    ),
    figures=(
        metric_figure("dead", "Dead experts", "Share of experts under 1 % of the balanced load.", "share"),
        load_over_training(
            "max_vio", "MaxVio over training", "Of single steps, mean over layers and seeds.",
            "MaxVio (0 = balanced)",
        ),
        load_film(("none", "switch-0.01", "bias")),
    ),
    judge=_judge,
)  # fmt: skip
