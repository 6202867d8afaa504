"""Labs that take a second: a tiny lab on tiny texts."""

from pathlib import Path

import pytest
from tiny_run import write_texts

from moeworks.labs.judging import Judgement, all_of, below
from moeworks.labs.lab import Arm, Budget, Lab
from moeworks.labs.results import Results
from moeworks.labs.run import LabRun

TINY = {
    "corpus.tokenizer": "bytes",
    "model.vocab_size": 264,
    "model.d_model": 16,
    "model.num_layers": 2,
    "model.router.num_experts": 4,
    "model.experts.d_expert": 12,
    "train.batch_size": 4,
    "train.seq_len": 32,
}


def _judge(results: Results) -> Judgement:
    return all_of([below("one: less than two", results.difference("one"))])


@pytest.fixture
def lab() -> Lab:
    return Lab(
        name="tiny",
        claim="One expert is better than two.",
        source="nobody",
        question="Loss.",
        baseline="two",
        setting=TINY,
        arms=(
            Arm(name="two", words="k = 2"),
            Arm(
                name="one",
                words="k = 1",
                overrides={"model.router.top_k": 1, "model.router.renormalize": False},
                match="model.experts.d_expert",
            ),
        ),
        full=Budget(steps=6, seeds=2),
        quick=Budget(steps=3, seeds=1),
        judge=_judge,
    )


@pytest.fixture
def lab_run(tmp_path: Path) -> LabRun:
    texts = write_texts(tmp_path / "texts")
    return LabRun(data=(str(texts),), jobs=1, out=tmp_path / "labs", cache_dir=str(tmp_path / "cache"))
