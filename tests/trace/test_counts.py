import json
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from traces import random_trace, real_file, real_trace

from moeworks.errors import ConfigError, DataError
from moeworks.trace import ExpertCounts, count_experts, read_counts, write_counts


@given(st.integers(0, 50), st.sampled_from(["all", "domain", "sequence"]))
def test_against_a_loop(seed, by):
    trace = random_trace(seed)
    tokens = trace.tokens
    counts = count_experts(trace, by)
    labels = {
        "all": ["all"] * len(tokens),
        "domain": [tokens.domains[code] for code in tokens.domain],
        "sequence": [str(number) for number in tokens.sequence],
    }[by]
    expected = np.zeros_like(counts.counts)
    for place, layer in enumerate(trace.header.layers):
        for label, chosen in zip(labels, trace.ids(layer), strict=True):
            for expert in chosen:
                expected[counts.groups.index(label), place, expert] += 1
    assert np.array_equal(counts.counts, expected)
    assert counts.total().sum() == len(tokens) * 2 * 3


@pytest.mark.parametrize("suffix", [".npz", ".json"])
def test_round_trip(tmp_path, suffix):
    counts = count_experts(random_trace(), "domain")
    write_counts(tmp_path / f"c{suffix}", counts)
    back = read_counts(tmp_path / f"c{suffix}", layers=counts.layers)
    assert (back.groups, back.layers) == (counts.groups, counts.layers)
    assert np.array_equal(back.counts, counts.counts)


def test_a_matrix_as_eplb_takes_it(tmp_path):
    """A nested list or an .npy: [layers, experts]."""
    weight = [[90, 132, 40, 61], [20, 107, 104, 64]]
    (tmp_path / "w.json").write_text(json.dumps(weight))
    np.save(tmp_path / "w.npy", np.array(weight))
    for name in ("w.json", "w.npy"):
        counts = read_counts(tmp_path / name)
        assert (counts.groups, counts.layers, counts.total().tolist()) == (("all",), (0, 1), weight)


def test_steps_are_groups(tmp_path):
    np.save(tmp_path / "w.npy", np.arange(24).reshape(3, 2, 4))
    assert read_counts(tmp_path / "w.npy").groups == ("0", "1", "2")


def test_published_counts(tmp_path):
    """OLMoE's and Mixtral's counts of five domains, and an upcycled model with dead experts."""
    with np.load(real_file("traces/expert_counts_real.npz"), allow_pickle=False) as file:
        olmoe = {k.partition("__")[2]: file[k] for k in file.files if k.startswith("olmoe__")}
    np.savez(tmp_path / "olmoe.npz", **olmoe)
    counts = read_counts(tmp_path / "olmoe.npz", layers=(0, 7, 15))
    assert counts.counts.shape == (6, 3, 64)
    arxiv = counts.counts[counts.groups.index("arxiv")]
    assert len(set(arxiv.sum(axis=1))) == 1  # every layer saw the same tokens, 8 experts each
    assert arxiv.sum(axis=1)[0] % 8 == 0


def test_of_the_real_trace():
    counts = count_experts(real_trace(), "domain").counts
    assert counts.sum(axis=2).tolist() == [[n * 6] * 26 for n in (8222, 8327, 8479, 8251)]


def test_bad_files(tmp_path):
    with pytest.raises(DataError, match="cannot be read as"):
        read_counts(tmp_path / "gone.npz")
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(DataError, match="cannot be read as"):
        read_counts(tmp_path / "a.json")
    np.save(tmp_path / "a.npy", np.zeros(3))
    with pytest.raises(DataError, match=r"float64 \(3,\), not \[layers, E\]"):
        read_counts(tmp_path / "a.npy")
    np.savez(tmp_path / "a.npz", a=np.zeros((2, 3)), b=np.zeros((2, 4)))
    with pytest.raises(DataError, match="differ in shape"):
        read_counts(tmp_path / "a.npz")
    with pytest.raises(ConfigError, match="must end in"):
        write_counts(tmp_path / "a.txt", count_experts(random_trace()))
    with pytest.raises(ConfigError, match="counts = "):
        ExpertCounts(("a",), (0,), np.zeros((2, 1, 3)))


def test_pickles_are_refused(tmp_path):
    for name in ("c.npy", "c.npz", "c.pkl"):
        (tmp_path / name).write_bytes(pickle.dumps([{0: 1}]))
        with pytest.raises(DataError, match="cannot be read as"):
            read_counts(tmp_path / name)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([[1.5, 2.0]], "must be whole numbers"),
        ([[np.nan, 2.0]], "must be whole numbers"),
        ([[np.inf, 2.0]], "must lie between"),
        ([[-1, 2]], "a count of -1"),
        (np.array([[2**63, 1]], np.uint64), "must lie between"),
    ],
)
@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_counts_that_are_no_counts(tmp_path, values, message, suffix):
    path = tmp_path / f"c.{suffix}"
    np.save(path, values) if suffix == "npy" else np.savez(path, a=values)
    with pytest.raises(DataError, match=message):
        read_counts(path)


def test_whole_floats_are_counts(tmp_path):
    np.save(tmp_path / "c.npy", np.array([[3.0, 4.0]]))
    assert read_counts(tmp_path / "c.npy").counts.tolist() == [[[3, 4]]]
