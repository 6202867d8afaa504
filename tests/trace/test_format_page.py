"""docs/trace-format.md says what the code does, and its examples run."""

import json
import re
from pathlib import Path

import duckdb
import numpy as np
import torch
from traces import random_trace

from moeworks.config import ModelConfig, RouterConfig
from moeworks.models.decoder import Decoder
from moeworks.trace import RoutingTrace, TraceHeader, write_trace
from moeworks.trace.header import FORMAT, LAYER_FIELDS, VERSION, VERSION_WITH_EMPTY_SLOTS
from moeworks.trace.schema import TOKEN_TYPES

PAGE = (Path(__file__).parent.parent.parent / "docs" / "trace-format.md").read_text("utf-8")


def table(heading: str, number: int = 0) -> list[str]:
    """The names in the first column of a table under a heading."""
    part = PAGE.split(f"## {heading}\n")[1].split("\n## ")[0]
    tables = re.findall(r"((?:^\|.*\n)+)", part, re.MULTILINE)
    return re.findall(r"^\| `(\w+)`", tables[number], re.MULTILINE)


def test_version_and_keys():
    assert f"versions {VERSION} and {VERSION_WITH_EMPTY_SLOTS}" in PAGE.splitlines()[0]
    encoded = json.loads(TraceHeader(num_experts=2, top_k=1, layers=(0,)).encode())
    assert set(table("Metadata")) == {*encoded, "empty_slots"}
    assert encoded["format"] == FORMAT


def test_columns():
    assert table("Columns") == list(TOKEN_TYPES)
    assert table("Columns", 1) == [f"{name}_N" for name in ("ids", *LAYER_FIELDS)]


def test_query_runs(tmp_path):
    trace = random_trace(layers=4)
    write_trace(tmp_path / "trace.parquet", trace.header, *trace.blocks())
    (query,) = re.findall(r"```sql\n(.*?)```", PAGE, re.DOTALL)
    rows = duckdb.sql(query.replace("trace.parquet", str(tmp_path / "trace.parquet"))).fetchall()
    assert sum(count for _, _, count in rows) == trace.num_tokens * 2


def test_recording_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = ModelConfig(vocab_size=50, d_model=16, router=RouterConfig(num_experts=4, top_k=2))
    torch.manual_seed(0)
    names = {"model": Decoder(config).eval(), "batches": [torch.randint(50, (3, 7))] * 2, "np": np}
    code, *_ = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    with torch.no_grad():
        exec(compile(code, "trace-format.md", "exec"), names)
    trace = RoutingTrace.open("trace.parquet")
    assert (trace.num_tokens, trace.header.fields) == (42, ("weights",))
    assert trace.tokens.sequence.max() == 5
