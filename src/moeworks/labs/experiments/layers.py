"""Lab 9: which layers balance when, and where MoE layers belong."""

from moeworks.labs.curves import layers_over_training
from moeworks.labs.intervals import Estimate, mean_over_seeds
from moeworks.labs.judging import Judgement, above, all_of, below
from moeworks.labs.lab import Arm, Budget, Column, Lab
from moeworks.labs.results import Results


def _first_layer_excess(results: Results) -> Estimate | None:
    """MaxVio over the first half of training: the first layer's less the mean of the others'."""
    early = results.by_layer("all", "early_max_vio")
    return None if early is None else mean_over_seeds(early[:, 0] - early[:, 1:].mean(axis=1))


def _judge(results: Results) -> Judgement:
    return all_of(
        [
            above("MaxVio over the first half of training, first layer less the others > 0",
                  _first_layer_excess(results)),
            below("first layer dense: bits per byte less those of all MoE < 0",
                  results.difference("first dense")),
        ]
    )  # fmt: skip


_LAYERS = {
    "load": ("max_vio", "MaxVio of each layer", "Of single steps, mean over seeds.", "MaxVio (0 = balanced)"),
    "noise": ("signal_to_noise", "Router gradient, signal to noise", "Of the cross-entropy, over"
              " micro-batches of one step, mean over seeds.", "‖mean‖² / variance"),
    "entropy": ("router_entropy", "Router entropy", "Over log E; 1 is undecided.", "entropy"),
    "margin": ("margin", "How far apart experts are", "Margin between the k-th and the next logit over the"
               " logits' spread.", "margin / spread"),
    "inputs": ("top_directions", "Variance of the router's inputs in 4 directions",
               "Near 1, tokens lie close together and are hard to tell apart.", "share of variance"),
}  # fmt: skip

LAB = Lab(
    name="layers",
    claim="The first layer balances more slowly than the others, and a model whose first layer is dense is"
    " the better for it.",
    source="Dai et al. 2024 (DeepSeekMoE), section 5.1.2",
    question="MaxVio of each layer over the first half of training; held-out loss with all layers, all but"
    " the first, or every second one a MoE, at equal FLOPs per token.",
    baseline="all",
    setting={"model.router.num_experts": 32, "model.num_layers": 4},
    arms=(
        Arm(name="all", words="a MoE in all 4 layers"),
        Arm(
            name="first dense",
            words="a dense block, then 3 MoE",
            overrides={"model.pattern.first_dense": 1},
            match="model.mlp.d_ff",
        ),
        Arm(
            name="alternating",
            words="dense and MoE in turn",
            overrides={"model.pattern.every": 2},
            match="model.mlp.d_ff",
        ),
    ),
    full=Budget(steps=420, seeds=5),
    probes=("signal",),
    columns=(Column(metric="max_vio", title="MaxVio"), Column(metric="early_max_vio", title="early MaxVio")),
    figures=(
        layers_over_training("load", *_LAYERS["load"]),
        *(
            layers_over_training("signal", *_LAYERS[name])
            for name in ("noise", "entropy", "margin", "inputs")
        ),
    ),
    judge=_judge,
)
