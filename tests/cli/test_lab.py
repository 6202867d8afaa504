"""`moeworks lab`: list, a real quick run, reports, and bad input."""

import json

import pytest
from lab_records import results

from moeworks.cli.main import main
from moeworks.labs.experiments import LABS
from moeworks.labs.summary import summarise, write_summary


def test_list(capsys) -> None:
    assert main(["list", "labs"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in LABS)
    assert main(["list", "labs", "--json"]) == 0
    records = json.loads(capsys.readouterr().out)
    assert [record["name"] for record in records] == list(LABS)
    assert all(record["claim"] and record["source"] for record in records)


def test_a_quick_lab_on_the_default_corpus(tmp_path, capsys) -> None:
    """What a user runs, with fewer steps; then again, when everything is there."""
    command = ["lab", "run", "shared", "--quick", "--steps", "8", "--jobs", "1", "--out", str(tmp_path)]
    assert main(command) == 0
    out = capsys.readouterr().out
    assert "in this setting" in out and "report-quick-8-steps-1-seeds.html" in out
    files = sorted(path.name for path in (tmp_path / "shared").iterdir() if path.is_file())
    assert {"report-quick-8-steps-1-seeds.html", "results-quick-8-steps-1-seeds.json"} <= set(files)
    assert not {"report-quick.html", "results-quick.json"} & set(files)  # those are for the lab's own steps
    summary = json.loads((tmp_path / "shared" / "results-quick-8-steps-1-seeds.json").read_bytes())
    assert [row["name"] for row in summary["rows"]] == ["0", "1", "2"]
    assert all(1.5 < row["bits"]["value"] < 6 for row in summary["rows"])
    assert all(abs(row["flops_to_baseline"] - 1) < 0.01 for row in summary["rows"])
    assert main([*command, "--json"]) == 0
    again = json.loads(capsys.readouterr().out)["labs"][0]
    assert again["rows"][1]["bits"]["value"] == pytest.approx(summary["rows"][1]["bits"]["value"])


@pytest.fixture
def finished(tmp_path):
    for name in ("shared", "balance"):
        (tmp_path / "labs" / name).mkdir(parents=True)
        summary = summarise(LABS[name], results(LABS[name]), {}, quick=False)
        write_summary(tmp_path / "labs" / name, summary)
    return tmp_path


def test_report(finished, capsys) -> None:
    assert main(["lab", "report", "shared", "--labs", str(finished / "labs")]) == 0
    path = finished / "labs" / "shared" / "report.html"
    assert capsys.readouterr().out == f"{path}\n"
    assert path.is_file()
    assert main(["lab", "report", "shared", "--labs", str(finished / "labs"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"pages": [str(path)]}


def test_docs_of_all_that_there_is(finished, capsys) -> None:
    docs = finished / "docs"
    arguments = ["--format", "md", "--labs", str(finished / "labs"), "--out", str(docs)]
    assert main(["lab", "report", "all", *arguments]) == 0
    assert {path.name for path in docs.iterdir()} == {"README.md", "shared", "balance"}
    assert "balance/README.md" in (docs / "README.md").read_text()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["run", "balanc"], "lab = 'balanc': unknown lab; did you mean 'balance'?"),
        (["report", "nonsense-lab"], "unknown lab"),
        (["run", "balance", "--seeds", "0"], "seeds = 0: must lie between 1 and 10"),
        (["run", "balance", "--seeds", "99"], "seeds = 99"),
        (["run", "balance", "--steps", "0"], "steps = 0: must be at least 1"),
        (["run", "balance", "--jobs", "0"], "jobs = 0: must be at least 1"),
        (["run", "balance", "--data", "nowhere/"], "nowhere"),
        (["report", "balance", "--labs", "nowhere"], "moeworks lab run balance"),
        (["report", "all", "--labs", "nowhere"], "nowhere: no results of any lab"),
        (["report", "balance", "--out", "x"], "--out has no effect without --format md"),
    ],
)
def test_bad_input(argv: list[str], message: str, capsys) -> None:
    assert main(["lab", *argv]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert len(err.strip().splitlines()) == 1


def test_damaged_results_are_not_passed_over(finished, capsys) -> None:
    (finished / "labs" / "shared" / "results.json").write_text("{")
    assert main(["lab", "report", "all", "--labs", str(finished / "labs")]) == 2
    assert "not the results of a lab" in capsys.readouterr().err
