"""Filling a model from named tensors."""

from collections.abc import Mapping

from torch import Tensor, nn

from moeworks.errors import CheckpointError

_LISTED = 5


def load_weights(model: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Fill `model`, every parameter and buffer of it.

    Raises CheckpointError that names `source` and the tensors that are missing, extra or misshapen: nothing
    stays at its random start in silence.
    """
    own = model.state_dict()
    problems = [f"{name} is missing" for name in own.keys() - tensors.keys()]
    problems += [f"{name} is unknown to the model" for name in tensors.keys() - own.keys()]
    problems += [
        f"{name} has shape {tuple(tensors[name].shape)}, the model wants {tuple(own[name].shape)}"
        for name in own.keys() & tensors.keys()
        if own[name].shape != tensors[name].shape
    ]
    if problems:
        listed = "; ".join(sorted(problems)[:_LISTED])
        more = f"; and {len(problems) - _LISTED} more" if len(problems) > _LISTED else ""
        raise CheckpointError(f"{source}: a checkpoint of another config: {listed}{more}")
    model.load_state_dict(dict(tensors))
