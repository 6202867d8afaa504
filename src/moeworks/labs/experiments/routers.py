"""Lab 3: how much of the gain is sparsity, and how much is the router."""

from typing import Any, get_args, get_type_hints

from moeworks.config.choices import ChoiceConfig
from moeworks.labs.curves import load_over_training, loss_against
from moeworks.labs.judging import Judgement, all_of, below
from moeworks.labs.lab import Arm, Budget, Column, Lab
from moeworks.labs.results import Results


def _choice(kind: str, **options: object) -> dict[str, Any]:
    """A way to choose experts that needs no balance loss."""
    return {"model.router.choice": {"kind": kind, **options}, "balance.global_batch_coef": 0.0}


ROUTERS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("random", "experts drawn anew for every token and step", _choice("random")),
    ("hash", "experts by the token's id, balanced by frequency", _choice("hash", function="balanced")),
    ("reinforce", "policy gradient with a learned baseline", _choice("policy_gradient")),
    ("expert choice", "experts choose tokens; cutoffs in evaluation", _choice("expert_choice")),
    ("sinkhorn", "S-BASE: Sinkhorn; greedy in evaluation", _choice("sinkhorn")),
    ("base", "BASE: linear assignment; greedy in evaluation", _choice("assignment")),
    ("learned", "learned top-k, balance loss 0.01", {}),
)
"""Name, words and overrides of every router beside the dense block."""

_KINDS = {get_args(get_type_hints(choice)["kind"])[0] for choice in get_args(ChoiceConfig)}


def _is_there(overrides: dict[str, Any]) -> bool:
    """Whether this version of moeworks has the router."""
    return overrides.get("model.router.choice", {"kind": "top_k"})["kind"] in _KINDS


def _judge(results: Results) -> Judgement:
    return all_of(
        [
            below("hash: bits per byte less those of dense < 0", results.difference("hash")),
            below("learned top-k: less those of hash < 0", results.difference("learned", "hash")),
        ],
        note=_share(results),
    )


def _share(results: Results) -> str:
    """How much of the learned router's gain over dense a hash has already."""
    hashed, learned = results.difference("hash"), results.difference("learned")
    if hashed is None or learned is None or learned.high >= 0:
        return ""
    share = hashed.value / learned.value
    return f"Of what the learned router gains over dense, the hash has {100 * share:.0f} %."


LAB = Lab(
    name="routers",
    claim="A fixed hash of the token id already beats a dense model: most of the gain is sparsity. A learned"
    " router adds to it.",
    source="Roller et al. 2021 (Hash layers), section 4; Clark et al. 2022 (Unified scaling laws for routed"
    " language models), section 4; Lewis et al. 2021 (BASE); Zhou et al. 2022 (expert choice)",
    question="Held-out loss of each router over the same experts, and of a dense block of equal FLOPs per"
    " token.",
    baseline="dense",
    arms=(
        Arm(
            name="dense",
            words="one block of the active width",
            overrides={
                "model.pattern.explicit": [],
                "model.mlp.d_ff": 136,
                "balance.global_batch_coef": 0.0,
            },
        ),
        *(
            Arm(name=name, words=words, overrides=overrides, match="model.experts.d_expert")
            for name, words, overrides in ROUTERS
            if _is_there(overrides)
        ),
    ),
    full=Budget(steps=380, seeds=3),
    columns=(Column(metric="max_vio", title="MaxVio"), Column(metric="dead", title="dead share", digits=3)),
    figures=(
        loss_against("cpu_seconds", "Loss against time", "CPU seconds of one core"),
        load_over_training(
            "max_vio", "MaxVio over training", "Of single steps, mean over layers and seeds.", "MaxVio"
        ),
    ),
    judge=_judge,
)
