"""moeworks doctor: what it takes, what it prints, and its exit codes."""

import json
from pathlib import Path

import pytest

from moeworks import save
from moeworks.cli.main import main
from moeworks.doctor.catalogue import INVARIANTS
from moeworks.doctor.pitfalls import PITFALLS
from moeworks.doctor.shrink import build_tiny
from moeworks.families import published

QUICK = ["--only", "selection", "--only", "round-trip"]


def test_a_preset_passes(capsys: pytest.CaptureFixture[str]):
    assert main(["doctor", "deepseek-v3", *QUICK, "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert [(f["check"], f["verdict"]) for f in record["findings"]] == [
        ("selection", "pass"),
        ("round-trip", "pass"),
    ]
    assert record["subject"] == "deepseek-v3 (tiny)" and record["kind"] == "moeworks decoder"


def test_a_published_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    save(build_tiny(published("mixtral-8x7b")), tmp_path / "mixtral", family="mixtral")
    assert main(["doctor", str(tmp_path / "mixtral"), *QUICK]) == 0
    assert "2 pass, 0 fail, 0 not applicable" in capsys.readouterr().out


@pytest.mark.parametrize("attribute", ["layer", "build", "config", "Holder.layer"])
def test_python_objects(attribute: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "my_moe.py").write_text(
        "from moeworks import MoE, MoEConfig\n"
        "config = MoEConfig(d_model=8, d_expert=8, num_experts=12, top_k=2)\n"
        "layer = MoE(config)\n"
        "def build(): return MoE(config)\n"
        "class Holder: layer = layer\n"
    )
    monkeypatch.chdir(tmp_path)
    assert main(["doctor", f"my_moe:{attribute}", *QUICK]) == 0


def test_a_broken_layer_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    (tmp_path / "my_broken_moe.py").write_text(
        "from moeworks import MoE, MoEConfig\n"
        "class Broken(MoE):\n"
        "    def forward(self, x, **rest):\n"
        "        y, routing = super().forward(x, **rest)\n"
        "        return y.detach() + 0 * self.router.weight.sum(), routing\n"
        "layer = Broken(MoEConfig(d_model=8, d_expert=8, num_experts=4, top_k=2))\n"
    )
    monkeypatch.chdir(tmp_path)
    assert main(["doctor", "my_broken_moe:layer", "--only", "experts-learn"]) == 1
    assert "0 of 4 chosen experts get a gradient" in capsys.readouterr().out


def test_a_class_of_transformers(capsys: pytest.CaptureFixture[str]):
    pytest.importorskip("transformers")
    assert main(["doctor", "transformers:OlmoeForCausalLM", "--only", "balance-on"]) == 1
    assert "off: the coefficient is 0.01" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], "name a model"),
        (["a", "--all-transformers"], "one of the two"),
        (["mixtral-8x7b", "--only", "casuality"], "did you mean 'causality'?"),
        (["no-such-model"], "no such preset"),
        (["json:dumps.nothing"], "has no attribute"),
        (["no_such_module:x"], "No module named"),
        (["json:JSONDecoder"], "is no MoE layer"),
        (["mixtral-8x7b", "--out", "x.md"], "no effect"),
    ],
)
def test_bad_input(argv: list[str], words: str, capsys: pytest.CaptureFixture[str]):
    assert main(["doctor", *argv]) == 2
    assert words in capsys.readouterr().err


def test_the_list_explains_every_check(capsys: pytest.CaptureFixture[str]):
    assert main(["list", "checks", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert len(listed) == len(INVARIANTS) == len({check["name"] for check in listed})
    for check in listed:
        assert len(check["explanation"]) > 80 and "Measured:" in check["explanation"]
        assert check["pitfalls"] == {n: PITFALLS[int(n)] for n in check["pitfalls"]} != {}
    assert main(["list", "checks", "ties"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if line[:1].strip()] == ["ties"]
