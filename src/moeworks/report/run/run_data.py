"""What a training run left on disk, checked and turned into records.

A run directory holds config.json (a RunConfig), metrics.jsonl (a line per logged step, routing count or
validation) and, once the run is finished, summary.json.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from moeworks.config import RunConfig
from moeworks.config.codec import from_dict
from moeworks.errors import ConfigError, DataError
from moeworks.report.run.json_fields import Fields, parse_object, read_object


@dataclass(frozen=True)
class TrainRecord:
    """One logged step. The tuples have one value per MoE layer."""

    step: int
    seconds: float
    tokens: int
    loss: float
    """Cross-entropy in nats per token, balance losses not included."""
    learning_rate: float
    grad_norm: float
    tokens_per_second: float
    balance: dict[str, float]
    """Raw balance losses by name: 1.0 is balanced, but for "z", whose best value is 0."""
    max_vio: tuple[float, ...]
    dead_experts: tuple[float, ...]
    load_entropy: tuple[float, ...]
    dropped: tuple[float, ...]


@dataclass(frozen=True)
class RoutingRecord:
    """Assignments per expert since the previous such record: int64 [MoE layers, E]."""

    step: int
    tokens_per_expert: np.ndarray


@dataclass(frozen=True)
class AlarmRecord:
    """An alarm that was raised, or has ended."""

    step: int
    alarm: str
    raised: bool
    layers: tuple[int, ...]
    domain: str
    text: str
    cause: str
    """"" where it has ended, as in `knob`."""
    knob: str


@dataclass(frozen=True)
class DomainEval:
    """Validation of one domain."""

    bits_per_byte: float
    bytes: int
    tokens: int


@dataclass(frozen=True)
class EvalRecord:
    """One validation. `loss` in nats per token."""

    step: int
    seconds: float
    loss: float
    bits_per_byte: float
    domains: dict[str, DomainEval]

    @property
    def tokens(self) -> int:
        """Number of tokens that were read; 0 where domains are not recorded."""
        return sum(domain.tokens for domain in self.domains.values())


@dataclass(frozen=True)
class Summary:
    """What is known once a run is finished."""

    name: str
    seconds: float
    steps: int
    tokens: int
    total_parameters: int
    active_parameters: int
    eval: EvalRecord
    domain_tokens_per_expert: dict[str, np.ndarray]
    """Assignments over the validation set, by domain: int64 [MoE layers, E]."""
    sample_prompt: str
    sample_text: str
    machine: dict[str, str]


@dataclass(frozen=True)
class RunData:
    """A whole run; `summary` is None while it is unfinished."""

    name: str
    config: RunConfig
    train: tuple[TrainRecord, ...]
    routing: tuple[RoutingRecord, ...]
    evals: tuple[EvalRecord, ...]
    summary: Summary | None
    alarms: tuple[AlarmRecord, ...] = ()
    """In the order in which they were told."""

    @property
    def moe_layers(self) -> tuple[int, ...]:
        """Indices of the layers that hold a MoE; empty for a dense model."""
        return self.config.model.moe_layers

    @property
    def last_eval(self) -> EvalRecord | None:
        """The final validation, or the latest one of an unfinished run."""
        if self.summary is not None:
            return self.summary.eval
        return self.evals[-1] if self.evals else None


def _train_record(line: Fields, layers: int) -> TrainRecord:
    balance = line.object("balance")
    return TrainRecord(
        step=line.count("step"),
        seconds=line.number("seconds"),
        tokens=line.count("tokens"),
        loss=line.number("loss"),
        learning_rate=line.number("learning_rate"),
        grad_norm=line.number("grad_norm"),
        tokens_per_second=line.number("tokens_per_second"),
        balance={name: balance.number(name) for name in balance.values},
        max_vio=line.numbers("max_vio", layers),
        dead_experts=line.numbers("dead_experts", layers),
        load_entropy=line.numbers("load_entropy", layers),
        dropped=line.numbers("dropped", layers),
    )


def _routing_record(line: Fields, layers: int) -> RoutingRecord:
    return RoutingRecord(line.count("step"), line.counts("tokens_per_expert", layers))


def _alarm_record(line: Fields) -> AlarmRecord:
    raised = line.text("state") == "raised"
    return AlarmRecord(
        step=line.count("step"),
        alarm=line.text("alarm"),
        raised=raised,
        layers=line.indices("layers"),
        domain=line.text("domain"),
        text=line.text("text"),
        cause=line.text("cause") if raised else "",
        knob=line.text("knob") if raised else "",
    )


def _eval_record(line: Fields) -> EvalRecord:
    domains = {
        name: DomainEval(entry.number("bits_per_byte"), entry.count("bytes"), entry.count("tokens"))
        for name, entry in line.objects("domains").items()
    }
    return EvalRecord(
        step=line.count("step"),
        seconds=line.number("seconds"),
        loss=line.number("loss"),
        bits_per_byte=line.number("bits_per_byte"),
        domains=domains,
    )


def _read_lines(path: Path) -> list[Fields]:
    """The objects of a .jsonl file. A last line cut off by a kill is left out; any other is an error."""
    if not path.exists():  # nothing logged yet
        return []
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    lines = [(n, text) for n, text in enumerate(content.split(b"\n"), 1) if text.strip()]
    objects = []
    for number, text in lines:
        try:
            objects.append(parse_object(text, f"{path} line {number}"))
        except DataError:
            if number != lines[-1][0]:
                raise
    return objects


Record = TypeVar("Record", TrainRecord, RoutingRecord, EvalRecord)


def _latest(records: list[Record]) -> tuple[Record, ...]:
    """Records in ascending steps: a resumed run logs some steps again, and the later line counts."""
    kept: list[Record] = []
    for record in records:
        while kept and kept[-1].step >= record.step:
            kept.pop()
        kept.append(record)
    return tuple(kept)


def _read_summary(path: Path, layers: int) -> Summary | None:
    if not path.exists():
        return None
    summary = read_object(path)
    parameters, sample, machine = (summary.object(name) for name in ("parameters", "sample", "machine"))
    domains = summary.object("domain_tokens_per_expert")
    return Summary(
        name=summary.text("name"),
        seconds=summary.number("seconds"),
        steps=summary.count("steps"),
        tokens=summary.count("tokens"),
        total_parameters=parameters.count("total"),
        active_parameters=parameters.count("active"),
        eval=_eval_record(summary.object("eval")),
        domain_tokens_per_expert={name: domains.counts(name, layers) for name in domains.values if layers},
        sample_prompt=sample.text("prompt"),
        sample_text=sample.text("text"),
        machine={name: str(value) for name, value in machine.values.items()},
    )


def _check_columns(run: RunData, path: Path) -> None:
    """All counts are of the same number of experts."""
    matrices = [record.tokens_per_expert for record in run.routing]
    if run.summary is not None:
        matrices += run.summary.domain_tokens_per_expert.values()
    found = sorted({matrix.shape[1] for matrix in matrices})
    if len(found) > 1:
        raise DataError(
            f"{path}: tokens_per_expert counts {found[0]} experts in one place and {found[-1]} in another"
        )


def _read_config(path: Path) -> RunConfig:
    try:
        return from_dict(RunConfig, dict(read_object(path).values))
    except ConfigError as error:
        raise DataError(f"{path}: {error}") from error


def read_run(run_dir: Path) -> RunData:
    """Read a run directory, finished or not, of a MoE or of a dense model.

    Lines of metrics.jsonl of a kind not known here are left out. Raises DataError, naming file and line, for
    a missing or unreadable config.json and for any line or field that is not what it must be.
    """
    config = _read_config(run_dir / "config.json")
    layers = len(config.model.moe_layers)
    lines = _read_lines(run_dir / "metrics.jsonl")
    kinds = [(line.text("kind"), line) for line in lines]
    summary = _read_summary(run_dir / "summary.json", layers)
    run = RunData(
        name=summary.name if summary else run_dir.resolve().name,
        config=config,
        train=_latest([_train_record(line, layers) for kind, line in kinds if kind == "train"]),
        routing=_latest(
            [_routing_record(line, layers) for kind, line in kinds if kind == "routing" and layers]
        ),
        evals=_latest([_eval_record(line) for kind, line in kinds if kind == "eval"]),
        summary=summary,
        alarms=tuple(_alarm_record(line) for kind, line in kinds if kind == "alarm"),
    )
    _check_columns(run, run_dir)
    return run
