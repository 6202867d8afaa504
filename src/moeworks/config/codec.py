"""Configs to and from JSON: strict about names and types, so a typo is an error and never a default."""

from collections.abc import Callable, Iterator
from dataclasses import is_dataclass
from types import GenericAlias
from typing import Any, TypeVar, cast, get_args, get_origin, get_type_hints

from cattrs import AttributeValidationNote, BaseValidationError, Converter, IterableValidationNote
from cattrs.errors import ForbiddenExtraKeysError
from cattrs.gen import make_dict_structure_fn

from moeworks.config.types import type_text
from moeworks.errors import ConfigError, nearest

Config = TypeVar("Config")
Hook = Callable[[Any, Any], Any]


def to_dict(config: object) -> dict[str, Any]:
    """`config`, a dataclass, as nested dicts, lists and scalars that json.dumps takes."""
    return _CONVERTER.unstructure(config)


def from_dict(cls: type[Config], data: object, path: str = "") -> Config:
    """A `cls` from what to_dict, or a JSON file, holds; keys that are left out take their defaults.

    Numbers are not converted: 2.5 and True are no int, "3" is no number; an int is a float.
    `path` stands before the dotted paths of messages, for a config that is part of something bigger.

    Raises ConfigError for an unknown key (with the nearest known one), a value of a wrong type, a missing
    key without a default, and a value that breaks a rule of `cls`.
    """
    try:
        return _CONVERTER.structure(data, cls)
    except (BaseValidationError, TypeError) as error:
        raise _explained(error, cls, data, path) from error


# What cattrs does not check by itself.


def _strict_scalar(kind: type, *accepted: type) -> Hook:
    """A hook that takes only values whose type is one of `accepted` and turns them into `kind`."""

    def structure(value: object, _: object) -> object:
        if type(value) not in accepted:
            raise TypeError(f"{value!r} is not {kind.__name__}")
        return kind(value)

    return structure


def _strict_dataclass(cls: type, converter: Converter) -> Hook:
    """The hook that cattrs generates, with a check: it reads a list as a dict without keys."""
    generated = make_dict_structure_fn(cast(Any, cls), converter, _cattrs_forbid_extra_keys=True)

    def structure(value: Any, hint: Any) -> object:
        if not isinstance(value, dict):
            raise TypeError(f"{value!r} is not an object")
        return generated(value, hint)

    return structure


def _strict_tuple(hint: Any, converter: Converter) -> Hook:
    """cattrs' hook for tuple[x, ...], with a check: it reads a string as a list of letters."""
    items = GenericAlias(list, get_args(hint)[:1])

    def structure(value: object, _: object) -> object:
        if not isinstance(value, (list, tuple)):
            raise TypeError(f"{value!r} is not a list")
        return tuple(converter.structure(list(value), cast(Any, items)))

    return structure


def _is_union_of_kinds(hint: Any) -> bool:
    """Whether `hint` is a union of dataclasses that their field `kind` tells apart."""
    members = get_args(hint)
    return (
        len(members) > 1
        and get_origin(hint) is not tuple
        and all(is_dataclass(member) and hasattr(member, "kind") for member in members)
    )


def unions_of_kinds(cls: type, path: str = "") -> Iterator[tuple[str, dict[str, type]]]:
    """The fields of nested dataclasses that come in several kinds: dotted path, and dataclasses by kind."""
    for name, hint in get_type_hints(cls).items():
        here = _join(path, name)
        if _is_union_of_kinds(hint):
            yield here, _members(hint)
        elif is_dataclass(hint):
            yield from unions_of_kinds(cast(type, hint), here)


def _members(hint: Any) -> dict[str, type]:
    return {getattr(member, "kind"): member for member in get_args(hint)}  # noqa: B009


def _union_member(hint: Any, data: object) -> Any:
    """The dataclass of the union `hint` that `data` is for: that of its `kind`, the first without one."""
    kinds = _members(hint)
    kind = data.get("kind", next(iter(kinds))) if isinstance(data, dict) else next(iter(kinds))
    return kinds.get(kind)


def _by_kind(hint: Any, converter: Converter) -> Hook:
    """A hook for a union of dataclasses, chosen by `kind`."""

    def structure(value: Any, _: Any) -> object:
        member = _union_member(hint, value)
        if member is None:
            kind = value["kind"]
            raise ConfigError(f"kind = {kind!r}: unknown; {nearest(str(kind), _members(hint))}")
        return converter.structure(value, member)

    return structure


def _make_converter() -> Converter:
    converter = Converter(forbid_extra_keys=True, unstruct_collection_overrides={tuple: list})
    converter.register_structure_hook(int, _strict_scalar(int, int))
    converter.register_structure_hook(float, _strict_scalar(float, float, int))
    converter.register_structure_hook(bool, _strict_scalar(bool, bool))
    converter.register_structure_hook(str, _strict_scalar(str, str))
    converter.register_structure_hook_factory(is_dataclass, _strict_dataclass)
    converter.register_structure_hook_factory(lambda hint: get_origin(hint) is tuple, _strict_tuple)
    converter.register_structure_hook_factory(_is_union_of_kinds, _by_kind)
    return converter


_CONVERTER = _make_converter()


# From the exceptions of cattrs, a tree of groups with notes, to one message.


def _explained(error: BaseException, hint: Any, data: Any, path: str) -> ConfigError:
    """The first error inside `error`, which came up while reading `data` as a `hint` at `path`."""
    if _is_union_of_kinds(hint):
        hint = _union_member(hint, data) or get_args(hint)[0]
    if isinstance(error, BaseValidationError):
        inner = error.exceptions[0]
        return _explained(inner, *_step(inner, hint, data, path))
    if isinstance(error, ConfigError):
        return error
    if isinstance(error, ForbiddenExtraKeysError):
        key = f"{min(error.extra_fields, key=str)}"  # keys from Python may be no strings
        return ConfigError(f"{_join(path, key)}: unknown field; {nearest(key, get_type_hints(error.cl))}")
    if isinstance(error, KeyError):
        return ConfigError(f"{path}: missing, and it has no default")
    expected = "an object with the fields of " + hint.__name__ if is_dataclass(hint) else type_text(hint)
    return ConfigError(f"{path or 'config'} = {data!r}: must be {expected}")


def _step(inner: BaseException, hint: Any, data: Any, path: str) -> tuple[Any, Any, str]:
    """Hint, data and path of the attribute or item that the notes of `inner` name, if they name one."""
    for note in getattr(inner, "__notes__", ()):
        if isinstance(note, AttributeValidationNote):
            return note.type, data.get(note.name), _join(path, note.name)
        if isinstance(note, IterableValidationNote):
            return note.type, data[note.index], f"{path}[{note.index}]"
    return hint, data, path


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
