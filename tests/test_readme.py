"""The README's examples run, and its tree is the tree."""

import importlib
import re
import shlex
from pathlib import Path

import pytest

from moeworks.cli.main import VERBS
from moeworks.config.presets import PRESETS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")
COMMANDS = re.findall(r"^ {4,}((?:moeworks|torchrun|make|python) .*)$", README, re.MULTILINE)


def test_python_examples_run() -> None:
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(re.sub(r"^   ", "", block, flags=re.MULTILINE), "README.md", "exec"), {})


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_exist(command: str) -> None:
    words = shlex.split(command, comments=True)
    if words[0] == "make":
        assert f"\n{words[1]}:" in (ROOT / "Makefile").read_text("utf-8")
        return
    if words[0] == "python":
        assert (ROOT / words[1]).is_file()
        return
    if words[0] == "torchrun":
        words = words[words.index("moeworks") :]
    assert words[1] in VERBS
    if "--resume" not in words:  # which wants a run that is there
        importlib.import_module(VERBS[words[1]].module).parse(words[2:])


def test_tree_names_what_is_there() -> None:
    tree = README.split("## What is in the tree")[1].split("\n## ")[0]
    named = set(re.findall(r"^      (\w+(?:/|\.py))", tree, re.MULTILINE))
    package = ROOT / "src" / "moeworks"
    there = {f"{p.name}/" for p in package.iterdir() if (p / "__init__.py").is_file()}
    there |= {p.name for p in package.glob("*.py") if not p.name.startswith("__")}
    assert named == there


def test_presets_it_names_exist() -> None:
    assert {name for name in re.findall(r"moeworks config (\S+)", README) if name[0] != "`"} <= {*PRESETS}
