"""Nowhere does reading a file run code: what may unpickle, import, evaluate or ask says that it must not."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = sorted((ROOT / "src").rglob("*.py"))
ALL = sorted(path for folder in ("src", "benchmarks", "tests") for path in (ROOT / folder).rglob("*.py"))

REQUIRED = {
    "from_pretrained": ("trust_remote_code", False),
    "from_config": ("trust_remote_code", False),
    "load_dataset": ("trust_remote_code", False),
    "np.load": ("allow_pickle", False),
    "torch.load": ("weights_only", True),
}
"""What a call must say, by its last name, or by its last two."""

FORBIDDEN = {
    "eval", "exec", "input", "pickle.load", "pickle.loads", "pickle.Unpickler", "marshal.loads",
    "shelve.open", "yaml.load", "yaml.unsafe_load", "runpy.run_path", "runpy.run_module", "hub.load",
    "joblib.load", "os.system", "jinja2.Template", "jinja2.Environment", "cpp_extension.load", "read_pickle",
}  # fmt: skip
"""Not in src/ at all."""

IMPORTERS = {
    "moeworks/__init__.py": "the public names, of a table",
    "moeworks/errors.py": "optional packages, of string constants",
    "moeworks/cli/main.py": "verbs, of a table",
    "moeworks/cli/completion.py": "verbs, of the same table",
    "moeworks/cli/listing.py": "lists, of a table",
    "moeworks/cli/diagnosis.py": "a module of moeworks",
    "moeworks/data/docstrings.py": "the standard library, in a process of its own",
    "moeworks/doctor/find.py": "`doctor module:attribute`, which the user typed",
    "moeworks/doctor/transformers_tiny.py": "families of transformers, by its own list",
}
"""Who imports by name, and what decides about the name. A file that is read never does."""


def calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    """The calls of a module, each with its last two names: `np.load`, or `open`."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Call):
            yield ".".join(ast.unparse(node.func).split(".")[-2:]), node


def keyword(call: ast.Call, name: str) -> object:
    """The constant that a call gives as `name`."""
    found = [word.value for word in call.keywords if word.arg == name]
    return found[0].value if found and isinstance(found[0], ast.Constant) else None


def missing(path: Path) -> list[str]:
    """The calls that do not say what they must."""
    faults = []
    for name, call in calls(path):
        wanted = REQUIRED.get(name) or REQUIRED.get(name.rpartition(".")[2] if "." in name else "")
        if wanted and keyword(call, wanted[0]) is not wanted[1]:
            faults.append(f"{path.name}:{call.lineno}: {name} must be given {wanted[0]}={wanted[1]}")
    return faults


def test_every_call_that_could_run_code_says_no():
    assert [fault for path in ALL for fault in missing(path)] == []


def test_nothing_evaluates_unpickles_or_asks():
    faults = [
        f"{path.name}:{call.lineno}: {name}"
        for path in SOURCES
        for name, call in calls(path)
        if name in FORBIDDEN or name.removeprefix("builtins.") in FORBIDDEN
    ]
    assert faults == []


def test_only_known_places_import_by_name():
    importers = {
        str(path.relative_to(ROOT / "src"))
        for path in SOURCES
        if any(name.endswith(("import_module", "__import__")) for name, _ in calls(path))
    }
    assert importers == set(IMPORTERS)


def test_processes_of_ours_leave_stdin_alone():
    started = [
        (path, call)
        for path in SOURCES
        for name, call in calls(path)
        if name in ("subprocess.run", "subprocess.Popen", "subprocess.check_output")
    ]
    assert started
    for path, call in started:
        assert {"stdin", "input"} & {word.arg for word in call.keywords}, f"{path.name}:{call.lineno}"


@pytest.mark.parametrize(
    ("line", "faulty"),
    [
        ("AutoConfig.from_pretrained(folder)", True),
        ("AutoConfig.from_pretrained(folder, trust_remote_code=None)", True),
        ("AutoConfig.from_pretrained(folder, trust_remote_code=trust)", True),
        ("AutoConfig.from_pretrained(folder, trust_remote_code=False)", False),
        ("np.load(path)", True),
        ("np.load(path, allow_pickle=False)", False),
        ("torch.load(path)", True),
    ],
)
def test_the_search_itself(tmp_path, line, faulty):
    (tmp_path / "a.py").write_text(line)
    assert bool(missing(tmp_path / "a.py")) == faulty
