"""How often each verdict of `moeworks inspect` fires on traces of noise, more of them than the tests look at.

    python benchmarks/noise_verdicts.py --traces 1000      # of each kind of noise; minutes each on a core

Prints a line for each kind and each verdict of tests/analyse/verdicts/test_noise.py that is no truth of the
kind: how many traces were told it, and the share that its tests state, 5 %.
"""

import argparse
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "analyse" / "verdicts"))

from noise import KINDS, noise
from test_noise import ALARMS, fires

from moeworks.analyse.inspection import inspect_trace
from moeworks.analyse.verdicts import judge_trace


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--traces", type=int, default=1000, help="of each kind")
    traces = parser.parse_args().traces
    for kind in KINDS:
        told: Counter[str] = Counter()
        for seed in range(traces):
            verdicts = judge_trace(inspect_trace(noise(kind, 10_000 + seed)))
            told.update(name for name, words in ALARMS.items() if fires(verdicts, kind, words))
        rates = ", ".join(f"{name} {told[name] / traces:.3f}" for name in ALARMS)
        print(f"{kind}: {rates}", flush=True)


if __name__ == "__main__":
    main()
