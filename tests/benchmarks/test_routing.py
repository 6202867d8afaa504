"""Forced loads: what is asked for is possible, and what comes out is what was asked for."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from suite.layers import LayerShape, layer_data
from suite.registry import RefusedError, Settings
from suite.routing import TRACES, expected_counts, shares


@given(
    st.lists(st.floats(1e-3, 1e3), min_size=2, max_size=20),
    st.integers(1, 1000),
    st.data(),
)
def test_expected_counts_add_up_and_no_expert_has_more_than_all_tokens(
    loads: list[float], tokens: int, data: st.DataObject
) -> None:
    top_k = data.draw(st.integers(1, len(loads)))
    share_E = torch.tensor(loads, dtype=torch.float64)
    share_E /= share_E.sum()
    counts_E = expected_counts(share_E, tokens, top_k)
    assert float(counts_E.sum()) == pytest.approx(tokens * top_k)
    assert float(counts_E.max()) <= tokens * (1 + 1e-9)
    # Below the limit the proportions stay.
    open_E = counts_E < tokens * (1 - 1e-9)
    rates = (counts_E / share_E)[open_E]
    assert torch.allclose(rates, rates[:1].expand_as(rates))


@pytest.mark.parametrize("kind", ["uniform", "zipf"])
@pytest.mark.parametrize(("num_experts", "top_k"), [(8, 2), (64, 8)])
def test_tokens_of_a_layer_are_routed_as_asked(kind: str, num_experts: int, top_k: int) -> None:
    shape = LayerShape(T=2048, D=32, E=num_experts, K=top_k, F=8, routing=kind)
    data = layer_data(shape, Settings())
    ids_TK = (data.x_TD.detach() @ data.router_ED.t()).topk(top_k).indices
    counts_E = torch.bincount(ids_TK.flatten(), minlength=num_experts)
    target_E = expected_counts(shares(kind, num_experts, None), shape.T, top_k)
    assert float((counts_E - target_E).abs().sum() / target_E.sum()) < 0.02


def test_a_trace_is_read_where_there_is_one_and_refused_elsewhere(tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match="no data folder"):
        shares("trace", 8, None)
    with pytest.raises(RefusedError, match="no trace of a layer with 7 experts"):
        shares("trace", 7, str(tmp_path))
    (tmp_path / "traces").mkdir()
    counts = np.arange(24).reshape(3, 8)
    np.savez(tmp_path / "traces" / "expert_counts_real.npz", **{TRACES[8]: counts})
    share_E = shares("trace", 8, str(tmp_path))
    assert torch.allclose(share_E, torch.arange(9, 17).double() / sum(range(9, 17)))


def test_data_of_a_layer_is_the_same_in_every_process() -> None:
    shape = LayerShape(T=32, D=8, E=4, K=2, F=4)
    first, second = (layer_data(shape, Settings()) for _ in range(2))
    assert all(torch.equal(getattr(first, name), getattr(second, name)) for name in vars(first))
