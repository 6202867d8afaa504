"""Reading run directories: finished, unfinished, dense, killed, resumed and broken ones."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moeworks.errors import DataError
from moeworks.report.run.run_data import read_run

RunMaker = Callable[..., Path]


@pytest.fixture
def run(moe_run: Path, tmp_path: Path) -> Path:
    """A copy of a finished run that a test may change."""
    return shutil.copytree(moe_run, tmp_path / "copy")


def lines_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def write_lines(run: Path, lines: list[dict[str, Any]]) -> None:
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def change_summary(run: Path, **values: object) -> None:
    path = run / "summary.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_a_finished_run_holds_what_its_files_hold(moe_run: Path) -> None:
    run, lines = read_run(moe_run), lines_of(moe_run)
    assert (run.name, run.moe_layers) == ("first-run", (0, 1, 2, 3))
    train = [line for line in lines if line["kind"] == "train"]
    assert [record.step for record in run.train] == [line["step"] for line in train]
    assert [record.loss for record in run.train] == [line["loss"] for line in train]
    assert run.train[3].max_vio == tuple(train[3]["max_vio"])
    assert run.train[3].balance == train[3]["balance"]
    routing = [line for line in lines if line["kind"] == "routing"]
    assert [record.tokens_per_expert.tolist() for record in run.routing] == [
        r["tokens_per_expert"] for r in routing
    ]
    evals = [line for line in lines if line["kind"] == "eval"]
    assert [record.bits_per_byte for record in run.evals] == [line["bits_per_byte"] for line in evals]
    assert run.evals[0].domains["email"].bytes == evals[0]["domains"]["email"]["bytes"]


def test_the_summary_is_read(moe_run: Path) -> None:
    run, raw = read_run(moe_run), json.loads((moe_run / "summary.json").read_text())
    assert run.summary is not None
    assert (run.summary.total_parameters, run.summary.active_parameters) == (10_050_000, 1_130_000)
    assert run.last_eval is run.summary.eval
    assert run.summary.machine == {"cpu": "Example CPU", "threads": "2", "torch": "2.13.0", "python": "3.11"}
    counts = {name: matrix.tolist() for name, matrix in run.summary.domain_tokens_per_expert.items()}
    assert counts == raw["domain_tokens_per_expert"]


def test_an_unfinished_run_takes_the_name_of_its_directory(make_run: RunMaker) -> None:
    run = read_run(make_run(lines=12, finished=False))
    assert run.summary is None
    assert run.name == "run"
    assert run.last_eval is not None
    assert run.last_eval.step == 100


def test_a_run_that_has_logged_nothing_is_empty(run: Path) -> None:
    (run / "summary.json").unlink()
    (run / "metrics.jsonl").unlink()
    empty = read_run(run)
    assert (empty.train, empty.routing, empty.evals, empty.last_eval) == ((), (), (), None)


def test_a_dense_run_has_no_routing(make_run: RunMaker) -> None:
    run = read_run(make_run(dense=True))
    assert (run.moe_layers, run.routing) == ((), ())
    assert run.train[0].max_vio == ()
    assert run.summary is not None
    assert run.summary.domain_tokens_per_expert == {}


@pytest.mark.parametrize("tail", ['{"kind":"train","st', "{", '{"kind":"eval","text":"\udcff'])
def test_a_last_line_cut_off_by_a_kill_is_left_out(run: Path, tail: str) -> None:
    whole = read_run(run)
    with open(run / "metrics.jsonl", "ab") as file:
        file.write(tail.encode("utf-8", "surrogateescape"))
    assert len(read_run(run).train) == len(whole.train)


def test_a_cut_line_elsewhere_is_an_error(run: Path) -> None:
    text = (run / "metrics.jsonl").read_text().splitlines()
    text[4] = text[4][:20]
    (run / "metrics.jsonl").write_text("\n".join(text))
    with pytest.raises(DataError, match=r"metrics\.jsonl line 5: not valid JSON"):
        read_run(run)


def test_blank_lines_do_not_shift_line_numbers(run: Path) -> None:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    (run / "metrics.jsonl").write_text("\n".join([lines[0], "", '{"kind": 3}', *lines[1:]]))
    with pytest.raises(DataError, match=r"metrics\.jsonl line 3: kind = 3: must be text"):
        read_run(run)


def test_steps_logged_again_after_a_resume_replace_the_old_ones(run: Path) -> None:
    lines = lines_of(run)
    again = next(line for line in lines if line["kind"] == "train" and line["step"] == 200) | {"loss": 9.0}
    write_lines(run, [*lines, again])
    train = read_run(run).train
    assert [record.step for record in train] == list(range(10, 201, 10))
    assert train[-1].loss == 9.0


def test_lines_of_an_unknown_kind_are_left_out(run: Path) -> None:
    before = read_run(run)
    write_lines(run, [{"kind": "resume", "step": 1}, *lines_of(run)])
    assert len(read_run(run).train) == len(before.train)


def test_a_missing_config_is_named(run: Path) -> None:
    (run / "config.json").unlink()
    with pytest.raises(DataError, match=r"config\.json: cannot be read"):
        read_run(run)


def test_a_config_that_breaks_a_rule_is_named_with_its_field(run: Path) -> None:
    config = json.loads((run / "config.json").read_text())
    config["train"]["steps"] = 0
    (run / "config.json").write_text(json.dumps(config))
    with pytest.raises(DataError, match=r"config\.json: train\.steps = 0: must be at least 1"):
        read_run(run)


def test_a_wrong_number_of_layers_is_refused(run: Path) -> None:
    lines = lines_of(run)
    lines[0]["dead_experts"] = [0, 0, 0]
    write_lines(run, lines)
    with pytest.raises(DataError, match=r"line 1: dead_experts has 3 values: must have 4, one per MoE layer"):
        read_run(run)


def test_different_numbers_of_experts_are_refused(run: Path) -> None:
    change_summary(run, domain_tokens_per_expert={"email": [[1] * 16] * 4})
    with pytest.raises(DataError, match="counts 16 experts in one place and 32 in another"):
        read_run(run)


def test_a_broken_summary_is_named(run: Path) -> None:
    change_summary(run, sample={"prompt": "x"})
    with pytest.raises(DataError, match=r"summary\.json, sample: the field 'text' is missing"):
        read_run(run)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            '{"kind": "eval", "domains": {}, "step": 1, "seconds": 1' + "0" * 400 + "}",
            "seconds: has too many digits",
        ),
        ('{"kind": "train", "step": 1' + "0" * 5000 + "}", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ('{"kind": "alarm", "state": "raised", "step": 1, "alarm": "a", "layers": [NaN]}', "layers: 0 = nan"),
        ('{"kind": "routing", "step": 1' + "0" * 30 + "}", "step: has too many digits"),
        ('{"kind": "routing", "step": 1, "tokens_per_expert": [[1' + "0" * 30 + "]]}", "equally long lists"),
        ('{"kind": ["train"]}', "kind = .*must be text"),
        ("\xff", "not UTF-8"),
    ],
)
def test_malformed_lines_are_named(run: Path, line: str, message: str) -> None:
    """The file, the line and what is wrong; whatever Python's own readers raise."""
    content = (run / "metrics.jsonl").read_bytes()
    (run / "metrics.jsonl").write_bytes(line.encode("latin-1") + b"\n" + content)
    with pytest.raises(DataError, match=rf"metrics\.jsonl line 1.*{message}"):
        read_run(run)


def test_a_folder_in_the_place_of_a_file(run: Path) -> None:
    (run / "metrics.jsonl").unlink()
    (run / "metrics.jsonl").mkdir()
    with pytest.raises(DataError, match=r"metrics\.jsonl: cannot be read"):
        read_run(run)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.just(10**400) | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
    max_leaves=4,
)


@pytest.mark.parametrize("name", ["config.json", "summary.json", "metrics.jsonl"])
@settings(max_examples=40)
@given(data=st.data())
def test_altered_values_give_a_run_or_name_the_file(moe_run: Path, tmp_path_factory, name, data) -> None:
    folder = tmp_path_factory.mktemp("altered")
    for file in ("config.json", "summary.json", "metrics.jsonl"):
        (folder / file).write_bytes((moe_run / file).read_bytes())
    lines = (folder / name).read_text().splitlines() if name.endswith("l") else [(folder / name).read_text()]
    at = data.draw(st.integers(0, len(lines) - 1))
    content = json.loads(lines[at])
    place = content
    key = data.draw(st.sampled_from(sorted(place)))
    while isinstance(place[key], dict) and place[key] and data.draw(st.booleans()):
        place = place[key]
        key = data.draw(st.sampled_from(sorted(place)))
    place[key] = data.draw(VALUES)
    lines[at] = json.dumps(content)
    (folder / name).write_text("\n".join([*lines, ""]))
    try:
        read_run(folder)
    except DataError as error:
        assert str(folder) in str(error)
