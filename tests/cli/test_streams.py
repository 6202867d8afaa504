"""Hostile streams x verbs: what prints never stops what works, and what only prints ends quietly."""

import errno
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny_tokenizers import write_folder

from moeworks.cli.main import BROKEN_PIPE, FAILED, VERBS, main
from moeworks.cli.output import console
from moeworks.cli.streams import OutputLost, SafeStream, protected

NUMBERS = {
    "gone": errno.EPIPE, "terminal gone": errno.EIO, "full": errno.ENOSPC, "read only": errno.EBADF,
}  # fmt: skip


class Refusing(io.StringIO):
    """A stream that takes `room` characters and then fails as the system does."""

    def __init__(self, number: int, room: int = 0) -> None:
        super().__init__()
        self._number, self._room = number, room

    def write(self, text: str) -> int:
        self._room -= len(text)
        if self._room < 0:
            raise OSError(self._number, os.strerror(self._number))
        return super().write(text)


def closed() -> io.StringIO:
    stream = io.StringIO()
    stream.close()
    return stream


def encoded(encoding: str) -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(), encoding=encoding)


STREAMS: dict[str, Callable[[], Any]] = {
    **{name: lambda number=number: Refusing(number) for name, number in NUMBERS.items()},
    "gone later": lambda: Refusing(errno.EPIPE, room=5),
    "closed by somebody": closed,
    "closed before the start": lambda: None,
    "ascii": lambda: encoded("ascii"),
    "cp1252": lambda: encoded("cp1252"),
}
ENDS_PRINTING = {
    "gone": BROKEN_PIPE, "gone later": BROKEN_PIPE, "terminal gone": BROKEN_PIPE,
    "closed by somebody": BROKEN_PIPE, "full": FAILED, "read only": FAILED,
}  # fmt: skip
"""Exit codes of verbs that only print, on the streams that lose something; 0 on the others."""


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("streams") / "m"
    write_folder(folder)
    return folder


@pytest.fixture(scope="module")
def texts_of_brackets(tmp_path_factory) -> Path:
    """Texts whose domains look like markup, an emoji and an escape sequence, and are in no code page."""
    path = tmp_path_factory.mktemp("brackets") / "d.jsonl"
    names = ("[/b]", "[red]", ":smile:", "\x1b[2J", "語")
    lines = [
        {"text": f"text {number} of {names[number % 5]}\n" * 9, "dom": names[number % 5]}
        for number in range(40)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture(scope="module")
def traced(finished, texts_of_brackets, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("traced") / "[red].parquet"
    argv = [
        "trace",
        str(finished),
        "--data",
        str(texts_of_brackets),
        "--domain-field",
        "dom",
        "-o",
        str(path),
    ]
    assert main(argv) == 0
    return path


COMMANDS: dict[str, str] = {
    "help": "--help",
    "version": "--version",
    "help of a verb": "info --help",
    "config": "config smoke",
    "config json": "config smoke --json",
    "info": "info deepseek-v3",
    "plan": "plan mixtral-8x7b",
    "list": "list models",
    "list json": "list gpus --json",
    "completion": "completion bash",
    "simulate": "simulate communication {trace} --devices 2",
    "generate": "generate {model} ab --max-new-tokens 4",
    "eval": "eval {run} --data {texts} --domain-field dom --max-tokens 100",
    "eval json": "eval {run} --data {texts} --max-tokens 100 --json",
    "trace json": "trace {run} --data {texts} --max-tokens 50 -o {out}/t.parquet --json",
    # These write files, or say their result by their exit code.
    "train": "train smoke --data {texts} --corpus.domain-field dom --corpus.cache-dir {cache} --train.steps 2"
    " --corpus.validation-fraction 0.5"
    " --train.threads 1 --out {out} --name [red]",
    "trace": "trace {run} --data {texts} --domain-field dom --max-tokens 50 -o {out}/t.parquet",
    "inspect": "inspect {trace} -o {out}/r.md --format md",
    "doctor": "doctor mixtral-8x7b --only selection",
}
WORKS: dict[str, tuple[str, ...]] = {
    "train": ("[red]/report.html", "[red]/summary.json", "[red]/checkpoints/step-00000002/checkpoint.json"),
    "trace": ("t.parquet",),
    "inspect": ("r.md",),
    "doctor": (),
}
"""Verbs that go on without a reader, and what they leave."""


@pytest.fixture
def command(finished, model, traced, texts_of_brackets, tmp_path) -> Callable[[str], list[str]]:
    places = dict(
        run=finished, model=model, trace=traced, texts=texts_of_brackets, out=tmp_path,
        cache=texts_of_brackets.parent / "cache",
    )  # fmt: skip
    return lambda name: [word.format(**places) for word in COMMANDS[name].split()]


def code_of(argv: list[str]) -> int:
    try:
        return main(argv)
    except SystemExit as stop:
        return int(stop.code or 0)


@pytest.fixture
def hostile(monkeypatch) -> Iterator[Callable[..., Any]]:
    """Puts a hostile stream into the place of a standard stream."""

    def put(name: str, where: str = "stdout") -> Any:
        stream = STREAMS[name]()
        monkeypatch.setattr(sys, where, stream)
        return stream

    yield put


@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize("name", COMMANDS)
def test_standard_output(name, stream, command, hostile, tmp_path):
    argv = command(name)
    hostile(stream)
    works = name in WORKS
    assert code_of(argv) == (0 if works else ENDS_PRINTING.get(stream, 0))
    assert all((tmp_path / file).is_file() for file in WORKS.get(name, ()))


@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize("name", ["train", "trace", "eval", "doctor", "generate"])
def test_standard_error_never_matters(name, stream, command, hostile, tmp_path):
    argv = command(name)
    hostile(stream, "stderr")
    assert code_of(argv) == 0
    assert all((tmp_path / file).is_file() for file in WORKS.get(name, ()))


@pytest.mark.parametrize("stream", STREAMS)
def test_an_error_keeps_its_code_when_nobody_hears_it(stream, hostile):
    hostile(stream, "stderr")
    hostile(stream, "stdout")
    assert main(["info", "no-such-model"]) == FAILED
    assert main(["--debug", "info", "no-such-model"]) == FAILED


@pytest.mark.parametrize("name", ["train", "trace", "doctor"])
def test_json_that_is_lost_is_told_by_the_code_when_the_work_is_done(
    name, command, hostile, tmp_path, capsys
):
    argv = [*command(name), "--json"]
    hostile("full")
    assert main(argv) == FAILED
    assert "standard output cannot be written: No space left on device" in capsys.readouterr().err
    assert all((tmp_path / file).is_file() for file in WORKS[name])


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
@pytest.mark.parametrize("name", ["config json", "list json", "eval json", "trace json"])
def test_json_is_json_in_any_encoding(name, encoding, command, monkeypatch):
    argv = command(name)
    stream = encoded(encoding)
    monkeypatch.setattr(sys, "stdout", stream)
    assert main(argv) == 0
    json.loads(stream.buffer.getvalue().decode(encoding), parse_constant=pytest.fail)


@pytest.mark.parametrize(
    "name", ["train", "trace", "inspect", "doctor", "eval", "config", "info", "plan", "simulate"]
)
def test_json_alone_is_on_standard_output(name, command, capsys):
    assert main([*command(name), "--json"]) == 0
    json.loads(capsys.readouterr().out, parse_constant=pytest.fail)


# Text is text.


@pytest.mark.parametrize("name", ["train", "eval", "trace"])
def test_domains_that_look_like_markup_are_shown_as_they_are(name, command, capsys):
    argv = [word for word in command(name) if not word.isdecimal() and word != "--max-tokens"]
    if name == "train":
        argv = command(name)
    assert main(argv) == 0
    out = capsys.readouterr().out
    for domain in ("[/b]", "[red]", ":smile:", "語"):
        assert domain in out, domain
    assert "\x1b" not in out  # no escape sequence reaches a terminal
    if name == "train":
        assert "[red]/report.html" in out


def test_names_in_bars_and_paths_are_no_markup(capsys):
    screen = console()
    screen.print("[/b] [bold]x[/bold] :smile: \x1b[31m", style="bold")
    assert capsys.readouterr().out == "[/b] [bold]x[/bold] :smile: ␛[31m\n"


# The streams themselves.


def test_a_lost_stream_drops_the_rest_and_says_why():
    stream = SafeStream(Refusing(errno.EPIPE, room=3))
    for text in ("abc", "d", "e"):
        stream.write(text)
    stream.flush()
    assert stream.reader_gone and stream.getvalue() == "abc"
    stream.ends = True
    with pytest.raises(OutputLost):
        stream.write("f")


def test_characters_that_an_encoding_lacks_are_escapes():
    stream = encoded("ascii")
    SafeStream(stream).write("é 語 \ud800 a")
    stream.flush()
    assert stream.buffer.getvalue() == rb"\xe9 \u8a9e \ud800 a"


def test_streams_are_put_back():
    before = sys.stdout, sys.stderr
    with pytest.raises(ZeroDivisionError), protected(quiet=True, json=True):
        assert sys.stdout is sys.stderr is not before[1]
        _ = 1 / 0
    assert (sys.stdout, sys.stderr) == before


# With a real process: descriptors and signals.


def moeworks(*argv: str, **options: Any) -> subprocess.Popen:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **options.pop("env", {})}
    return subprocess.Popen([sys.executable, "-m", "moeworks", *argv], env=environment, **options)


def gone_pipe() -> int:
    reader, writer = os.pipe()
    os.close(reader)
    return writer


@pytest.mark.parametrize(
    ("argv", "code"), [(["list", "models"], BROKEN_PIPE), (["list", "models", "--json"], BROKEN_PIPE)]
)
def test_a_real_pipe_without_a_reader(argv, code):
    writer = gone_pipe()
    done = moeworks(*argv, stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert (done.communicate(timeout=120)[1], done.returncode) == (b"", code)


def test_a_full_device():
    with open("/dev/full", "w") as full:
        done = moeworks("config", "smoke", stdout=full, stderr=subprocess.PIPE)
        error = done.communicate(timeout=120)[1].decode()
    assert done.returncode == FAILED
    assert error == "moeworks: error: standard output cannot be written: No space left on device\n"


@pytest.mark.parametrize("closed_ones", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_descriptors_are_not_given_to_files(closed_ones, finished, tmp_path):
    """With descriptor 1 free, the next file that is opened would get what is printed."""
    target = tmp_path / "t.parquet"
    data = tmp_path / "a.txt"
    data.write_text("a text of some words\n" * 20)
    command = f"exec {sys.executable} -m moeworks trace {finished} --data {data} -o {target} {closed_ones}"
    assert (
        subprocess.run(
            ["sh", "-c", command], timeout=120, env={**os.environ, "OMP_NUM_THREADS": "1"}
        ).returncode
        == 0
    )
    assert target.read_bytes()[:4] == target.read_bytes()[-4:] == b"PAR1"


def started(process: subprocess.Popen, run: Path) -> None:
    """Wait until `run` has taken a step."""
    metrics = run / "metrics.jsonl"
    for _ in range(1200):
        assert process.poll() is None
        if metrics.exists() and metrics.stat().st_size:
            return
        time.sleep(0.1)
    pytest.fail("no step was taken")


def train_command(texts: Path, out: Path) -> list[str]:
    cache = str(texts.parent / "cache")
    return [
        "train", "smoke", "--data", str(texts), "--corpus.cache-dir", cache, "--train.threads", "1", "--out",
        str(out), "--name", "run", "--train.steps", "100000", "--train.log-every", "1",
        "--train.checkpoint-every", "100000", "--train.eval-every", "100000",
    ]  # fmt: skip


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM])
def test_a_signal_without_a_reader_saves(number, texts, tmp_path):
    """A terminal that is closed: its stream fails and SIGHUP comes."""
    writer = gone_pipe()
    process = moeworks(*train_command(texts, tmp_path), stdout=writer, stderr=writer)
    os.close(writer)
    started(process, tmp_path / "run")
    process.send_signal(number)
    assert process.wait(timeout=120) == 128 + number
    assert list((tmp_path / "run" / "checkpoints").glob("step-*"))
    assert (tmp_path / "run" / "report.html").is_file()


def test_nohup_is_respected(texts, tmp_path):
    process = moeworks(
        *train_command(texts, tmp_path), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
    )  # fmt: skip
    started(process, tmp_path / "run")
    process.send_signal(signal.SIGHUP)
    before = (tmp_path / "run" / "metrics.jsonl").stat().st_size
    for _ in range(600):
        if (tmp_path / "run" / "metrics.jsonl").stat().st_size > before + 4096:
            break
        time.sleep(0.1)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=120) == 128 + signal.SIGINT


def test_every_verb_is_in_the_table():
    assert set(VERBS) == {line.split()[0] for line in COMMANDS.values() if not line.startswith("-")} | {"lab"}
