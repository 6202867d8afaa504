"""Lab 4: experts per token."""

from moeworks.labs.curves import loss_against
from moeworks.labs.judging import Judgement, all_of, below
from moeworks.labs.lab import Arm, Budget, Column, Lab
from moeworks.labs.results import Results

_WIDTH = 192
MARGIN = 0.005


def _judge(results: Results) -> Judgement:
    one, two = results.difference("k=1", "k=2"), results.difference("k=1", "k=4")
    return all_of(
        [
            below(f"k = 1: bits per byte less those of k = 2 < {MARGIN}", one, MARGIN),
            below(f"k = 1: bits per byte less those of k = 4 < {MARGIN}", two, MARGIN),
        ]
    )


LAB = Lab(
    name="top-k",
    claim="One expert per token is enough: with as many experts and equal active parameters, k = 1 is no"
    " worse than more.",
    source="Fedus et al. 2021 (Switch), section 2.1, against Shazeer et al. 2017, section 2.1",
    question="Held-out loss with 1, 2, 4 and 8 experts of 16 for each token, each expert as wide as keeps the"
    " active parameters equal; so k = 1 has most parameters in all.",
    baseline="k=2",
    setting={"model.router.renormalize": False, "model.experts.d_expert": _WIDTH // 2},
    arms=tuple(
        Arm(
            name=f"k={k}",
            words=f"{k} of 16 experts, width {_WIDTH // k}",
            overrides={"model.router.top_k": k, "model.experts.d_expert": _WIDTH // k},
        )
        for k in (1, 2, 4, 8)
    ),
    full=Budget(steps=450, seeds=4),
    columns=(Column(metric="max_vio", title="MaxVio"),),
    figures=(loss_against("cpu_seconds", "Loss against time", "CPU seconds of one core"),),
    judge=_judge,
)
