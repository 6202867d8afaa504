"""What a training run shows while it runs: a live line on a terminal, plain lines elsewhere."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

from moeworks.cli.output import text_column
from moeworks.cli.streams import is_quiet


class TrainingDisplay:
    """Loss, speed, balance and time left; and a line for each validation."""

    def __init__(
        self, console: Console, total_steps: int, start_step: int, alarms: Mapping[str, Any] | None = None
    ) -> None:
        """A display of a run of `total_steps`, of which `start_step` are done.

        Args:
            console: where it shows; with --quiet only alarms are shown.
            alarms: Progress.alarms of a run that is continued.
        """
        self._console, self._total, self._quiet = console, total_steps, is_quiet()
        # Alarm, layer, domain.
        self._alarms = {tuple(key.split("/", 2)) for key in (alarms or {}).get("active", ())}
        self._live: Progress | None = None
        if console.is_terminal and not self._quiet:
            self._live = Progress(
                MofNCompleteColumn(),
                BarColumn(bar_width=20),
                text_column("{task.fields[figures]}"),
                TimeRemainingColumn(),
                console=console,
            )
            self._task = self._live.add_task("train", total=total_steps, completed=start_step, figures="")

    def __enter__(self) -> "TrainingDisplay":
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._live is not None:
            self._live.stop()

    def step(self, step: int) -> None:
        """Count a finished step."""
        if self._live is not None:
            self._live.update(self._task, completed=step)

    def record(self, record: dict[str, Any]) -> None:
        """Show a record of metrics.jsonl."""
        if record["kind"] == "alarm":
            self._alarm(record)
        elif self._quiet:
            return
        elif record["kind"] == "eval":
            self._console.print(validation_line(record))
        elif record["kind"] == "train":
            figures = training_figures(record) + self._alarms_on()
            if self._live is not None:
                self._live.update(self._task, figures=figures)
            else:
                left = _time_left(record, self._total)
                self._console.print(f"step {record['step']}/{self._total}  {figures}  {left}")

    def _alarm(self, record: dict[str, Any]) -> None:
        keys = {(record["alarm"], str(layer), record["domain"]) for layer in record["layers"]}
        self._alarms = self._alarms | keys if record["state"] == "raised" else self._alarms - keys
        self._console.print(alarm_line(record))

    def _alarms_on(self) -> str:
        names = sorted({name for name, _, _ in self._alarms})
        return "".join(f"  ! {name.replace('_', ' ')}" for name in names)


def validation_line(record: dict[str, Any]) -> str:
    """A validation during training in words: on how much text, for the last one reads more of it."""
    tokens = sum(domain["tokens"] for domain in record["domains"].values())
    return (
        f"step {record['step']}: validation {record['bits_per_byte']:.4f} bits per byte"
        f" (on {tokens:,} tokens of held-out text)"
    )


def alarm_line(record: dict[str, Any]) -> str:
    """An alarm record in words: what, where, why, and what to do."""
    name = record["alarm"].replace("_", " ")
    layers = ", ".join(map(str, record["layers"]))
    where = f"layer{'s' if len(record['layers']) > 1 else ''} {layers}"
    if record["domain"]:
        where += f", domain {record['domain']}"
    if record["state"] == "ended":
        return f"step {record['step']}: {name} is over ({where})"
    return (
        f"step {record['step']}: ALARM {name} ({where}): {record['text']}. Likely cause: {record['cause']}."
        f" To do: {record['knob']}"
    )


def training_figures(record: dict[str, Any]) -> str:
    """loss, tokens/s and, for a MoE, the worst layer's MaxVio and all dead experts."""
    figures = f"loss {record['loss']:.4f}  {record['tokens_per_second']:,.0f} tok/s"
    if record["max_vio"]:
        figures += f"  MaxVio {max(record['max_vio']):.2f}  dead {sum(record['dead_experts'])}"
    return figures


def _time_left(record: dict[str, Any], total_steps: int) -> str:
    seconds = record["seconds"] / record["step"] * (total_steps - record["step"])
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d} left"
