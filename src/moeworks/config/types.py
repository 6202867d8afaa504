"""Type annotations in words, for explanations and error messages."""

from types import NoneType, UnionType
from typing import Literal, Union, get_args, get_origin


def type_text(hint: object) -> str:
    """`hint` in plain words.

    >>> type_text(tuple[int, ...] | None)
    'list of int or None'
    >>> type_text(Literal["cosine", "wsd"])
    "'cosine' or 'wsd'"
    """
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return _either([repr(value) for value in arguments])
    if origin in (Union, UnionType):
        return _either([type_text(argument) for argument in arguments])
    if origin is tuple:
        return f"list of {type_text(arguments[0])}"
    if hint is NoneType:
        return "None"
    return hint.__name__ if isinstance(hint, type) else str(hint)


def _either(words: list[str]) -> str:
    if len(words) == 1:
        return words[0]
    return f"{', '.join(words[:-1])} or {words[-1]}"
