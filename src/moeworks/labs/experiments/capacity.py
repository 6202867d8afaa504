"""Lab 8: limits on the tokens of an expert."""

from moeworks.labs.curves import load_over_training, metric_figure
from moeworks.labs.judging import Judgement, above, all_of, below, within
from moeworks.labs.lab import Arm, Budget, Column, Lab
from moeworks.labs.results import Results

MARGIN = 0.005


def _limit(factor: float, policy: str = "position", *, always: bool = True) -> dict[str, object]:
    return {
        "model.capacity.capacity_factor": factor,
        "model.capacity.eval_capacity_factor": factor if always else None,
        "model.capacity.drop_policy": policy,
    }


def _judge(results: Results) -> Judgement:
    changes = [results.metric(arm, "batch_argmax_change") for arm in ("1.0", "dropless")]
    return all_of(
        [
            above("capacity 0.75: bits per byte less those of dropless > 0", results.difference("0.75")),
            within(f"capacity 2.0: less those of dropless, within ±{MARGIN}", results.difference("2.0"),
                   MARGIN),
            below("limit 1.0 in training only: dropping the least probable, less dropping the last ones < 0",
                  results.difference("1.0 training, probability", "1.0 training, position")),
            above("capacity 1.0: share of positions whose next token depends on the batch > 0", changes[0]),
            within("dropless: the same share is 0", changes[1], 1e-9),
        ],
        note="Dropping by probability lets later tokens decide about earlier ones, so that moeworks refuses"
        " it outside of training: the two policies are compared with a limit in training only.",
    )  # fmt: skip


LAB = Lab(
    name="capacity",
    claim="A tight capacity costs loss and a generous one nothing; dropping by probability costs less than by"
    " position; and with any limit the next token depends on what else is in the batch.",
    source="Lepikhin et al. 2020 (GShard), section 2.2; Fedus et al. 2021 (Switch), section 2.2; Riquelme et"
    " al. 2021 (V-MoE, batch-prioritised routing), section 3; Gale et al. 2022 (MegaBlocks), section 2",
    question="Held-out loss with the same limit in training and evaluation, the share of assignments that it"
    " drops, and the share of positions of a text whose most probable next token changes when other texts"
    " stand in its batch.",
    baseline="dropless",
    arms=(
        Arm(name="dropless", words="no limit"),
        *(
            Arm(name=f"{factor}", words=f"capacity {factor}, the last ones are dropped",
                overrides=_limit(factor))
            for factor in (0.75, 1.0, 1.25, 2.0)
        ),
        *(
            Arm(name=f"1.0 training, {policy}", words=f"capacity 1.0 in training, dropped by {policy}",
                overrides=_limit(1.0, policy, always=False))
            for policy in ("position", "probability")
        ),
    ),
    full=Budget(steps=380, seeds=3),
    probes=("batch_dependence",),
    columns=(
        Column(metric="dropped", title="dropped", digits=4),
        Column(metric="batch_argmax_change", title="tokens that depend on the batch", digits=4),
        Column(metric="batch_logit_change", title="logit change", digits=6),
    ),
    figures=(
        load_over_training("dropped", "Dropped share over training",
                           "Of all assignments, mean over layers and seeds.", "dropped share"),
        metric_figure("batch_argmax_change", "Next tokens that depend on the batch",
                      "Share of positions whose most probable next token changes with the batch around it.",
                      "share of positions"),
    ),
    judge=_judge,
)  # fmt: skip
