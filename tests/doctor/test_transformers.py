"""Known faults of transformers, found in tiny random models of its classes."""

import pytest

pytest.importorskip("transformers")

from moeworks.doctor.catalogue import INVARIANTS
from moeworks.doctor.conformance import conformance_page, examine_transformers
from moeworks.doctor.transformers_subject import TransformersSubject
from moeworks.doctor.transformers_tiny import moe_families, tiny_family
from moeworks.doctor.verdict import examine, select
from moeworks.errors import ConfigError


def findings(family: str, *checks: str) -> dict[str, tuple[str, str]]:
    diagnosis = examine(TransformersSubject(tiny_family(family)), select(INVARIANTS, checks))
    return {f.check: (f.verdict, f.message) for f in diagnosis.findings}


def test_the_balance_loss_of_mixtral_is_pooled_and_off():
    found = findings("mixtral", "balance-per-layer", "balance-on", "balance-definition", "balance-gradient")
    assert found["balance-per-layer"][0] == "fail" and "pooled over layers" in found["balance-per-layer"][1]
    assert found["balance-on"][0] == "fail"
    assert "3.000 times the definition" in found["balance-definition"][1]
    assert found["balance-gradient"][0] == "pass"


def test_the_selection_bias_of_deepseek_v3_is_frozen():
    found = findings("deepseek_v3", "bias-moves", "bias-shift", "bias-not-in-weights", "selection", "weights")
    assert found.pop("bias-moves") == ("fail", "frozen: a training step leaves every bias as it was")
    assert {verdict for verdict, _ in found.values()} == {"pass"}


def test_nllb_runs_two_experts_only():
    verdict, message = findings("nllb_moe", "experts-learn")["experts-learn"]
    assert (verdict, message) == ("fail", "4 of 24 experts get a gradient")


def test_losing_groups_are_masked_with_0():
    """In one of transformers' families (AXK2); DeepSeek-V3's masks with -inf."""
    assert findings("axk2", "bias-shift")["bias-shift"][0] == "fail"


@pytest.mark.parametrize("family", ["qwen3_moe", "gpt_oss"])
def test_what_holds(family: str):
    sound = (
        "router-gradient",
        "selection",
        "experts-work",
        "experts-permute",
        "replay",
        "round-trip",
        "adapters",
    )
    found = findings(
        family, *sound, "adapters", "causality", "padding", "eval-batch", "experts-learn", "experts-differ"
    )
    assert {name: words for name, words in found.items() if words[0] != "pass"} == {}


def test_the_page_has_a_row_for_every_family():
    checks = select(INVARIANTS, ["router-gradient", "balance-on"])
    rows = examine_transformers(checks, lambda row, seconds: None, ["olmoe", "vitpose_backbone"])
    page = conformance_page(rows, checks)
    assert [row.diagnosis is None for row in rows] == [False, True]
    assert "| [olmoe](#family-olmoe) | ✓ | ✗ |" in page
    assert "### family olmoe" in page and "| vitpose_backbone |" in page
    assert {"mixtral", "deepseek_v3", "nllb_moe", "vitpose_backbone"} <= set(moe_families())


def test_a_family_that_cannot_be_built_says_why():
    with pytest.raises(ConfigError, match="no class of a language model"):
        tiny_family("vitpose_backbone")
