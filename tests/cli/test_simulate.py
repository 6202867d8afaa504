"""`moeworks simulate`: what it prints is what the library computes."""

import json

import numpy as np
import pytest
from traces import random_trace

from moeworks.cli.main import main
from moeworks.simulate.cache import POLICIES, simulate_cache
from moeworks.simulate.communication import communication
from moeworks.simulate.touched import batch_experts
from moeworks.trace import RoutingTrace, write_trace


@pytest.fixture
def path(tmp_path):
    trace = random_trace(tokens=300, sequences=12)
    write_trace(tmp_path / "t.parquet", trace.header, *trace.blocks())
    return tmp_path / "t.parquet"


def simulated(capsys, *argv: str) -> list[dict]:
    assert main(["simulate", *argv, "--json"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return json.loads(out)["results"]


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_cache(path, capsys, scope):
    cache, guesses = simulated(capsys, "cache", str(path), "--capacity", "0.25", "0.5", "--scope", scope)
    trace = RoutingTrace.open(path)
    total = 8 if scope == "layer" else 24
    assert [(row["capacity"], row["policy"]) for row in cache["rows"]] == [
        (capacity, policy) for capacity in (total // 4, total // 2) for policy in POLICIES
    ]
    for row in cache["rows"]:
        table = simulate_cache(trace, row["policy"], row["capacity"], scope=scope)
        assert row["hit_rate"] == pytest.approx(table.total_hit_rate)
        assert row["by_layer"] == pytest.approx(table.hit_rate.tolist())
        assert row["MB_per_token"] == pytest.approx((1 - table.total_hit_rate) * 3 * 2 * 10)
    assert [row["loaded_ahead"] for row in guesses["rows"]] == [2] * 3 + [4] * 3


def test_placement(path, capsys):
    (result,) = simulated(
        capsys, "placement", str(path), "--devices", "4", "--replicas", "4", "--batch-tokens", "50"
    )
    rows = {row["placement"]: row for row in result["rows"]}
    assert list(rows) == ["in order", "EPLB", "EPLB, refined"]
    assert [row["slots"] for row in rows.values()] == [8, 12, 12]
    for row in rows.values():
        assert 1 <= row["max_over_mean"] <= row["worst_layer"] <= row["worst_batch"]


def test_communication(path, capsys):
    (result,) = simulated(
        capsys, "communication", str(path), "--devices", "4", "--max-devices", "1", "--d-model", "10"
    )
    free, limited = result["rows"]
    expected = communication(RoutingTrace.open(path), 4)
    assert free["devices"] == pytest.approx(expected.devices.mean())
    assert free["kB_per_token_and_layer"] == pytest.approx(expected.devices.mean() * 0.75 * 30 / 1e3)
    assert (limited["devices"], limited["limit"]) == (1, 1)
    assert free["limit"] is None
    assert limited["lost_weight"] > 0


def test_speculation(path, capsys):
    batches, drafts = simulated(
        capsys, "speculation", str(path), "--drafts", "1", "200", "--batch-sizes", "2", "99"
    )
    expected = batch_experts(RoutingTrace.open(path), (2,))
    assert batches["rows"][0]["experts"] == pytest.approx(expected.distinct.mean(), rel=0.05)
    assert batches["rows"][1]["experts"] is None  # there are 12 sequences
    assert drafts["rows"][1]["gain"] is None  # no sequence is that long
    assert drafts["rows"][0]["tokens"] == pytest.approx(1.7)


def test_max_tokens(path, capsys):
    (result,) = simulated(capsys, "communication", str(path), "--devices", "4", "--max-tokens", "20")
    trace = RoutingTrace.open(path)
    expected = communication(trace.where(np.arange(300) < 20), 4).devices
    assert result["rows"][0]["by_layer"] == pytest.approx(expected.tolist())


@pytest.mark.parametrize(
    "argv",
    [
        ["cache"],
        ["placement", "--devices", "2", "--batch-tokens", "9"],
        ["communication", "--devices", "2"],
        ["speculation"],
    ],
)
def test_tables_for_people(path, capsys, argv):
    assert main(["simulate", argv[0], str(path), *argv[1:]]) == 0
    out = capsys.readouterr().out
    assert max(len(line) for line in out.splitlines()) <= 160
    assert "by layer" not in out
    assert len(out.splitlines()) > 3


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["cache", "{path}", "--capacity", "2"], "capacity = (2.0,): must be shares"),
        (["cache", "{path}", "--link-gb-s", "0"], "bytes_per_second = 0.0: must be positive"),
        (["cache", "{path}", "--max-tokens", "0"], "max_tokens = 0: must be at least 1"),
        (["placement", "{path}", "--devices", "3"], "num_devices = 3: must divide"),
        (
            ["placement", "{path}", "--devices", "4", "--replicas", "3"],
            "num_slots = 11: must be a multiple of 4",
        ),
        (["placement", "{path}", "--devices", "4", "--learn", "1"], "learn = 1.0: must lie between"),
        (["placement", "{path}", "--devices", "4"], "batch_tokens = 1024: must lie between 1 and 150"),
        (["communication", "{path}", "--devices", "0"], "num_devices = 0"),
        (["speculation", "{path}", "--acceptance", "2"], "acceptance = 2.0: must lie in [0, 1]"),
        (["cache", "{path}.gone"], "cannot be read as a trace: "),
    ],
)
def test_bad_input(path, capsys, argv, message):
    assert main(["simulate", *(word.format(path=path) for word in argv)]) == 2
    assert message in capsys.readouterr().err


def test_verbs_of_the_verb(capsys):
    with pytest.raises(SystemExit):
        main(["simulate", "--help"])
    out = capsys.readouterr().out
    for name in ("cache", "placement", "communication", "speculation"):
        assert name in out
