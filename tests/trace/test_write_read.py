"""What is written comes back, from our reader and from others'; nothing half written stays."""

import os

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_run import full_disk
from traces import random_block, random_trace, same_block, trace_of

from moeworks.errors import ConfigError, DataError
from moeworks.trace import RoutingTrace, TraceHeader, TraceWriter, token_columns, write_trace
from moeworks.trace import read as reading
from moeworks.trace import write as writing
from moeworks.trace.block import LayerColumns, TraceBlock
from moeworks.trace.header import LAYER_FIELDS
from moeworks.trace.schema import trace_schema

ALL = TraceHeader(num_experts=8, top_k=2, layers=(1, 3), fields=LAYER_FIELDS, model="m", engine="e")


@given(
    experts=st.sampled_from([1, 2, 9, 256, 257, 1000]),
    tokens=st.integers(0, 40),
    fields=st.sets(st.sampled_from(LAYER_FIELDS)),
    data=st.data(),
)
def test_round_trip(tmp_path_factory, experts, tokens, fields, data):
    top_k = data.draw(st.integers(1, min(experts, 8)))
    header = TraceHeader(
        num_experts=experts, top_k=top_k, layers=(0, 4), fields=tuple(f for f in LAYER_FIELDS if f in fields)
    )
    block = random_block(
        header,
        tokens,
        seed=data.draw(st.integers(0, 9)),
        token_id=np.arange(tokens) * 7,
        document=np.arange(tokens) // 3,
        domain=np.arange(tokens) % 2,
        phase=np.arange(tokens) % 3,
        valid=np.arange(tokens) % 4 != 1,
        domains=("a", "bé"),
    )
    path = tmp_path_factory.mktemp("trace") / "t.parquet"
    write_trace(path, header, block)
    trace = RoutingTrace.open(path, valid_only=False)
    assert trace.header == header
    read = TraceBlock(trace.tokens, tuple(trace.layer(i) for i in header.layers))
    assert same_block(read, block)
    valid = RoutingTrace.open(path)
    assert valid.num_tokens == int(block.tokens.valid.sum())
    assert np.array_equal(valid.ids(4), block.layers[1].ids[block.tokens.valid])


def test_many_blocks_and_row_groups(tmp_path, monkeypatch):
    monkeypatch.setattr(writing, "row_group_tokens", lambda header: 50)
    blocks = [
        random_block(ALL, n, seed=n, domains=(f"d{n}",), sequence=[n] * n, valid=np.arange(n) % 5 != 0)
        for n in (30, 0, 30, 7, 120)
    ]
    write_trace(tmp_path / "t.parquet", ALL, *blocks)
    assert pq.ParquetFile(tmp_path / "t.parquet").num_row_groups == 5  # 50 and 10; 50, 50 and 27
    for valid_only in (False, True):
        trace = RoutingTrace.open(tmp_path / "t.parquet", valid_only=valid_only)
        want = np.concatenate([b.layers[1].ids[b.tokens.valid | (not valid_only)] for b in blocks])
        assert np.array_equal(trace.ids(3), want)
        assert np.array_equal(np.concatenate([block.layers[1].ids for block in trace.blocks()]), want)
        assert set(trace.tokens.domains) == {"d30", "d7", "d120"}
        assert same_block(
            TraceBlock(trace.load().tokens, ()), TraceBlock(trace.tokens, ())
        )  # a load keeps the labels


def test_where_narrows_and_nests(tmp_path):
    trace = random_trace()
    write_trace(tmp_path / "t.parquet", trace.header, *trace.blocks())
    lazy = RoutingTrace.open(tmp_path / "t.parquet")
    some = lazy.where(lazy.tokens.domain == 1)
    fewer = some.where(some.tokens.token_id == 2)
    want = (trace.tokens.domain == 1) & (trace.tokens.token_id == 2)
    assert np.array_equal(fewer.ids(2), trace.ids(2)[want])
    assert np.array_equal(fewer.weights(0), trace.weights(0)[want])
    assert np.array_equal(np.concatenate([b.layers[2].ids for b in fewer.blocks()]), trace.ids(2)[want])


def test_arrays_of_one_row_group_are_views_of_arrow(tmp_path):
    trace = random_trace()
    ids = trace.ids(1)
    assert not ids.flags.owndata
    assert trace.ids(1).__array_interface__["data"] == ids.__array_interface__["data"]


def test_other_readers(tmp_path):
    """DuckDB and pandas see lists of numbers and labels, in every column."""
    path = tmp_path / "all.parquet"
    write_trace(path, ALL, random_block(ALL, 100))
    assert len(duckdb.sql(f"select * from '{path}'").fetchall()) == len(pd.read_parquet(path)) == 100
    trace = random_trace(tokens=200)
    path = tmp_path / "t.parquet"
    write_trace(path, trace.header, *trace.blocks())
    query = f"select e, count(*) from (select unnest(ids_1) e, domain from '{path}') where domain = 'code'"
    counts = dict(duckdb.sql(query + " group by e").fetchall())
    code = trace.ids(1)[trace.tokens.domain == trace.tokens.domains.index("code")]
    assert counts == {int(e): int(n) for e, n in zip(*np.unique(code, return_counts=True), strict=True)}
    frame = pd.read_parquet(path)
    assert np.array_equal(np.stack(frame["weights_0"]), trace.weights(0))
    assert frame["phase"].tolist() == ["prefill"] * 200


def test_an_error_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError), TraceWriter(tmp_path / "t.parquet", ALL) as writer:
        writer.append(random_block(ALL, 5))
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_the_thread_holds_one_group_and_tells_its_errors(tmp_path, monkeypatch):
    """A full group is written beside the loop; what goes wrong there is raised, and nothing is left."""
    monkeypatch.setattr(writing, "row_group_tokens", lambda header: 10)
    with TraceWriter(tmp_path / "t.parquet", ALL) as writer:
        for _ in range(5):
            writer.append(random_block(ALL, 7))
            assert writer._held_rows < 10
    assert RoutingTrace.open(tmp_path / "t.parquet").num_tokens == 35
    assert writer.seconds > 0

    def refuse(self, blocks):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(TraceWriter, "_write", refuse)
    with (
        pytest.raises(DataError, match=r"u\.parquet: cannot be written: No space"),
        TraceWriter(tmp_path / "u.parquet", ALL) as writer,
    ):
        writer.append(random_block(ALL, 12))
        writer.append(random_block(ALL, 12))
        raise AssertionError("the second group waits for the first, and finds its error")
    assert [file.name for file in tmp_path.iterdir()] == ["t.parquet"]


def test_a_finished_trace_survives_a_failed_one(tmp_path):
    path = tmp_path / "t.parquet"
    write_trace(path, ALL, random_block(ALL, 5))
    before = path.read_bytes()
    with pytest.raises(ConfigError):
        write_trace(path, ALL, random_block(TraceHeader(num_experts=8, top_k=3, layers=(1, 3)), 5))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_full_disk_and_missing_folder(tmp_path):
    with pytest.raises(DataError, match=r"gone/t\.parquet: cannot be written: .*No such file"):
        write_trace(tmp_path / "gone" / "t.parquet", ALL, random_block(ALL, 5))
    with full_disk(100), pytest.raises(DataError, match=r"t\.parquet: cannot be written"):
        write_trace(tmp_path / "t.parquet", ALL, random_block(ALL, 5000))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (LayerColumns(np.zeros((4, 2), np.uint8)), "fields of layer 0 = .*must be"),
        (LayerColumns(np.zeros((4, 3), np.uint8), np.zeros((4, 3), np.float16)), "layer 0 ids = .4, 3."),
        (LayerColumns(np.zeros((5, 2), np.uint8), np.zeros((5, 2), np.float16)), "layer 0 ids = .5, 2."),
        (LayerColumns(np.zeros((4, 2), np.uint8), np.zeros((4,), np.float16)), "layer 0 weights = .4,."),
    ],
)
def test_blocks_that_do_not_fit(tmp_path, columns, message):
    header = TraceHeader(num_experts=4, top_k=2, layers=(0,), fields=("weights",))
    with pytest.raises(ConfigError, match=message):
        write_trace(tmp_path / "t", header, TraceBlock(token_columns(4), (columns,)))


def test_token_columns_check_lengths():
    with pytest.raises(ConfigError, match=r"tokens.position = \(2,\): must have the shape \(3,\)"):
        token_columns(3, position=[0, 1])


def test_positions_are_numbered_inside_sequences():
    assert token_columns(5, sequence=[3, 3, 3, 1, 1]).position.tolist() == [0, 1, 2, 0, 1]


def test_what_is_no_trace(tmp_path):
    path = tmp_path / "t.parquet"
    with pytest.raises(DataError, match="cannot be read as a trace: "):
        RoutingTrace.open(path)
    path.write_bytes(b"not parquet at all")
    with pytest.raises(DataError, match="cannot be read as a trace"):
        RoutingTrace.open(path)
    pd.DataFrame({"text": ["a"]}).to_parquet(path)
    with pytest.raises(DataError, match="not a routing trace"):
        RoutingTrace.open(path)


def test_a_missing_or_changed_column_is_named(tmp_path):
    path = tmp_path / "t.parquet"
    write_trace(path, ALL, random_block(ALL, 5))
    table = pq.read_table(path)
    pq.write_table(table.drop_columns(["weights_3"]), path)
    with pytest.raises(DataError, match="column weights_3 is missing"):
        RoutingTrace.open(path)
    changed = table["position"].cast("int64")
    index = table.schema.get_field_index("position")
    pq.write_table(table.set_column(index, "position", changed), path)
    with pytest.raises(DataError, match="column position is a int64, it must be int32"):
        RoutingTrace.open(path)


def test_truncated_file(tmp_path):
    path = tmp_path / "t.parquet"
    write_trace(path, ALL, random_block(ALL, 500))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"t\.parquet"):
        RoutingTrace.open(path)


def test_layers_and_fields_that_are_not_there():
    trace = trace_of([[[0, 1]]], 4, layers=[5])
    with pytest.raises(ConfigError, match=r"layer = 0: must be one of \(5,\)"):
        trace.ids(0)
    with pytest.raises(DataError, match="the trace has no weights; it has: ids"):
        trace.weights(5)


def test_memory_is_that_of_a_row_group():
    """A row group is bounded in bytes, whatever the model."""
    small = writing.row_group_tokens(TraceHeader(num_experts=4, top_k=1, layers=(0,)))
    large = TraceHeader(num_experts=512, top_k=10, layers=tuple(range(60)), fields=("weights", "logits"))
    assert small == 131_072
    assert writing.row_group_tokens(large) == 1024
    assert len(trace_schema(large)) == 7 + 3 * 60


# What is there already.


def test_only_a_trace_is_replaced(tmp_path):
    block = random_block(ALL, 20)
    texts, corpus, folder = tmp_path / "d.jsonl", tmp_path / "corpus.parquet", tmp_path / "folder"
    texts.write_text('{"text": "work"}')
    pd.DataFrame({"text": ["work"]}).to_parquet(corpus)
    folder.mkdir()
    before = {path: path.read_bytes() for path in (texts, corpus)}
    for path in (texts, corpus, folder):
        with pytest.raises(DataError, match=rf"{path.name}: exists and is no trace: choose another name"):
            write_trace(path, ALL, block)
    assert {path: path.read_bytes() for path in before} == before
    assert sorted(tmp_path.iterdir()) == sorted([texts, corpus, folder])
    (tmp_path / "t.parquet").touch()
    for _ in range(2):
        write_trace(tmp_path / "t.parquet", ALL, block)
    assert RoutingTrace.open(tmp_path / "t.parquet").num_tokens == 20


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "link.parquet").symlink_to(tmp_path / "real.parquet")
    write_trace(tmp_path / "link.parquet", ALL, random_block(ALL, 20))
    assert (tmp_path / "link.parquet").is_symlink()
    assert RoutingTrace.open(tmp_path / "real.parquet").num_tokens == 20


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_a_trace_is_as_readable_as_the_umask_says(tmp_path, mask):
    before = os.umask(mask)
    try:
        write_trace(tmp_path / "t.parquet", ALL, random_block(ALL, 20))
    finally:
        os.umask(before)
    assert (tmp_path / "t.parquet").stat().st_mode & 0o777 == 0o666 & ~mask


def replaced(path, name, change):
    """The trace at `path` with another column `name`: `change` of its values, of the same Arrow type."""
    table = pq.read_table(path)
    at, field = table.schema.get_field_index(name), table.schema.field(name)
    values = change(table[name].to_pylist())
    column = (
        pa.array(values).dictionary_encode().cast(field.type)
        if pa.types.is_dictionary(field.type)
        else pa.array(values, field.type)
    )
    pq.write_table(table.set_column(at, field.with_nullable(True), column), path)


@pytest.mark.parametrize("name", ["token_id", "sequence", "valid", "domain", "phase"])
def test_nulls_of_token_columns_are_refused(tmp_path, name):
    """As floats with NaN they would be cast to any number."""
    path = tmp_path / "t.parquet"
    write_trace(path, ALL, random_block(ALL, 5))
    replaced(path, name, lambda values: [None, *values[1:]])
    with pytest.raises(DataError, match=rf"t\.parquet: column {name} has 1 nulls"):
        RoutingTrace.open(path)


@pytest.mark.parametrize("name", ["ids_3", "weights_1", "entropy_3"])
def test_nulls_of_layers_are_refused(tmp_path, name):
    """A null list would shift the tokens behind it."""
    path = tmp_path / "t.parquet"
    write_trace(path, ALL, random_block(ALL, 5))
    replaced(path, name, lambda values: [*values[:-1], None])
    trace = RoutingTrace.open(path)
    with pytest.raises(DataError, match=rf"column {name} has \d+ nulls"):
        trace.layer(int(name[-1]))


def test_unknown_phases_are_refused(tmp_path):
    path = tmp_path / "t.parquet"
    write_trace(path, ALL, random_block(ALL, 5))
    replaced(path, "phase", lambda values: ["warming up", *values[1:]])
    with pytest.raises(DataError, match="the phase 'warming up' is unknown; known: prefill, decode, train"):
        RoutingTrace.open(path)


def test_ids_beyond_the_experts_are_refused(tmp_path):
    path = tmp_path / "t.parquet"
    write_trace(path, ALL, random_block(ALL, 5))
    replaced(path, "ids_3", lambda values: [*values[:-1], [0, 8]])
    trace = RoutingTrace.open(path)
    trace.ids(1)
    for read in (lambda: trace.ids(3), lambda: trace.layer(3), lambda: list(trace.blocks())):
        with pytest.raises(DataError, match="layer 3 of the trace holds the id 8, and there are 8 experts"):
            read()
    assert trace.unchecked_layer(3).ids.max() == 8  # for the validator to see


def test_more_tokens_than_a_file_can_hold(tmp_path, monkeypatch):
    """Equal values compress without a limit; 5 tokens stand for what would be billions."""
    path = tmp_path / "t.parquet"
    write_trace(path, ALL, random_block(ALL, 5))
    RoutingTrace.open(path)
    monkeypatch.setattr(reading, "_VALUES", 5 * 8 - 1)  # the logits of 8 experts are the widest column
    monkeypatch.setattr(reading, "_VALUES_PER_BYTE", 0)
    with pytest.raises(DataError, match="claims 5 tokens with 8 values each, too many for its size"):
        RoutingTrace.open(path)
