"""Run a lab: prepare its corpus, measure the cells that are missing, judge."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path

import torch

from moeworks.config import RunConfig
from moeworks.data.shards import PreparedCorpus, prepare
from moeworks.errors import check
from moeworks.labs.cells import Cell, HeldOutSize, lab_cells
from moeworks.labs.lab import Budget, Lab
from moeworks.labs.results import Results
from moeworks.labs.runner import Advance, run_cells
from moeworks.labs.setting import arm_config
from moeworks.labs.summary import LabSummary, summarise, write_summary

MAX_SEEDS = 10
"""More would be beyond the table of quantiles in intervals.py, and beyond anybody's patience."""
QUICK_HELD_OUT = HeldOutSize(documents=64, tokens=512)


@dataclass(frozen=True, kw_only=True)
class LabRun:
    """How a lab is run."""

    data: tuple[str, ...] = ("stdlib:",)
    """Texts, as for `moeworks train`."""
    seeds: int | None = None
    """Seeds 0 to n - 1; None is the lab's own number."""
    steps: int | None = None
    """Optimizer steps; None is the lab's own number."""
    quick: bool = False
    """The lab's quick budget, and less held-out text."""
    jobs: int = 2
    """Processes, with one thread each."""
    out: Path = Path("labs")
    """Folder of the labs' folders."""
    cache_dir: str | None = None
    """Where tokenised texts are kept; None means ~/.cache/moeworks."""

    def __post_init__(self) -> None:
        seeds, steps = self.seeds, self.steps
        check(seeds is None or 1 <= seeds <= MAX_SEEDS, "seeds", seeds, f"must lie between 1 and {MAX_SEEDS}")
        check(steps is None or steps >= 1, "steps", steps, "must be at least 1")
        check(self.jobs >= 1, "jobs", self.jobs, "must be at least 1")
        check(bool(self.data), "data", self.data, "names no text to train on")

    def budget(self, lab: Lab) -> Budget:
        """Of `lab` in this run."""
        own = lab.quick if self.quick else lab.full
        return Budget(steps=self.steps or own.steps, seeds=self.seeds or own.seeds)


def run_lab(
    lab: Lab,
    run: LabRun,
    *,
    machine: Mapping[str, str],
    plan: Callable[[list[Cell]], Advance],
    tell: Callable[[str], None] = lambda text: None,
) -> LabSummary:
    """Measure what is missing, write results.json (of a quick run: results-quick.json), and return it.

    Other numbers of steps or seeds than the lab's own have a file of their own, named after them.

    Args:
        machine: what to say of the machine, in the results.
        plan: hears all cells, and returns what is to hear of each one's progress.
        tell: hears a line about the corpus now and then.

    Raises DataError for texts that cannot be used.
    """
    budget = run.budget(lab)
    held_out = QUICK_HELD_OUT if run.quick else HeldOutSize()
    config = _corpus_config(lab, run)
    corpus = prepare(config.data, config.corpus, config.model.vocab_size, progress=tell)
    cells = lab_cells(
        lab,
        config.data,
        steps=budget.steps,
        seeds=budget.seeds,
        held_out=held_out,
        corpus=corpus.fingerprint,
        environment=environment(),
        cache_dir=run.cache_dir,
    )
    folder = run.out / lab.name
    outcome = run_cells(cells, folder, jobs=run.jobs, advance=plan(cells))
    results = Results(outcome.records, [arm.name for arm in lab.arms], lab.baseline)
    facts = _facts(config, corpus, budget, held_out) | dict(machine)
    own = lab.quick if run.quick else lab.full
    other = "" if budget == own else f"-{budget.steps}-steps-{budget.seeds}-seeds"
    summary = replace(summarise(lab, results, facts, quick=run.quick), other=other)
    write_summary(folder, summary)
    return summary


def environment() -> dict[str, str]:
    """Versions that a cell's numbers depend on."""
    return {"moeworks": metadata.version("moeworks"), "torch": torch.__version__}


def _corpus_config(lab: Lab, run: LabRun) -> RunConfig:
    return arm_config(lab, lab.arm(lab.baseline), run.data, steps=1, seed=0, cache_dir=run.cache_dir)


def _facts(
    config: RunConfig, corpus: PreparedCorpus, budget: Budget, held_out: HeldOutSize
) -> dict[str, str]:
    model, train = config.model, config.train
    documents = min(held_out.documents, corpus.validation.num_documents)
    data = ", ".join(
        "Python's standard library" if entry == "stdlib:" else Path(entry).name for entry in config.data
    )
    return {
        "texts": f"{data}: {corpus.train.num_tokens:,} tokens to train on, {len(corpus.domains)} domains",
        "judged on": f"{documents} documents that no model saw, the first {held_out.tokens:,} tokens of each",
        "model": f"{model.num_layers} layers of width {model.d_model}, vocabulary {model.vocab_size}",
        "training": f"{budget.steps} steps of {train.batch_size} × {train.seq_len} tokens, Muon",
        "seeds": str(budget.seeds),
        **environment(),
    }
