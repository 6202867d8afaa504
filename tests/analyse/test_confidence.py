import numpy as np
import pytest
from traces import random_block, random_trace, trace_of

from moeworks.analyse.confidence import QUANTILES, confidence
from moeworks.trace import LayerColumns, RoutingTrace, TraceBlock, TraceHeader, token_columns


def test_weights_by_rank_whatever_their_scale():
    weights = np.array([[[3, 1]], [[0.25, 0.25]], [[0, 0]]])
    found = confidence(trace_of([[[0, 1]]] * 3, 4, weights=weights))
    assert found.weight_by_rank.tolist() == pytest.approx(np.array([[1.25, 0.75]]) / 3)
    spread = np.exp(-(0.75 * np.log(0.75) + 0.25 * np.log(0.25)))
    assert found.effective_choices == pytest.approx([(spread + 2 + 1) / 3])
    assert found.entropy is found.margin_quantiles is found.overruled is None


def test_entropy_and_margin():
    header = TraceHeader(num_experts=4, top_k=1, layers=(2,), fields=("entropy", "margin"))
    entropy = np.array([0, np.log(4), np.log(2)])
    margin = np.array([-1, 0.5, np.inf])
    layer = LayerColumns(
        np.zeros((3, 1), np.uint8), entropy=entropy.astype(np.float16), margin=margin.astype(np.float16)
    )
    found = confidence(RoutingTrace.from_blocks(header, [TraceBlock(token_columns(3), (layer,))]))
    assert found.entropy.estimate == pytest.approx([0.5], abs=1e-3)
    assert found.entropy_quantiles[0, QUANTILES.index(0.5)] == pytest.approx(0.5, abs=1e-3)
    assert found.margin_quantiles[0, QUANTILES.index(0.5)] == 0.5
    assert found.overruled.estimate.tolist() == pytest.approx([1 / 3])
    assert found.weight_by_rank is None


def test_all_columns_and_none():
    header = TraceHeader(num_experts=8, top_k=2, layers=(0, 1), fields=("weights", "entropy", "margin"))
    found = confidence(RoutingTrace.from_blocks(header, [random_block(header, 50)]))
    arrays = {name: getattr(value, "estimate", value) for name, value in vars(found).items()}
    assert {name: getattr(value, "shape", value)[:1] for name, value in arrays.items()} == {
        name: (0,) if name == "layers" else (2,) for name in vars(found)
    }
    assert confidence(random_trace()).entropy is None
