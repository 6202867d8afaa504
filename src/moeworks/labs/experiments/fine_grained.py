"""Lab 5: more and smaller experts."""

from moeworks.labs.curves import loss_against
from moeworks.labs.judging import Judgement, all_of, below
from moeworks.labs.lab import Arm, Budget, Column, Lab
from moeworks.labs.results import Results

_WIDTH = 192


def _judge(results: Results) -> Judgement:
    return all_of(
        [
            below("32 experts: bits per byte less those of 8 < 0", results.difference("32")),
            below("64 experts: bits per byte less those of 8 < 0", results.difference("64")),
        ]
    )


LAB = Lab(
    name="fine-grained",
    claim="Cut into more and smaller experts, with as many parameters in all and per token, a Mixture of"
    " Experts reaches a lower loss.",
    source="Dai et al. 2024 (DeepSeekMoE), sections 3.1 and 4.4",
    question="Held-out loss of 8, 16, 32 and 64 experts of shrinking width, of which each token uses 1, 2, 4"
    " and 8; widths are such that FLOPs per token are equal, routers included.",
    baseline="8",
    setting={"model.router.renormalize": False},
    arms=tuple(
        Arm(
            name=str(8 * factor),
            words=f"{8 * factor} experts, {factor} a token",
            overrides={
                "model.router.num_experts": 8 * factor,
                "model.router.top_k": factor,
                "model.experts.d_expert": _WIDTH // factor,
            },
            match="model.experts.d_expert" if factor > 1 else None,
        )
        for factor in (1, 2, 4, 8)
    ),
    full=Budget(steps=420, seeds=4),
    columns=(Column(metric="max_vio", title="MaxVio"),),
    figures=(loss_against("cpu_seconds", "Loss against time", "CPU seconds of one core"),),
    judge=_judge,
)
