from typing import Literal, Optional

import pytest

from moeworks.config import TrainConfig
from moeworks.config.types import type_text


@pytest.mark.parametrize(
    ("hint", "text"),
    [
        (int, "int"),
        (str, "str"),
        (float | None, "float or None"),
        (Optional[int], "int or None"),  # noqa: UP045 - the old spelling is another class
        (int | str | None, "int, str or None"),
        (Literal["muon"], "'muon'"),
        (Literal["a", "b", "c"], "'a', 'b' or 'c'"),
        (tuple[str, ...], "list of str"),
        (tuple[int, ...] | None, "list of int or None"),
        (tuple[Literal["x", "y"], ...], "list of 'x' or 'y'"),
        (TrainConfig, "TrainConfig"),
    ],
)
def test_type_in_words(hint, text):
    assert type_text(hint) == text
