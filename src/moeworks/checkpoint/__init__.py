"""Checkpoints on disk: directories `step-00000400/` of safetensors files and one checkpoint.json, and
published ones, which others wrote or will read.

    names.py    what a checkpoint is called, and which ones a directory holds
    staging.py  directories that appear whole or not at all, and the cleaning up after killed processes
    store.py    write, verify and read one checkpoint
    series.py   the checkpoints of one run: the latest, and pruning

    source.py, safetensors_file.py, quantized.py, gguf_source.py   published tensors, read one at a time
    bindings.py   which view of a model's tensors each of them is
    publish.py    writing them

A reader never sees half a checkpoint, whatever happens to the writer.
"""

from moeworks.checkpoint.names import checkpoint_dir, list_checkpoints, step_of
from moeworks.checkpoint.series import find_latest, latest_checkpoint, prune_checkpoints
from moeworks.checkpoint.store import Checkpoint, read_checkpoint, verify_checkpoint, write_checkpoint

__all__ = [
    "Checkpoint",
    "checkpoint_dir",
    "find_latest",
    "latest_checkpoint",
    "list_checkpoints",
    "prune_checkpoints",
    "read_checkpoint",
    "step_of",
    "verify_checkpoint",
    "write_checkpoint",
]
