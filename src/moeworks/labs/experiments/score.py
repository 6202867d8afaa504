"""Lab 7: softmax before or after top-k, and sigmoid."""

from moeworks.labs.curves import load_over_training
from moeworks.labs.judging import Judgement, all_of, below, within
from moeworks.labs.lab import Arm, Budget, Column, Lab
from moeworks.labs.results import Results

MARGIN = 0.01


def _judge(results: Results) -> Judgement:
    return all_of(
        [
            below("sigmoid: bits per byte less those of softmax < 0", results.difference("sigmoid")),
            within(
                f"softmax after top-k: bits per byte less those of softmax before it, within ±{MARGIN}",
                results.difference("softmax after"),
                MARGIN,
            ),
        ],
        note="With weights that are divided by their sum, softmax before and after top-k are the same"
        " function; here the one before keeps its probabilities as they are.",
    )


def _router(**values: object) -> dict[str, object]:
    return {f"model.router.{name}": value for name, value in values.items()}


LAB = Lab(
    name="score",
    claim="Sigmoid scores reach a lower loss than softmax scores; whether softmax stands before or after"
    " top-k makes no difference that matters.",
    source="Nguyen et al. 2024 (Sigmoid gating is more sample efficient than softmax gating); Jiang et al."
    " 2024 (Mixtral), section 2.1; DeepSeek-AI 2024 (V3), section 2.1.2",
    question="Held-out loss for each score, all else equal, with the balance loss over the whole batch.",
    baseline="softmax before",
    setting={"model.router.num_experts": 32},
    arms=(
        Arm(name="softmax before", words="softmax, top-k", overrides=_router(renormalize=False)),
        Arm(name="softmax before, sum 1", words="softmax, top-k, divided by the sum"),
        Arm(name="softmax after", words="top-k, softmax", overrides=_router(score_order="after_top_k")),
        Arm(name="sigmoid", words="sigmoid, top-k, divided by the sum", overrides=_router(score="sigmoid")),
        Arm(
            name="sigmoid as is",
            words="sigmoid, top-k",
            overrides=_router(score="sigmoid", renormalize=False),
        ),
    ),
    full=Budget(steps=420, seeds=4),
    columns=(Column(metric="max_vio", title="MaxVio"),),
    figures=(
        load_over_training(
            "max_vio", "MaxVio over training", "Of single steps, mean over layers and seeds.", "MaxVio"
        ),
    ),
    judge=_judge,
)
