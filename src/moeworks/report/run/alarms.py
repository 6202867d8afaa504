"""What the alarms said during a run."""

from dataclasses import dataclass

from moeworks.report.fragments import escape, section, table
from moeworks.report.run.run_data import AlarmRecord, RunData
from moeworks.report.table import Table


@dataclass(frozen=True)
class Episode:
    """From where an alarm was raised to where it ended in the last of its layers."""

    raised: AlarmRecord
    last: int | None
    """The step at which it was over; None where it was on to the end."""


def episodes(alarms: tuple[AlarmRecord, ...]) -> list[Episode]:
    """One per raised record, in their order."""
    found = []
    for index, raised in enumerate(alarms):
        if not raised.raised:
            continue
        left, last = set(raised.layers), None
        for later in alarms[index + 1 :]:
            same = (later.alarm, later.domain, later.raised) == (raised.alarm, raised.domain, False)
            if same and left & set(later.layers):
                left -= set(later.layers)
                last = later.step
            if not left:
                break
        found.append(Episode(raised, None if left else last))
    return found


HEADER = ("Alarm", "From step", "To step", "Layers", "What", "Likely cause", "What to do")


def alarm_table(run: RunData) -> Table | None:
    """A row for each alarm; None where there was none."""
    if not run.alarms:
        return None
    return Table("Alarms", HEADER, [_row(episode) for episode in episodes(run.alarms)])


def no_alarms(run: RunData) -> str:
    """Why there is no alarm, in a sentence; nothing for dense models and where there were alarms."""
    if not run.moe_layers or not run.train or run.alarms:
        return ""
    if not run.config.alarms.enabled:
        return "Alarms were off in this run (alarms.enabled)."
    return (
        "No alarm was raised: no layer collapsed onto few experts, no experts died, router logits and"
        " biases stayed in bounds, and no domain was confined to few experts."
    )


def alarm_section(run: RunData) -> str:
    """A row per alarm, or one sentence where there was none; nothing for dense models."""
    if (sentence := no_alarms(run)) or not run.alarms:
        return section("alarms", "Alarms", "", f"<p>{escape(sentence)}</p>") if sentence else ""
    intro = "Raised while the run went on. The configuration below explains the thresholds, under alarms."
    rows = table("Alarms", HEADER, (_row(e) for e in episodes(run.alarms)), numbers=(1, 2))
    return section("alarms", "Alarms", intro, f'<div class="card wide">{rows}</div>')


def _row(episode: Episode) -> tuple[object, ...]:
    raised = episode.raised
    name = raised.alarm.replace("_", " ")
    return (
        f"{name}: {raised.domain}" if raised.domain else name,
        f"{raised.step:,}",
        "on at the end" if episode.last is None else f"{episode.last:,}",
        ", ".join(map(str, raised.layers)),
        raised.text,
        raised.cause,
        raised.knob,
    )
