"""What a trace's numbers say in words, on traces that are made for it."""

import numpy as np
import pytest
from traces import random_trace, trace_of

from moeworks.analyse.inspection import inspect_trace
from moeworks.analyse.verdicts import judge_trace
from moeworks.trace import LayerColumns, RoutingTrace, TraceBlock, TraceHeader, token_columns


def judge(trace):
    return judge_trace(inspect_trace(trace))


def find(verdicts, part):
    (found,) = [one for one in verdicts if part in one.text]
    return found


def even(tokens, experts, layers=1):
    """ids [T, layers, 1] that use all experts in turn, in a mixed order."""
    rng = np.random.default_rng(0)
    return np.stack([rng.permutation(np.arange(tokens) % experts) for _ in range(layers)], axis=1)[:, :, None]


def test_dead_experts_are_named_by_layer():
    ids = even(2000, 8, layers=2)
    ids[:, 1] %= 5
    found = find(judge(trace_of(ids, 8, layers=[1, 3])), "dead")
    assert found.text == "Layer 3: 3 of 8 experts dead."
    assert found.level == "problem"
    assert "250 assignments" in found.rule
    assert found.advice


def test_with_few_tokens_dead_experts_are_no_finding():
    found = find(judge(trace_of(even(40, 4) // 2, 4)), "hardly any")
    assert found.level == "note"
    assert found.text.startswith("2 experts got no work")
    assert find(judge(trace_of(even(40, 4), 4)), "dead").level == "good"


@pytest.mark.parametrize(
    ("share", "level", "word"),
    [(0.25, "good", "even"), (0.5, "look", "somewhat"), (0.8, "problem", "lopsided")],
)
def test_evenness(share, level, word):
    ids = even(2000, 4)
    busy = int((share - 0.25) / 0.75 * 2000)
    ids[np.random.default_rng(1).choice(2000, busy, replace=False)] = 3
    found = find(judge(trace_of(ids, 4, document=np.arange(2000) // 50)), "its fair share of the work")
    assert found.level == level
    assert word in found.text
    assert "Expert 3 of layer 0" in found.text or level == "good"
    alone = find(judge(trace_of(ids, 4)), "its fair share of the work")
    assert alone.level == ("good" if level == "good" else "note")
    assert "not known" in alone.rule


def test_one_choice_decides_and_the_router_is_undecided():
    ids = np.stack([even(400, 4)[:, :, 0], (even(400, 4)[:, :, 0] + 1) % 4], axis=2)[:, 0]
    columns = LayerColumns(
        ids.astype(np.uint8),
        weights=np.tile(np.array([0.96, 0.04], np.float16), (400, 1)),
        entropy=np.full(400, 0.99 * np.log(4), np.float16),
        margin=np.where(np.arange(400) < 300, -1, 1).astype(np.float16),
    )
    header = TraceHeader(num_experts=4, top_k=2, layers=(0,), fields=("weights", "entropy", "margin"))
    verdicts = judge(
        RoutingTrace.from_blocks(
            header, [TraceBlock(token_columns(400, document=np.arange(400) // 20), (columns,))]
        )
    )
    assert "96.0 % of the weight" in find(verdicts, "first choice").text
    assert find(verdicts, "undecided").level == "look"
    overruled = find(verdicts, "would not choose")
    assert "75.0 %" in overruled.text
    assert overruled.level == "look"


def test_a_broken_recording_comes_first():
    ids = even(200, 4, layers=2)
    ids[:, 1] = ids[:, 0]
    first = judge(trace_of(ids, 4))[0]
    assert first.level == "problem"
    assert first.advice.startswith("Mend the recording")


def test_all_have_a_rule_and_problems_stand_first():
    verdicts = judge(random_trace(tokens=500))
    assert all(one.rule for one in verdicts)
    levels = [one.level for one in verdicts]
    marks = ["problem", "look"]
    places = [marks.index(x) if x in marks else 2 for x in levels]
    assert places == sorted(places)
    assert find(verdicts, "4 documents only").level == "note"
