"""Importing this package registers every operation, in the order of --list."""

from suite.operations import layer, layer_memory, routers, train_step, preset_step, contention, loading  # noqa: I001

__all__ = ["contention", "layer", "layer_memory", "loading", "preset_step", "routers", "train_step"]
