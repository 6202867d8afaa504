"""Comparisons with transformers; skipped where it is not installed."""

import importlib.util
from pathlib import Path

import pytest

collect_ignore_glob = [] if importlib.util.find_spec("transformers") else ["*.py"]


@pytest.fixture(scope="session")
def saved_models(tmp_path_factory: pytest.TempPathFactory):
    """A function from the name of a tiny model to the transformers model and a folder that it saved."""
    from parity_models import tiny_model  # noqa: PLC0415 - only where transformers is installed

    made: dict = {}

    def get(name: str) -> tuple:
        if name not in made:
            model = tiny_model(name)
            folder: Path = tmp_path_factory.mktemp(name)
            model.save_pretrained(folder)
            made[name] = model, folder
        return made[name]

    return get
