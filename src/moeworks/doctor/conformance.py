"""docs/conformance.md: what the doctor finds in every MoE family of the installed transformers."""

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata

import torch

from moeworks.doctor.pitfalls import PITFALLS
from moeworks.doctor.subject import Unavailable
from moeworks.doctor.transformers_subject import TransformersSubject
from moeworks.doctor.transformers_tiny import moe_families, tiny_family
from moeworks.doctor.verdict import Diagnosis, Invariant, examine
from moeworks.errors import ConfigError

_SIGNS = {"pass": "✓", "fail": "✗", "not applicable": "·"}
_BREADTH = 14
"""Checks in one table: as many columns as a page takes."""


@dataclass(frozen=True)
class Row:
    """The findings for one family."""

    family: str
    model: str
    diagnosis: Diagnosis | None
    reason: str = ""
    """Why it could not be examined."""


def examine_transformers(
    invariants: Sequence[Invariant], on_row: Callable[[Row, float], None], families: Sequence[str] = ()
) -> list[Row]:
    """A row for each family, one after the other, each forgotten before the next one is built."""
    rows = []
    for family in families or moe_families():
        start = time.perf_counter()
        rows.append(_row(family, invariants))
        gc.collect()
        on_row(rows[-1], time.perf_counter() - start)
    return rows


def _row(family: str, invariants: Sequence[Invariant]) -> Row:
    try:
        with torch.random.fork_rng(devices=[]):
            model = tiny_family(family)
            subject = TransformersSubject(model)
    except (ConfigError, Unavailable) as reason:
        return Row(family, "", None, str(reason))
    return Row(family, subject.name, examine(subject, invariants))


def conformance_page(rows: Sequence[Row], invariants: Sequence[Invariant]) -> str:
    """The page, as Markdown."""
    examined = [row for row in rows if row.diagnosis is not None]
    parts = [
        _head(rows, examined, invariants),
        _summary(examined, invariants),
        "## The table\n\n✓ holds · ✗ does not · a dot: not applicable.\n",
        *_tables(examined, invariants),
        _findings(examined),
        _left_out([row for row in rows if row.diagnosis is None]),
        _checks(invariants),
    ]
    return "\n".join(part for part in parts if part)


def _head(rows: Sequence[Row], examined: Sequence[Row], invariants: Sequence[Invariant]) -> str:
    versions = ", ".join(f"{p} {metadata.version(p)}" for p in ("transformers", "torch", "moeworks"))
    try:
        versions += f", peft {metadata.version('peft')}"
    except metadata.PackageNotFoundError:
        versions += ", without peft"
    return f"""# Is my model's implementation right?

What `moeworks doctor` finds in the MoE families of transformers. Each family's class is built with a tiny
random config (some 3 layers, 12 experts, float32, CPU) and run through {len(invariants)} checks; none of this
needs its published weights. Made by

    moeworks doctor --all-transformers

with {versions}:
{len(examined)} of {len(rows)} families examined. Where it says ✗, look up the family below for the measured
numbers, and the check for what they mean.

A ✗ is a difference to what the check states, not always a bug: some are choices of transformers that a user
has to know, such as a loss that is off until it is asked for. Balance losses are examined as the model
returns them with `output_router_logits=True`, and a training step as its Trainer takes it (with
`num_items_in_batch`). Few of these touch inference with published weights; many touch training.
"""


def _summary(examined: Sequence[Row], invariants: Sequence[Invariant]) -> str:
    lines = ["## What does not hold most often\n"]
    lines.append("| check | families that fail | of applicable | guards against |\n|---|---|---|---|")
    tallies = []
    for number, check in enumerate(invariants):
        verdicts = [row.diagnosis.findings[number].verdict for row in examined if row.diagnosis]
        fails = verdicts.count("fail")
        if fails:
            tallies.append((fails, fails + verdicts.count("pass"), check))
    for fails, applicable, check in sorted(tallies, key=lambda t: (-t[0], t[2].name)):
        reasons = "; ".join(f"{PITFALLS[n]}" for n in check.pitfalls[:2])
        lines.append(
            f"| [{check.name}](#{check.name}) ({check.title}) | {fails} | {applicable} | {reasons} |"
        )
    return "\n".join(lines) + "\n"


def _tables(examined: Sequence[Row], invariants: Sequence[Invariant]) -> list[str]:
    return [
        _table(examined, list(enumerate(invariants))[start : start + _BREADTH])
        for start in range(0, len(invariants), _BREADTH)
    ]


def _table(examined: Sequence[Row], columns: Sequence[tuple[int, Invariant]]) -> str:
    names = " | ".join(f"[{check.name}](#{check.name})" for _, check in columns)
    lines = [f"| family | {names} |", "|---" * (len(columns) + 1) + "|"]
    for row in examined:
        assert row.diagnosis is not None
        signs = " | ".join(_SIGNS[row.diagnosis.findings[n].verdict] for n, _ in columns)
        lines.append(f"| [{row.family}](#family-{row.family.replace('_', '-')}) | {signs} |")
    return "\n".join(lines) + "\n"


def _findings(examined: Sequence[Row]) -> str:
    lines = ["## Family by family\n"]
    for row in examined:
        assert row.diagnosis is not None
        # Anchors of a heading "family x-y" are the same on every renderer.
        lines.append(f"### family {row.family.replace('_', '-')}\n")
        applicable = [f for f in row.diagnosis.findings if f.verdict != "not applicable"]
        failed = row.diagnosis.failed
        lines.append(
            f"`{row.model}`: {len(applicable) - len(failed)} of {len(applicable)} applicable checks hold.\n"
        )
        lines += [f"- ✗ [{f.check}](#{f.check}): {_text(f.message)}" for f in failed]
        lines += [""] if failed else []
    return "\n".join(lines)


def _left_out(rows: Sequence[Row]) -> str:
    if not rows:
        return ""
    lines = ["## Families that could not be examined\n", "| family | reason |", "|---|---|"]
    lines += [f"| {row.family} | {_text(row.reason)} |" for row in rows]
    return "\n".join(lines) + "\n"


def _checks(invariants: Sequence[Invariant]) -> str:
    lines = ["## The checks\n"]
    for check in invariants:
        lines.append(
            f"### {check.name}\n\n{check.title.capitalize()}. {check.explanation}\n\nGuards against:\n"
        )
        lines += [f"- {PITFALLS[n]}" for n in check.pitfalls]
        lines.append("")
    return "\n".join(lines)


def _text(message: str) -> str:
    """Of someone else's error, in a table or a list."""
    return " ".join(message.split()).replace("|", "\\|").replace("<", "&lt;")
