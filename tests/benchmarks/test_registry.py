"""The table is complete, and each operation is what the runner relies on."""

from dataclasses import replace

import pytest

import suite.operations  # noqa: F401, fills the table
from moeworks.ops.backends import BACKENDS
from suite import arms
from suite.registry import OPERATIONS, Arm, Operation, Sampler, Settings, register, wanted
from suite.workers import cores, threads_of

EXPECTED = {
    "layer",
    "layer_skew",
    "layer_memory",
    "routers",
    "train_step",
    "default_train",
    "step_time",
    "routing_statistics",
    "contention",
    "loading",
    "loading_memory",
}
PER_BACKEND = {"layer", "layer_memory", "train_step", "default_train"}


def test_operations_are_those_promised() -> None:
    assert OPERATIONS.keys() == EXPECTED


@pytest.mark.parametrize("quick", [False, True], ids=["full", "quick"])
@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)
def test_cases_and_arms_have_names_of_their_own_and_known_denominators(
    operation: Operation, quick: bool
) -> None:
    settings = Settings(quick=quick)
    cases = operation.cases(settings)
    assert cases and len({case.name for case in cases}) == len(cases)
    for case in cases:
        compared = operation.arms(case, settings)
        names = [arm.name for arm in compared]
        assert len(set(names)) == len(names)
        assert {arm.over or operation.reference for arm in compared} <= {*names, None}
        assert any(arm.ours for arm in compared)


@pytest.mark.parametrize("name", sorted(PER_BACKEND))
def test_every_backend_is_an_arm(name: str) -> None:
    operation, settings = OPERATIONS[name], Settings()
    names = {arm.name for arm in operation.arms(operation.cases(settings)[0], settings)}
    assert {f"moeworks {backend}" for backend in BACKENDS} <= names


def test_recomputation_is_a_variant_once_the_config_knows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    operation, settings = OPERATIONS["layer_memory"], Settings(quick=True)
    case = operation.cases(settings)[0]
    monkeypatch.setattr(arms, "_RECOMPUTE", "no such field")
    assert not any("recompute" in arm.name for arm in operation.arms(case, settings))
    monkeypatch.setattr(arms, "_RECOMPUTE", "router_bias")  # any switch of MoEConfig will do
    varied = [arm for arm in operation.arms(case, settings) if "recompute" in arm.name]
    assert [arm.name for arm in varied] == [f"moeworks {backend}, recompute" for backend in BACKENDS]


def test_a_name_is_registered_once() -> None:
    with pytest.raises(ValueError, match="'layer' is registered twice"):
        register(OPERATIONS["layer"])


def test_filtered_arms_bring_what_their_ratios_are_over() -> None:
    every = [
        Arm(name=name, build=lambda: Sampler(lambda: 0.0), over=over)
        for name, over in (("a", None), ("b", None), ("b, busy", "b"), ("base", None))
    ]
    assert [arm.name for arm in wanted(every, ["busy"], "base")] == ["b", "b, busy"]
    assert [arm.name for arm in wanted(every, ["a"], None)] == ["a", "base"]
    assert [arm.name for arm in wanted([every[0], every[3]], ["a"], "base")] == ["a", "base"]
    assert wanted(every, None, "base") == every


def test_threads_are_the_settings_or_one_for_each_core() -> None:
    operation = OPERATIONS["layer"]
    assert threads_of(operation, Settings(threads=3)) == 3
    assert threads_of(replace(operation, all_cores=True), Settings(threads=3)) == cores()
