"""Models from disk."""

from pathlib import Path

import torch

from moeworks.checkpoint import latest_checkpoint, read_checkpoint
from moeworks.config import RunConfig
from moeworks.config.codec import from_dict
from moeworks.errors import CheckpointError, ConfigError
from moeworks.models.decoder import Decoder
from moeworks.models.weights import load_weights


def load(path: str | Path, *, device: torch.device | str = "cpu") -> Decoder:
    """The model of a run's latest checkpoint, or of one checkpoint, in evaluation mode.

    Args:
        path: a run's folder (`runs/NAME`) or one of its checkpoints (`runs/NAME/checkpoints/step-00000100`).
        device: where the model goes.

    Raises CheckpointError when there is none, or it is damaged.
    """
    directory = find_checkpoint(Path(path))
    checkpoint = read_checkpoint(directory)
    try:
        config = from_dict(RunConfig, checkpoint.state["config"])
    except ConfigError as error:
        raise CheckpointError(f"{directory}: {error}") from error
    model = Decoder(config.model)
    if config.train.precision == "float64":
        model = model.double()
    load_weights(model, checkpoint.tensors["model"], str(directory))
    return model.to(device).eval()


def find_checkpoint(path: Path) -> Path:
    """`path` itself if it is a checkpoint, else the latest one of the run there."""
    if (path / "checkpoint.json").is_file():
        return path
    if not (path / "config.json").is_file():
        raise CheckpointError(f"{path}: neither a run (config.json) nor a checkpoint (checkpoint.json)")
    return latest_checkpoint(path / "checkpoints")
