"""Docstrings of the modules of Python's library that are written in C: `python -I -S docstrings.py`.

The file is also a script of its own, using the standard library only: moeworks runs it in a fresh
interpreter, so that importing some seventy extension modules leaves no trace in the caller (readline
touches the terminal, retired modules warn), and so that nothing the caller imported shows in the result.
It prints a JSON list of [module name, text], sorted by name.
"""

import importlib
import importlib.machinery
import importlib.util
import inspect
import json
import os
import re
import sys
from collections.abc import Iterator, Mapping
from types import ModuleType

_BOUND_ARGUMENT = re.compile(r"\$\w+(?:, /)?(?:, )?")


def module_names() -> list[str]:
    """Modules of the standard library that are built in or extensions, so that no .py source exists."""
    return [name for name in sorted(sys.stdlib_module_names) if _is_compiled(name)]


def module_text(module: ModuleType, seen: set[str]) -> str:
    """The docstrings of `module`, its public functions and classes and their public methods.

    Docstrings in `seen` are left out and new ones are added to it; "" when there are none.
    """
    entries = []
    for title, doc in _docstrings(module):
        if doc not in seen:
            seen.add(doc)
            entries.append(f"{title}\n\n{doc}\n")
    return "\n\n".join(entries)


def _is_compiled(name: str) -> bool:
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return False
    if spec is None:
        return False
    return spec.origin == "built-in" or isinstance(spec.loader, importlib.machinery.ExtensionFileLoader)


def _docstrings(module: ModuleType) -> Iterator[tuple[str, str]]:
    name = module.__name__
    yield from _docstring(name, module)
    for member, value in _public(vars(module)):
        yield from _docstring(f"{name}.{member}", value)
        if inspect.isclass(value):
            for method, function in _public(vars(value)):
                yield from _docstring(f"{name}.{member}.{method}", function)


def _public(namespace: Mapping[str, object]) -> Iterator[tuple[str, object]]:
    for name in sorted(namespace):
        if not name.startswith("_") and (
            inspect.isroutine(namespace[name]) or inspect.isclass(namespace[name])
        ):
            yield name, namespace[name]


def _docstring(title: str, value: object) -> Iterator[tuple[str, str]]:
    doc = getattr(value, "__doc__", None)
    if isinstance(doc, str) and doc.strip():
        yield title + _signature(value), inspect.cleandoc(doc)


def _signature(value: object) -> str:
    text = getattr(value, "__text_signature__", None)
    return _BOUND_ARGUMENT.sub("", text) if isinstance(text, str) else ""


def _import(name: str) -> ModuleType | None:
    try:
        return importlib.import_module(name)
    except ImportError:  # its shared library is not on this machine
        return None


def main() -> None:
    """Print the JSON list to standard output, and what the modules print on import to standard error."""
    output = os.dup(1)
    os.dup2(2, 1)
    seen: set[str] = set()
    texts = []
    for name in module_names():
        module = _import(name)
        if module is not None and (text := module_text(module, seen)):
            texts.append([name, text])
    with os.fdopen(output, "w", encoding="utf-8") as file:
        json.dump(texts, file)


if __name__ == "__main__":
    main()
