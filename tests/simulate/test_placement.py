import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from traces import random_trace, real_trace, trace_of

from moeworks.errors import ConfigError
from moeworks.simulate.placement import contiguous, device_load, eplb, pack, refine, replicate
from moeworks.simulate.synthetic import synthetic_trace
from moeworks.trace import count_experts

EXAMPLE = np.array(
    [
        [90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86],
        [20, 107, 104, 64, 19, 197, 187, 157, 172, 86, 16, 27],
    ]
)
"""The load of EPLB's README: 12 experts, 16 slots, 4 groups, 2 nodes, 8 GPUs."""


def test_example_of_eplbs_readme():
    """Its published result, slot by slot."""
    placement = eplb(EXAMPLE, 16, 8, num_nodes=2, num_groups=4)
    assert placement.expert_of_slot.tolist() == [
        [5, 6, 5, 7, 8, 4, 3, 4, 10, 9, 10, 2, 0, 1, 11, 1],
        [7, 10, 6, 8, 6, 11, 8, 9, 2, 4, 5, 1, 5, 0, 3, 1],
    ]


def test_pack_and_replicate_by_hand():
    assert [part.tolist() for part in pack(np.array([9.0, 5, 4, 2]), 2)] == [[0, 3], [1, 2]]
    assert [part.tolist() for part in pack(np.array([1.0, 2, 3]), 3)] == [[2], [1], [0]]
    assert replicate(np.array([10.0, 4, 4]), 6).tolist() == [0, 1, 2, 0, 0, 1]
    with pytest.raises(ConfigError, match="packs = 2: must divide 3 items"):
        pack(np.ones(3), 2)


LOADS = st.lists(st.integers(0, 100), min_size=8, max_size=8).map(lambda row: np.array([row]))


@settings(max_examples=50)
@given(LOADS, st.sampled_from([8, 12, 16]), st.sampled_from([1, 2, 4]), st.sampled_from([1, 2]))
def test_every_expert_has_a_slot_and_shares_add_up(load, slots, devices, nodes):
    if devices % nodes:
        return
    placement = eplb(load, slots, devices, num_nodes=nodes, num_groups=4)
    assert placement.expert_of_slot.shape == (1, slots)
    assert set(placement.expert_of_slot[0]) == set(range(8))
    np.testing.assert_allclose(placement.shares(8).sum(axis=2), 1)


def heaviest(placement, load):
    return (load[0] @ placement.shares(load.shape[1])[0]).max()


@settings(max_examples=50)
@given(LOADS, st.sampled_from([8, 12]))
def test_refining_never_makes_it_worse_and_keeps_the_slots(load, slots):
    before = eplb(load, slots, 4)
    after = refine(before, load)
    assert heaviest(after, load) <= heaviest(before, load) + 1e-9
    assert sorted(after.expert_of_slot[0]) == sorted(before.expert_of_slot[0])


def test_refining_finds_a_swap_that_greedy_packing_misses():
    load = np.array([[8, 7, 6, 5, 4, 0]])
    before = eplb(load, 6, 2)
    assert heaviest(before, load) == 17  # 8 + 5 + 4 against 7 + 6 + 0
    assert heaviest(refine(before, load), load) == 15


def test_groups_stay_on_nodes():
    placement = eplb(EXAMPLE, 16, 8, num_nodes=2, num_groups=4)
    for layer in placement.expert_of_slot:
        nodes = [set((half // 3).tolist()) for half in layer.reshape(2, 8)]
        assert nodes[0].isdisjoint(nodes[1])


def test_device_load_by_hand():
    trace = trace_of([[[0]], [[0]], [[1]], [[2]], [[3]], [[3]], [[0]]], 4)
    found = device_load(trace, contiguous(1, 4, 2), 3)
    assert found.imbalance.tolist() == [[2, 2]]  # 0, 0, 1 | 2, 3, 3, and one left over
    whole = device_load(trace, contiguous(1, 4, 2), 7)
    assert whole.imbalance[0] == pytest.approx([4 / 3.5])
    assert whole.mean == pytest.approx([4 / 3.5])


def test_replicas_share_evenly():
    """Expert 0 has three quarters of the load and three of four slots, two of them on one device."""
    placement = eplb(np.array([[3, 1]]), 4, 2)
    assert placement.shares(2)[0].tolist() == [[2 / 3, 1 / 3], [0, 1]]
    trace = trace_of([[[0]], [[0]], [[0]], [[1]]], 2)
    assert device_load(trace, placement, 4).imbalance == pytest.approx(np.ones((1, 1)))


def test_balancing_a_skewed_load():
    trace = synthetic_trace(tokens=8192, layers=3, num_experts=32, top_k=2, skew=1.0)
    load = count_experts(trace).total()
    ways = [contiguous(3, 32, 8), eplb(load, 32, 8), eplb(load, 64, 8)]
    means = [device_load(trace, way, 2048).mean.mean() for way in ways]
    assert means[0] > means[1] > means[2]
    assert means[2] < 1.1


def test_on_the_real_trace():
    """Learned on one half of each domain, tried on the other."""
    trace = real_trace()
    odd = trace.tokens.sequence % 2 == 1
    load = count_experts(trace.where(~odd)).total()
    test = trace.where(odd)
    order = device_load(test, contiguous(26, 64, 8), 4096).mean.mean()
    ours = device_load(test, eplb(load, 80, 8), 4096).mean.mean()
    assert 1 < ours < order


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: contiguous(1, 6, 4), "num_devices = 4: must divide the number of experts, 6"),
        (lambda: eplb(EXAMPLE, 8, 4), "num_slots = 8: must be at least the number of experts, 12"),
        (lambda: eplb(EXAMPLE, 14, 4), "num_slots = 14: must be a multiple of 4 devices"),
        (lambda: eplb(EXAMPLE, 16, 4, num_groups=5), "num_groups = 5"),
        (lambda: eplb(EXAMPLE, 15, 3, num_nodes=2, num_groups=4), "num_devices = 3: must be a multiple of 2"),
        (lambda: device_load(random_trace(), contiguous(1, 8, 2), 5), "placement = 1: must have 3 layers"),
        (lambda: device_load(random_trace(), contiguous(3, 8, 2), 61), "batch_tokens = 61"),
    ],
)
def test_rules(make, message):
    with pytest.raises(ConfigError, match=message):
        make()
