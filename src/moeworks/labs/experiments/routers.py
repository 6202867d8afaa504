"""Lab 3: how much of the gain is sparsity, and how much is the router."""

from moeworks.labs.curves import load_over_training, loss_against
from moeworks.labs.judging import Judgement, all_of, below
from moeworks.labs.lab import Arm, Budget, Column, Lab
from moeworks.labs.results import Results

ROUTERS: tuple[tuple[str, str, dict[str, object]], ...] = (("learned", "learned top-k, balance loss", {}),)
"""Name, words and overrides of every router beside the dense block."""


def _judge(results: Results) -> Judgement:
    return all_of(
        [
            below("hash: bits per byte less those of dense < 0", results.difference("hash")),
            below("learned top-k: less those of hash < 0", results.difference("learned", "hash")),
        ]
    )


LAB = Lab(
    name="routers",
    claim="A fixed hash of the token id already beats a dense model: most of the gain is sparsity. A learned"
    " router adds to it.",
    source="Roller et al. 2021 (Hash layers), section 4; Clark et al. 2022 (Unified scaling laws for routed"
    " language models), section 4; Lewis et al. 2021 (BASE); Zhou et al. 2022 (expert choice)",
    question="Held-out loss of each router over the same experts, and of a dense block of equal FLOPs per"
    " token.",
    baseline="dense",
    setting={"model.router.top_k": 1, "model.router.renormalize": False, "model.experts.d_expert": 128},
    arms=(
        Arm(
            name="dense",
            words="no experts",
            overrides={
                "model.pattern.explicit": [],
                "model.mlp.d_ff": 136,
                "balance.global_batch_coef": 0.0,
            },
        ),
        *(
            Arm(name=name, words=words, overrides=overrides, match="model.experts.d_expert")
            for name, words, overrides in ROUTERS
        ),
    ),
    full=Budget(steps=400, seeds=3),
    columns=(Column(metric="max_vio", title="MaxVio"), Column(metric="dead", title="dead share", digits=3)),
    figures=(
        loss_against("cpu_seconds", "Loss against time", "CPU seconds of one core"),
        load_over_training(
            "max_vio", "MaxVio over training", "Of single steps, mean over layers and seeds.", "MaxVio"
        ),
    ),
    judge=_judge,
)
