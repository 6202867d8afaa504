"""Lab 6: experts that every token visits."""

from moeworks.labs.curves import loss_against
from moeworks.labs.judging import Judgement, all_of, below
from moeworks.labs.lab import Arm, Budget, Column, Lab
from moeworks.labs.results import Results


def _judge(results: Results) -> Judgement:
    return all_of([below("1 shared expert: bits per byte less those of none < 0", results.difference("1"))])


LAB = Lab(
    name="shared",
    claim="A shared expert that every token visits lowers the loss at equal compute and parameters.",
    source="Dai et al. 2024 (DeepSeekMoE), sections 3.2 and 4.4; Muennighoff et al. 2024 (OLMoE), section"
    " 4.1.3, found no gain",
    question="Held-out loss with 0, 1 and 2 of 32 experts shared; each token uses 4 in all.",
    baseline="0",
    setting={"model.experts.d_expert": 40},
    arms=tuple(
        Arm(
            name=str(shared),
            words=f"{shared} shared, {4 - shared} of {32 - shared} routed",
            overrides={
                "model.router.num_experts": 32 - shared,
                "model.router.top_k": 4 - shared,
                "model.shared.num_shared_experts": shared,
            },
        )
        for shared in (0, 1, 2)
    ),
    full=Budget(steps=450, seeds=5),
    columns=(Column(metric="max_vio", title="MaxVio"),),
    figures=(loss_against("tokens", "Loss over training", "training tokens"),),
    judge=_judge,
)
