"""The section on alarms."""

import json
import shutil

import pytest

from moeworks.config import AlarmConfig, RunConfig
from moeworks.config.codec import from_dict, to_dict
from moeworks.errors import DataError
from moeworks.report.run.alarms import alarm_section, episodes
from moeworks.report.run.markdown import run_markdown
from moeworks.report.run.page import build_page
from moeworks.report.run.records import run_json
from moeworks.report.run.run_data import AlarmRecord, read_run


def raised(step: int, layers: tuple[int, ...], domain: str = "") -> AlarmRecord:
    name = "domain_starvation" if domain else "route_collapse"
    return AlarmRecord(step, name, True, layers, domain, "few <experts>", "a cause", "a knob")


def ended(step: int, layers: tuple[int, ...], domain: str = "") -> AlarmRecord:
    name = "domain_starvation" if domain else "route_collapse"
    return AlarmRecord(step, name, False, layers, domain, "", "", "")


def test_episodes():
    records = (
        raised(10, (0, 1)), raised(20, (2,), "a"), ended(30, (0,)), ended(30, (2,), "b"), ended(40, (1,)),
        raised(50, (0,)),
    )  # fmt: skip
    assert [(e.raised.step, e.last) for e in episodes(records)] == [(10, 40), (20, None), (50, None)]


@pytest.fixture
def run_with(moe_run, tmp_path):
    """A function that adds lines to a copy of the run."""

    def make(*lines: dict, alarms: AlarmConfig | None = None):
        path = shutil.copytree(moe_run, tmp_path / "run", dirs_exist_ok=True)
        with (path / "metrics.jsonl").open("a") as file:
            file.writelines(json.dumps({"kind": "alarm"} | line) + "\n" for line in lines)
        if alarms is not None:
            config = to_dict(from_dict(RunConfig, json.loads((path / "config.json").read_text())))
            (path / "config.json").write_text(json.dumps(config | {"alarms": to_dict(alarms)}))
        return path

    return make


LINE = {
    "step": 70, "alarm": "domain_starvation", "state": "raised", "layers": [0, 2], "domain": "<b>",
    "values": [0.01, 0.02], "threshold": 0.05, "text": "the tokens of '<b>' use 2.1 of 32 experts",
    "cause": "rare", "knob": "set balance.sequence_coef",
}  # fmt: skip


def test_the_table_in_the_page(run_with):
    over = {k: v for k, v in LINE.items() if k not in ("cause", "knob")} | dict(step=120, state="ended")
    run = read_run(run_with(LINE, over))
    (alarm, end) = run.alarms
    assert (alarm.layers, alarm.raised, end.raised, end.knob) == ((0, 2), True, False, "")
    html = alarm_section(run)
    assert "domain starvation: &lt;b&gt;" in html
    for words in ("0, 2", "70", "120", "rare", "set balance.sequence_coef"):
        assert words in html
    assert html in build_page(run)


def test_words_for_silence_and_for_alarms_that_were_off(run_with, moe_run, make_run):
    assert "No alarm was raised" in alarm_section(read_run(moe_run))
    off = read_run(run_with(alarms=AlarmConfig(enabled=False)))
    assert "Alarms were off" in alarm_section(off)
    assert alarm_section(read_run(make_run(dense=True))) == ""


def test_a_damaged_line(run_with):
    with pytest.raises(DataError, match="the field 'knob' is missing"):
        read_run(run_with({k: v for k, v in LINE.items() if k != "knob"}))
    with pytest.raises(DataError, match="layers"):
        read_run(run_with(LINE | {"layers": 3}))


def test_alarms_are_in_json_and_markdown(run_with, moe_run):
    assert "No alarm was raised" in run_markdown(read_run(moe_run))
    run = read_run(run_with(LINE))
    (alarm,) = json.loads(run_json(run))["alarms"]
    assert (alarm["alarm"], alarm["raised"], alarm["knob"]) == (
        "domain_starvation", True, "set balance.sequence_coef",
    )  # fmt: skip
    assert "**Alarms**" in run_markdown(run)
    assert "domain starvation" in run_markdown(run)
