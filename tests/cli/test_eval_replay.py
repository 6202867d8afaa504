"""`moeworks eval --replay`: a run as it was routed at an earlier checkpoint."""

import json

import pytest

from moeworks.cli.main import main


@pytest.fixture(scope="module")
def traces(finished, texts, tmp_path_factory):
    """Of the run's first checkpoint and of its last, by step."""
    folder, made = tmp_path_factory.mktemp("traces"), {}
    for step in (6, 12):
        made[step] = folder / f"{step}.parquet"
        model = finished / "checkpoints" / f"step-{step:08}"
        argv = ["trace", str(model), "--data", str(texts), "-o", str(made[step]), "--json"]
        assert main(argv) == 0
    return made


def evaluated(capsys, *argv) -> dict:
    capsys.readouterr()
    assert main(["eval", *map(str, argv), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_loss_under_another_checkpoints_routing(finished, texts, traces, capsys):
    own = evaluated(capsys, finished, "--data", texts, "--replay", traces[12])
    assert own["replay"] == str(traces[12])
    free = evaluated(capsys, finished, "--data", texts, "--context", own["context"])
    assert own["loss"] == pytest.approx(free["loss"], rel=1e-5)
    earlier = evaluated(capsys, finished, "--data", texts, "--replay", traces[6])
    assert earlier["tokens"] == own["tokens"]
    assert abs(earlier["loss"] - own["loss"]) > 1e-5


def test_texts_that_are_not_the_traces(finished, texts, traces, tmp_path, capsys):
    def refused(*argv) -> str:
        capsys.readouterr()
        assert main(["eval", str(finished), *map(str, argv)]) == 2
        return capsys.readouterr().err

    told = refused("--data", texts / "poems", "--replay", traces[12])
    assert f"{traces[12]}: document 0 ({texts / 'poems'}" in told
    assert "which is of another text" in told
    missing = tmp_path / "no.parquet"
    assert f"{missing}: cannot be read as a trace" in refused("--data", texts, "--replay", missing)
    assert "--replay has no effect without --data" in refused("--tasks", "arc_easy", "--replay", traces[12])
