"""The README's examples run, and its tree is the tree."""

import re
import shlex
from pathlib import Path

import pytest

from moeworks.cli.arguments import run_config
from moeworks.cli.main import VERBS
from moeworks.config.presets import PRESETS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")
COMMANDS = re.findall(r"^ {4,}((?:moeworks|torchrun|make) .*)$", README, re.MULTILINE)


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
    if words[0] == "torchrun":
        words = words[words.index("moeworks") :]
    assert words[1] in VERBS
    if words[1] in ("train", "config") and "--resume" not in words:
        options = [w for w in words[2:] if w not in ("--name", "mine")]
        run_config(options, "moeworks")


def test_tree_names_what_is_there() -> None:
    tree = README.split("## What is in the tree")[1].split("\n## ")[0]
    named = set(re.findall(r"^      (\w+(?:/|\.py))", tree, re.MULTILINE))
    package = ROOT / "src" / "moeworks"
    there = {f"{p.name}/" for p in package.iterdir() if (p / "__init__.py").is_file()}
    there |= {p.name for p in package.glob("*.py") if not p.name.startswith("__")}
    assert named == there


def test_presets_it_names_exist() -> None:
    assert {name for name in re.findall(r"moeworks config (\S+)", README) if name[0] != "`"} <= {
        *PRESETS,
        "--list`",
    }
