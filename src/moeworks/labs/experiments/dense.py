"""Lab 1: a Mixture of Experts beside dense models of equal active compute, and of equal time."""

from moeworks.labs.curves import loss_against
from moeworks.labs.judging import Judgement, all_of, below
from moeworks.labs.lab import Arm, Budget, Column, Lab
from moeworks.labs.results import Results

_DENSE = {"model.pattern.explicit": [], "balance.global_batch_coef": 0.0}


def _judge(results: Results) -> Judgement:
    return all_of(
        [
            below("16 experts: bits per byte less those of dense < 0", results.difference("moe-16")),
            below(
                "16 experts: less those of a dense model with about as much CPU time < 0",
                results.difference("moe-16", "dense, longer"),
            ),
            below("32 experts: less those of 8 experts < 0", results.difference("moe-32", "moe-8")),
        ]
    )


LAB = Lab(
    name="dense",
    claim="At equal active compute a Mixture of Experts reaches a lower loss than a dense model, the lower"
    " the more experts it has; and it reaches it in less time.",
    source="Shazeer et al. 2017, section 5.1; Fedus et al. 2021 (Switch), sections 3.1 and 3.2",
    question="Held-out loss of 8, 16 and 32 experts against a dense block of equal FLOPs per token, and"
    " against one that trains for longer, about as long as 16 experts take on the clock of one core.",
    baseline="dense",
    arms=(
        Arm(
            name="dense",
            words="one block of the active width",
            overrides={**_DENSE, "model.mlp.d_ff": 136},
        ),
        Arm(
            name="dense, longer",
            words="the same, 1.3 times the steps",
            overrides={**_DENSE, "model.mlp.d_ff": 136},
            steps=1.3,
        ),
        *(
            Arm(
                name=f"moe-{experts}",
                words=f"{experts} experts, 2 a token",
                overrides={"model.router.num_experts": experts},
                match="model.experts.d_expert",
            )
            for experts in (8, 16, 32)
        ),
    ),
    full=Budget(steps=450, seeds=4),
    columns=(Column(metric="max_vio", title="MaxVio"),),
    figures=(
        loss_against("flops", "Loss against compute", "training FLOPs"),
        loss_against("cpu_seconds", "Loss against time", "CPU seconds of one core"),
    ),
    judge=_judge,
)
