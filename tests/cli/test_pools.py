"""Pools of experts on the command line: a run by domains, and the verbs that read it."""

import json

import numpy as np
import pytest

from moeworks.cli.main import main
from moeworks.trace import RoutingTrace

SMOKE = [
    "--model.router.num-experts",
    "4",
    "--model.router.top-k",
    "2",
    "--train.steps",
    "4",
    "--train.sample-tokens",
    "5",
]


@pytest.fixture(scope="module")
def run(fields, tmp_path_factory):
    out = tmp_path_factory.mktemp("pooled")
    pools = ["--model.router.pools", "poems=0-2", "notes=2-3"]
    assert main(["train", "smoke", *fields, *SMOKE, *pools, "--out", str(out), "--name", "p"]) == 0
    return out / "p"


def refused(capsys, *argv) -> str:
    assert main([str(word) for word in argv]) == 2
    return capsys.readouterr().err


def test_the_sample_names_its_domain(run):
    sample = json.loads((run / "summary.json").read_text())["sample"]
    assert sample["domain"] == "poems"
    assert sample["text"] != ""


def test_eval_takes_the_types_of_the_domains_or_of_one(run, texts, capsys):
    found = {}
    for name, extra in (("own", []), ("notes", ["--domain", "notes"])):
        assert main(["eval", str(run), "--data", str(texts), *extra, "--json"]) == 0
        found[name] = json.loads(capsys.readouterr().out)["domains"]
    assert found["own"]["notes"] == found["notes"]["notes"]
    assert found["own"]["poems"]["loss"] != found["notes"]["poems"]["loss"]
    # A folder of its own has its files' suffixes or names as domains.
    told = refused(capsys, "eval", run, "--data", texts / "notes")
    assert (
        "has no pool of experts for it; known: notes, poems; or name one for all texts with --domain" in told
    )
    assert "did you mean 'notes'" in refused(capsys, "eval", run, "--data", texts, "--domain", "note")


def test_a_trace_shows_the_pools(run, texts, tmp_path, capsys):
    path = tmp_path / "t.parquet"
    assert main(["trace", str(run), "--data", str(texts), "-o", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["findings"] == []
    trace = RoutingTrace.open(path)
    notes = np.array([name == "notes" for name in trace.tokens.domains])[trace.tokens.domain]
    for layer in trace.header.layers:
        assert set(trace.ids(layer)[notes].ravel()) <= {2, 3}
        assert set(trace.ids(layer)[~notes].ravel()) <= {0, 1, 2}
    assert (
        main(["trace", str(run), "--data", str(texts), "-o", str(path), "--domain", "poems", "--json"]) == 0
    )
    assert set(RoutingTrace.open(path).ids(trace.header.layers[0]).ravel()) <= {0, 1, 2}
    told = refused(capsys, "trace", run, "--data", texts / "poems", "-o", path)
    assert "known: notes, poems; or name one for all texts with --domain" in told
    assert not list(tmp_path.glob("*.tmp*"))


def test_generate_must_be_told_a_domain(run, capsys):
    told = refused(capsys, "generate", run, "# Text")
    assert "domain = None: the model has pools of experts: say with --domain whose to use" in told
    texts = {}
    for domain in ("notes", "poems"):
        argv = ["generate", str(run), "# Text", "--domain", domain, "--max-new-tokens", "12", "--json"]
        assert main(argv) == 0
        texts[domain] = json.loads(capsys.readouterr().out)["completions"][0]["ids"]
    assert texts["notes"] != texts["poems"]


def test_a_run_needs_names_before_anything_slow(texts, tmp_path, capsys):
    argv = ["--data", texts, "--out", tmp_path / "runs", "--model.router.pools", "0-20", "14-31"]
    told = refused(capsys, "train", *argv)
    assert "model.router.pools = ('0-20', '14-31'): must have names of domains, NAME=0-3,6" in told
    assert not (tmp_path / "runs").exists()


def test_a_model_without_pools_takes_no_domain(finished, texts, capsys):
    for verb in (["generate", finished, "x"], ["eval", finished, "--data", texts]):
        told = refused(capsys, *verb, "--domain", "notes")
        assert "domain = 'notes': needs a model whose experts are in pools (router.pools)" in told


def test_config_explains_them(capsys):
    assert main(["config", "--model.router.pools", "a=0-20", "b=14-31"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "Experts of each type of token" in out
