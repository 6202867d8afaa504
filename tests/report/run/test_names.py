"""Names of layers and experts."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from moeworks.config import RouterConfig, RunConfig
from moeworks.report.run.names import expert_names, layer_names
from moeworks.report.run.run_data import read_run


def test_names_of_layers_and_experts(moe_run: Path, config_with: Callable[..., RunConfig]) -> None:
    run = read_run(moe_run)
    assert layer_names(run) == ["layer 0", "layer 1", "layer 2", "layer 3"]
    assert expert_names(run, 32) == [str(i) for i in range(32)]
    router = RouterConfig(num_experts=2, num_identity_experts=1, num_zero_experts=1)
    run = replace(run, config=config_with(router=router))
    assert expert_names(run, 4) == ["0", "1", "2 (identity)", "3 (zero)"]
