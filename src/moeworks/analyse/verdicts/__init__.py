"""What figures say in words: each verdict with the test that noise does not pass.

A verdict compares a statistic with its null, corrected for how many things were looked at, and says so. On
top of that an effect must be large enough to be worth telling. tests/analyse/verdicts/test_noise.py measures
on traces of noise that no test fires more often than it says.

record        the records
trace         all verdicts on a trace, in order
balance       dead experts, evenness, batches
confidence    weights, entropy, overruled choices
domains       domains and words
text          neighbours, documents, positions
pairs         experts that work together
comparison    two traces
training      verdicts on the curves and counts of a training run
"""

from moeworks.analyse.verdicts.record import Level, Test, Verdict
from moeworks.analyse.verdicts.trace import judge_trace

__all__ = ["Level", "Test", "Verdict", "judge_trace"]
