"""Names of the layers and experts of a run."""

from moeworks.report.run.run_data import RunData


def layer_names(run: RunData) -> list[str]:
    """Names of the MoE layers, counted from 0 over all decoder layers."""
    return [f"layer {index}" for index in run.moe_layers]


def expert_names(run: RunData, columns: int) -> list[str]:
    """Numbers of the routes; the ones without weights say what they are."""
    router = run.config.model.router
    identity_end = router.num_experts + router.num_identity_experts
    kinds = [(router.num_experts, ""), (identity_end, " (identity)"), (columns, " (zero)")]
    return [str(i) + next(kind for end, kind in kinds if i < end or end == columns) for i in range(columns)]
