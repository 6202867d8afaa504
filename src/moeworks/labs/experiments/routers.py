"""Lab 3: how much of the gain is sparsity, and how much is the router."""

from moeworks.labs.curves import load_over_training, loss_against
from moeworks.labs.judging import Judgement, all_of, below
from moeworks.labs.lab import Arm, Budget, Column, Lab
from moeworks.labs.results import Results
