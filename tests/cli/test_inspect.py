"""`moeworks inspect` on small traces."""

import json

import pytest
from traces import random_trace

from moeworks.cli.inspect import parse
from moeworks.cli.main import main
from moeworks.errors import ConfigError
from moeworks.trace import write_trace


@pytest.fixture
def path(tmp_path):
    trace = random_trace(tokens=200)
    write_trace(tmp_path / "t.parquet", trace.header, *trace.blocks())
    return tmp_path / "t.parquet"


@pytest.mark.parametrize("kind", ["html", "md", "json"])
def test_formats(path, kind, capsys):
    assert main(["inspect", str(path), "--format", kind]) == 0
    report = path.with_suffix(f".{kind}")
    assert str(report) in capsys.readouterr().out
    text = report.read_text()
    assert "MoE layers" in text or kind == "json"
    if kind == "json":
        record = json.loads(text)
        assert record["format"] == "moeworks.inspection"
        assert len(record["load"]["max_vio"]) == 3
        assert "entropy" in record["missing"]


def test_compare_with_itself_agrees(path):
    out = path.with_name("both.md")
    assert main(["inspect", str(path), "--compare", str(path), "-o", str(out)]) == 0
    assert "they route alike" in out.read_text()


def test_picture(path):
    pytest.importorskip("matplotlib")
    assert main(["inspect", str(path), "-o", str(path.with_suffix(".png"))]) == 0
    assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_options_that_do_nothing_on_a_run_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="no effect on a run"):
        parse([str(tmp_path), "--compare", "x.parquet"])
