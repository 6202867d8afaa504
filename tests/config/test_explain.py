from dataclasses import dataclass, field, fields, is_dataclass

import pytest

from moeworks.config import MoEConfig, RouterConfig, RunConfig
from moeworks.config.explain import Explanation, explain, field_docs


@dataclass(frozen=True)
class Inner:
    width: int = 3
    """How
    wide."""
    bare: int = 0


@dataclass(frozen=True)
class Outer:
    name: str | None = None
    """What it is called."""
    inner: Inner = field(default_factory=Inner)


@dataclass(frozen=True)
class Child(Inner):
    depth: int = 1
    """How deep."""
    bare: int = 5
    """Now it has one."""


def test_docs_are_the_strings_under_the_fields_joined_to_one_line():
    assert dict(field_docs(Inner)) == {"width": "How wide."}


def test_docs_of_inherited_fields_come_along_and_a_child_may_replace_them():
    assert dict(field_docs(Child)) == {
        "width": "How wide.",
        "depth": "How deep.",
        "bare": "Now it has one.",
    }


def test_flat_moe_config_has_the_docs_of_its_groups():
    docs = field_docs(MoEConfig)
    assert set(docs) == {entry.name for entry in fields(MoEConfig)}
    assert docs["top_k"] == field_docs(RouterConfig)["top_k"] == "Experts per token (K)."


def test_explain_opens_nested_configs_in_order():
    assert explain(Outer(inner=Inner(width=7))) == [
        Explanation("name", None, "What it is called.", "str or None"),
        Explanation("inner.width", 7, "How wide.", "int"),
        Explanation("inner.bare", 0, "", "int"),
    ]


def test_explain_puts_the_given_path_in_front():
    assert [row.path for row in explain(Inner(), "a.b")] == ["a.b.width", "a.b.bare"]


def leaf_paths(config: object, path: str = "") -> list[str]:
    if not is_dataclass(config):
        return [path]
    return [
        leaf
        for entry in fields(config)
        for leaf in leaf_paths(getattr(config, entry.name), f"{path}.{entry.name}".lstrip("."))
    ]


def test_every_leaf_field_of_a_run_is_explained():
    rows = explain(RunConfig())
    assert [row.path for row in rows] == leaf_paths(RunConfig())
    assert [row.path for row in rows if not row.doc] == []


@pytest.mark.parametrize(
    ("path", "value", "type_"),
    [
        ("data", ("stdlib:",), "list of str"),
        ("model.router.top_k", 2, "int"),
        ("model.pattern.explicit", None, "list of int or None"),
        ("optimizer.name", "muon", "'muon' or 'adamw'"),
        ("train.threads", None, "int or None"),
    ],
)
def test_rows_of_a_run(path, value, type_):
    row = next(row for row in explain(RunConfig()) if row.path == path)
    assert (row.value, row.type) == (value, type_)
