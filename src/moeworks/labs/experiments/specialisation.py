"""Lab 10: do experts know domains, or words?"""

from moeworks.labs.curves import metric_figure
from moeworks.labs.judging import Judgement, above, all_of, below
from moeworks.labs.lab import Arm, Budget, Column, Lab
from moeworks.labs.results import Results

TOKEN_SHARE = 0.3
"""Of the uncertainty about the expert, what the token id must settle."""
DOMAIN_SHARE = 0.05
"""What the domain may settle beyond the token id, over its null."""


def _judge(results: Results) -> Judgement:
    metric = results.metric
    return all_of(
        [
            above(f"I(expert; token id) / H(expert) > {TOKEN_SHARE}", metric("moe", "knows_token"),
                  TOKEN_SHARE),
            below(f"I(expert; domain | token id) / H(expert), over its null < {DOMAIN_SHARE}",
                  metric("moe", "knows_domain_given_token"), DOMAIN_SHARE),
        ],
        note="Shares of H(expert), mean over layers. Nulls permute the labels over documents. Intervals of"
        " these are over seeds.",
    )  # fmt: skip


LAB = Lab(
    name="specialisation",
    claim="Experts specialise in tokens, not in domains: the token id tells much about the expert, and given"
    " the token id the domain tells next to nothing.",
    source="Xue et al. 2024 (OpenMoE), section 4.1 (context-independent specialisation); Jiang et al. 2024"
    " (Mixtral), section 5; against Muennighoff et al. 2024 (OLMoE), section 5.3",
    question="Mutual information of expert and token id, of expert and domain, and of expert and domain given"
    " the token id, on held-out text; domain specialisation beside its null and beside a router that knows"
    " token ids alone.",
    baseline="moe",
    setting={"model.router.num_experts": 16},
    arms=(
        Arm(name="moe", words="16 experts, 2 a token"),
        Arm(
            name="fine",
            words="64 experts, 8 a token",
            overrides={"model.router.num_experts": 64, "model.router.top_k": 8},
            match="model.experts.d_expert",
        ),
        Arm(
            name="unbalanced",
            words="16 experts, no balance loss",
            overrides={"balance.global_batch_coef": 0.0},
        ),
    ),
    full=Budget(steps=450, seeds=3),
    probes=("knowledge",),
    columns=(
        Column(metric="knows_token", title="token", digits=3),
        Column(metric="knows_domain", title="domain", digits=3),
        Column(metric="knows_domain_given_token", title="domain, given token", digits=3),
        Column(metric="domain_peak", title="peak share", digits=3),
        Column(metric="domain_peak_null", title="its null", digits=3),
        Column(metric="domain_peak_token_only", title="by token ids alone", digits=3),
        Column(metric="outside_null", title="cells outside null", digits=3),
    ),
    figures=(
        metric_figure("knows_token", "What the token id tells about the expert",
                      "I(expert; token id) / H(expert), mean over layers.", "share of H(expert)"),
        metric_figure("knows_domain_given_token", "What the domain adds to it",
                      "I(expert; domain | token id) / H(expert) over its null, mean over layers.",
                      "share of H(expert)"),
    ),
    judge=_judge,
)  # fmt: skip
