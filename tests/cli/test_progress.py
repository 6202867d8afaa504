"""What a run shows of its alarms."""

import io

from moeworks.cli.output import Screen
from moeworks.cli.progress import TrainingDisplay, alarm_line

RAISED = {
    "kind": "alarm", "step": 40, "alarm": "route_collapse", "state": "raised", "layers": [0, 3], "domain": "",
    "values": [0.0, 0.01], "threshold": 0.1, "text": "layer 0 works as if it had 2.0 of 8 experts",
    "cause": "balancing is too weak", "knob": "raise balance.global_batch_coef [now 0]",
}  # fmt: skip
ENDED = {k: v for k, v in RAISED.items() if k not in ("cause", "knob")} | dict(step=90, state="ended")
LINE = {
    "kind": "train", "step": 50, "seconds": 5.0, "loss": 2.0, "tokens_per_second": 100.0, "max_vio": [1.0],
    "dead_experts": [0],
}  # fmt: skip


def shown(*records: dict, alarms: dict | None = None) -> list[str]:
    out = io.StringIO()
    display = TrainingDisplay(Screen(file=out, width=1000), 100, 0, alarms)
    for record in records:
        display.record(record)
    return out.getvalue().splitlines()


def test_an_alarm_is_a_line_and_stays_in_the_figures_until_it_is_over():
    lines = shown(RAISED, LINE, ENDED | dict(layers=[0]), LINE, ENDED | dict(layers=[3]), LINE)
    assert lines[0] == (
        "step 40: ALARM route collapse (layers 0, 3): layer 0 works as if it had 2.0 of 8 experts. Likely"
        " cause: balancing is too weak. To do: raise balance.global_batch_coef [now 0]"
    )
    assert "! route collapse" in lines[1]
    assert lines[2] == "step 90: route collapse is over (layer 0)"
    assert "! route collapse" in lines[3]
    assert "route collapse" not in lines[5]


def test_a_run_that_goes_on_shows_what_was_on():
    lines = shown(LINE, alarms={"active": ["domain_starvation/2/a/b"], "streaks": {}})
    assert "! domain starvation" in lines[0]
    ended = ENDED | dict(alarm="domain_starvation", layers=[2], domain="a/b")
    assert "domain starvation" not in shown(ended, LINE, alarms={"active": ["domain_starvation/2/a/b"]})[1]
    assert alarm_line(ended) == "step 90: domain starvation is over (layer 2, domain a/b)"
