"""What every field of a config means, read from the strings under its declaration."""

import ast
import inspect
import textwrap
from dataclasses import fields, is_dataclass
from functools import cache
from itertools import pairwise
from types import MappingProxyType
from typing import NamedTuple, get_type_hints

from moeworks.config.types import type_text


class Explanation(NamedTuple):
    """One leaf field of a config."""

    path: str
    """Names from the root, joined by dots."""
    value: object
    doc: str
    """The string under the field's declaration, as one line."""
    type: str
    """Its type in words."""


@cache
def field_docs(cls: type) -> MappingProxyType[str, str]:
    """The docs of the fields of `cls`, own and inherited, by name; fields without one are left out."""
    docs: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if is_dataclass(base):
            docs |= _own_docs(base)
    return MappingProxyType(docs)


def _own_docs(cls: type) -> dict[str, str]:
    tree = ast.parse(textwrap.dedent(inspect.getsource(cls)))
    body = tree.body[0].body if isinstance(tree.body[0], ast.ClassDef) else []
    pairs = pairwise(body)
    return {
        field.target.id: " ".join(inspect.cleandoc(doc.value.value).split())
        for field, doc in pairs
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(doc, ast.Expr)
        and isinstance(doc.value, ast.Constant)
        and isinstance(doc.value.value, str)
    }


def explain(config: object, path: str = "") -> list[Explanation]:
    """Every leaf field of `config`, a dataclass, in the order of declaration; nested configs are opened.

    `path` is the dotted path of `config` itself.
    """
    cls = type(config)
    docs, hints = field_docs(cls), get_type_hints(cls)
    rows: list[Explanation] = []
    for entry in fields(config):  # pyrefly: ignore[bad-argument-type]
        value = getattr(config, entry.name)
        here = f"{path}.{entry.name}" if path else entry.name
        if is_dataclass(value):
            rows += explain(value, here)
        else:
            rows.append(Explanation(here, value, docs.get(entry.name, ""), type_text(hints[entry.name])))
    return rows
