"""What one MoE layer adds to the process's peak memory in forward and backward, less the weight gradients."""

from functools import partial

from suite.arms import our_arms, peer_arms
from suite.layers import LAYERS, TINY, LayerRun, LayerShape
from suite.peers import GROUPED
from suite.registry import Arm, Case, Operation, Sampler, Settings, register
from suite.sampling import peak_megabytes


def memory_cases(settings: Settings) -> list[Case]:
    """The three layers."""
    if settings.quick:
        return [TINY.case()]
    return [LayerShape(T=4096, D=512, **sizes).case() for sizes in LAYERS]


def _peak(settings: Settings, layer: LayerRun) -> Sampler:
    def sample() -> float:
        return peak_megabytes(layer.run, layer.warm_up, layer.parameters, settings)

    return Sampler(sample, layer.fingerprint)


def memory_arms(case: Case, settings: Settings) -> list[Arm]:
    """Ours and the peers."""
    shape, sampled = LayerShape(**case.shape), partial(_peak, settings)
    return [*our_arms(shape, settings, sampled), *peer_arms(shape, settings, sampled)]


register(
    Operation(
        name="layer_memory",
        summary="MoE layer, what forward and backward add to the peak resident memory (VmHWM), less the"
        " gradients of the weights",
        unit="MB",
        reference=GROUPED.name,
        mode="fresh",
        rounds=3,
        cases=memory_cases,
        arms=memory_arms,
    )
)
