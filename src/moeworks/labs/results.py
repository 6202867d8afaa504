"""The cells of a lab side by side: what judgements, tables and figures are functions of."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from moeworks.errors import check
from moeworks.labs.intervals import Estimate, bits_per_byte, mean_over_seeds

Record = Mapping[str, Any]
"""What train_cell.py measured in one cell."""


class Results:
    """Records by arm and seed. Arms are compared with equal seeds, on equal documents."""

    def __init__(self, records: Sequence[Record], arms: Sequence[str], baseline: str) -> None:
        """`records` may lack cells of a lab that is not finished, in any order.

        Raises ConfigError for records of an arm that is not in `arms`.
        """
        self.baseline = baseline
        self._records: dict[str, dict[int, Record]] = {arm: {} for arm in arms}
        for record in records:
            check(record["arm"] in self._records, "arm", record["arm"], f"is none of {', '.join(arms)}")
            self._records[record["arm"]][record["seed"]] = record

    @property
    def arms(self) -> tuple[str, ...]:
        """Those with at least one cell."""
        return tuple(arm for arm, seeds in self._records.items() if seeds)

    def cells(self, arm: str) -> list[Record]:
        """The records of one arm, seeds ascending."""
        return [record for _, record in sorted(self._records[arm].items())]

    def diverged(self, arm: str) -> int:
        """Seeds whose loss or gradient stopped being finite."""
        return sum(record["diverged"] is not None for record in self.cells(arm))

    def bits(self, arm: str) -> Estimate | None:
        """Bits per byte on held-out documents over the seeds that did not diverge; None without any."""
        finite = [record for record in self.cells(arm) if record["documents"] is not None]
        if not finite:
            return None
        return bits_per_byte(np.array([record["documents"]["nats"] for record in finite]), _bytes(finite[0]))

    def difference(self, arm: str, other: str | None = None) -> Estimate | None:
        """bits(arm) - bits(other), paired in seeds and documents; `other` defaults to the baseline.

        None when no seed finished in both, or there is no such arm.
        """
        pairs = [
            (one["documents"], two["documents"])
            for one, two in self._pairs(arm, other or self.baseline)
            if one["documents"] is not None and two["documents"] is not None
        ]
        if not pairs:
            return None
        nats_SN = np.array([np.subtract(one["nats"], two["nats"]) for one, two in pairs])
        return bits_per_byte(nats_SN, np.array(pairs[0][0]["bytes"]))

    def metric(self, arm: str, name: str) -> Estimate | None:
        """The mean over seeds of one of the cells' metrics; None where none has it."""
        values = [record["metrics"].get(name) for record in self.cells(arm)]
        return _mean([value for value in values if value is not None])

    def metric_difference(self, arm: str, other: str, name: str) -> Estimate | None:
        """Of the same seeds' metrics."""
        pairs = [(one["metrics"].get(name), two["metrics"].get(name)) for one, two in self._pairs(arm, other)]
        return _mean([one - two for one, two in pairs if one is not None and two is not None])

    def by_layer(self, arm: str, name: str) -> np.ndarray | None:
        """[seeds, l]: a value per MoE layer that the cells have; None where none has it."""
        rows = [record["layers"][name] for record in self.cells(arm) if name in record["layers"]]
        return np.array(rows, dtype=np.float64) if rows else None

    def _pairs(self, arm: str, other: str) -> list[tuple[Record, Record]]:
        one, two = self._records.get(arm, {}), self._records.get(other, {})
        return [(one[seed], two[seed]) for seed in sorted(one.keys() & two.keys())]


def _mean(values: list[float]) -> Estimate | None:
    return mean_over_seeds(np.array(values, dtype=np.float64)) if values else None


def _bytes(record: Record) -> np.ndarray:
    return np.array(record["documents"]["bytes"])
