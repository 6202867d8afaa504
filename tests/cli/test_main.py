import importlib
import os
import subprocess
import sys
from importlib import metadata
from types import ModuleType

import pytest

from moeworks.cli.main import BROKEN_PIPE, INTERRUPTED, VERBS, Verb, main
from moeworks.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    MissingDependencyError,
    MoeworksError,
    TrainingError,
)


def python(code: str, *argv: str, **options) -> subprocess.CompletedProcess[str]:
    """Run `code` in a fresh interpreter."""
    command = [sys.executable, "-c", code, *argv]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, **options)


@pytest.fixture
def verb(monkeypatch):
    """Gives the table a verb "fake" that runs the function it is called with."""

    def install(run) -> None:
        module = ModuleType("fake_verb")
        module.parse = lambda argv: argv
        module.run = run
        monkeypatch.setitem(sys.modules, "fake_verb", module)
        monkeypatch.setitem(VERBS, "fake", Verb("fake_verb", "fake_verb", "a fake"))

    return install


# What is imported.

HEAVY = "{'torch', 'tyro', 'rich', 'cattrs', 'numpy', 'plotly', 'pyarrow'}"


@pytest.mark.parametrize(
    "modules",
    [
        "moeworks.cli.main",
        "moeworks.config, moeworks.config.codec, moeworks.config.explain, moeworks.config.presets",
    ],
)
def test_import_without_torch(modules):
    done = python(f"import sys, {modules}; print('torch' in sys.modules)")
    assert (done.stdout, done.stderr) == ("False\n", "")


def test_help_imports_nothing_heavy():
    code = (
        f"import sys; from moeworks.cli.main import main; main(['--help']); print({HEAVY} & set(sys.modules))"
    )
    assert python(code).stdout.endswith("set()\n")


@pytest.mark.parametrize(
    "argv",
    [["config"], ["info", "deepseek-v3"], ["plan", "mixtral-8x7b"], ["plan", "smoke", "--tokens", "1B"]],
)
def test_verbs_that_count_run_without_torch(argv):
    code = f"import sys; from moeworks.cli.main import main; main({argv}); print('torch' in sys.modules)"
    done = python(code)
    assert done.stdout.endswith("False\n"), done.stderr


@pytest.mark.parametrize(
    "argv",
    [
        ["train", "--help"],
        ["train", "--model.router.topk", "2"],
        ["generate", "-h"],
        ["info", "-h"],
        ["plan", "-h"],
    ],
)
def test_help_and_slips_of_a_verb_answer_without_torch(argv):
    code = f"""
import sys
from moeworks.cli.main import main
try:
    main({argv})
finally:
    print('torch' in sys.modules)
"""
    assert python(code).stdout.endswith("False\n")


# Help and version.


@pytest.mark.parametrize("argv", [[], ["-h"], ["--help"]])
def test_help_lists_every_verb_with_its_line(argv, capsys):
    assert main(argv) == 0
    out = capsys.readouterr().out
    assert out.startswith("usage: moeworks VERB")
    for name, entry in VERBS.items():
        assert f"  {name:<10} {entry.summary}\n" in out


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"moeworks {metadata.version('moeworks')}\n"


def test_python_m_moeworks_is_the_same_program():
    done = subprocess.run([sys.executable, "-m", "moeworks", "--help"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: moeworks VERB")


@pytest.mark.parametrize("name", VERBS)
def test_every_verb_names_its_functions(name):
    assert callable(importlib.import_module(VERBS[name].module).parse)
    assert callable(importlib.import_module(VERBS[name].work).run)


# Verbs.


def test_verb_gets_the_arguments_after_its_name(verb):
    seen = []
    verb(lambda argv: seen.append(argv))
    assert main(["fake", "a", "--b", "c"]) == 0
    assert seen == [["a", "--b", "c"]]


@pytest.mark.parametrize(("returned", "code"), [(None, 0), (0, 0), (3, 3)])
def test_exit_code_is_what_the_verb_returns(verb, returned, code):
    verb(lambda argv: returned)
    assert main(["fake"]) == code


def test_arguments_of_the_process_are_the_default(verb, monkeypatch):
    seen = []
    verb(lambda argv: seen.append(argv))
    monkeypatch.setattr(sys, "argv", ["moeworks", "fake", "x"])
    assert main() == 0
    assert seen == [["x"]]


# Errors.


def fail_with(error: BaseException):
    def run(argv: list[str]) -> int:
        raise error

    return run


@pytest.mark.parametrize(
    "kind",
    [MoeworksError, ConfigError, DataError, CheckpointError, TrainingError, MissingDependencyError],
)
def test_error_is_one_line_and_code_2_without_traceback(verb, capsys, kind):
    verb(fail_with(kind("field = 3: the rule")))
    assert main(["fake"]) == 2
    captured = capsys.readouterr()
    assert captured.err == "moeworks: error: field = 3: the rule\n"
    assert captured.out == ""


@pytest.mark.parametrize("argv", [["--debug", "fake"], ["fake", "--debug"], ["fake", "x", "--debug", "y"]])
def test_debug_anywhere_adds_the_traceback_and_keeps_the_code(verb, capsys, argv):
    verb(fail_with(DataError("no text")))
    assert main(argv) == 2
    err = capsys.readouterr().err
    assert err.startswith("Traceback (most recent call last):")
    assert err.endswith("moeworks: error: no text\n")


def test_debug_does_not_reach_the_verb(verb):
    seen = []
    verb(lambda argv: seen.append(argv))
    main(["fake", "--debug", "x"])
    assert seen == [["x"]]


def test_unknown_verb_names_the_nearest(capsys):
    assert main(["trian"]) == 2
    assert capsys.readouterr().err == "moeworks: error: unknown verb 'trian'; did you mean 'train'?\n"


def test_unknown_verb_far_from_all_lists_them(capsys):
    assert main(["zzz"]) == 2
    assert capsys.readouterr().err.endswith(f"known: {', '.join(sorted(VERBS))}\n")


def test_error_in_the_program_itself_is_not_hidden(verb):
    verb(fail_with(RuntimeError("a bug")))
    with pytest.raises(RuntimeError, match="a bug"):
        main(["fake"])


def test_interrupt_leaves_with_130_and_no_traceback(verb, capsys):
    verb(fail_with(KeyboardInterrupt()))
    assert main(["fake"]) == INTERRUPTED == 130
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("argv", [["--help"], ["config"]])
def test_broken_pipe_leaves_quietly(argv):
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "moeworks", *argv], stdout=writer, stderr=subprocess.PIPE, text=True
        )
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (BROKEN_PIPE, "")
