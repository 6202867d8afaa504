"""`moeworks eval` on a published folder and on a run."""

import json

import pytest
from tiny_tokenizers import VOCAB, write_folder

from moeworks import load
from moeworks.cli.main import main
from moeworks.config import CorpusConfig
from moeworks.data.corpus import iter_documents
from moeworks.data.model_tokenizer import tokenizer_of
from moeworks.evaluate.texts import evaluate_texts, total


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("eval") / "m"
    write_folder(folder)
    return folder


@pytest.fixture
def data(tmp_path):
    for name, text in (("fr", "été à Paris\n" * 8), ("en", "a summer\n" * 12)):
        (tmp_path / "data" / name).mkdir(parents=True)
        (tmp_path / "data" / name / "text.txt").write_text(text, encoding="utf-8")
    (tmp_path / "data" / "en" / "noise.txt").write_bytes(b"\0\1")
    return tmp_path / "data"


def written(capsys, *argv) -> str:
    assert main(["eval", *map(str, argv)]) == 0
    return capsys.readouterr().out


def refused(capsys, *argv) -> str:
    assert main(["eval", *map(str, argv)]) == 2
    return capsys.readouterr().err


def test_the_figures_are_the_librarys(model, data, capsys):
    got = json.loads(written(capsys, model, "--data", data, "--json"))
    documents = iter_documents((str(data),), CorpusConfig())
    want = evaluate_texts(load(model), tokenizer_of(model, VOCAB), documents, context=64, stride=64)
    assert got["domains"]["fr"] == pytest.approx(want["fr"].record())
    assert got["bits_per_byte"] == pytest.approx(total(want).bits_per_byte)
    assert (got["context"], got["stride"], got["documents"]) == (64, 64, 2)


def test_a_table_with_a_row_per_domain(model, data, capsys):
    lines = written(capsys, model, "--data", data).splitlines()
    assert [line.split()[0] for line in lines] == ["domain", "en", "fr", "all"]
    assert "bits per byte" in lines[0]


def test_options(model, data, capsys):
    cut = json.loads(written(capsys, model, "--data", data, "--json", "--context", "16", "--stride", "4"))
    assert (cut["context"], cut["stride"]) == (16, 4)
    half = json.loads(written(capsys, model, "--data", data, "--json", "--dtype", "bfloat16"))
    assert half["bits_per_byte"] == pytest.approx(cut["bits_per_byte"], rel=0.3)


def test_a_run(finished, data, capsys):
    got = json.loads(written(capsys, finished, "--data", data, "--json"))
    assert 0 < got["bits_per_byte"] < 20


def test_bad_input(model, data, tmp_path, capsys):
    assert "name texts, or tasks" in refused(capsys, model)
    long = refused(capsys, model, "--data", data, "--context", "65")
    assert "context = 65: exceeds the model's, 64" in long
    assert "stride = 99: exceeds the context, 64" in refused(capsys, model, "--data", data, "--stride", "99")
    assert "max_bytes = 0: must be at least 1" in refused(capsys, model, "--data", data, "--max-bytes", "0")
    assert "no such file" in refused(capsys, model, "--data", tmp_path / "gone")
    assert "neither a run" in refused(capsys, tmp_path / "gone", "--data", data)
    (tmp_path / "m").mkdir()
    write_folder(tmp_path / "m")
    (tmp_path / "m" / "tokenizer.json").unlink()
    assert "tokenizer.json: missing" in refused(capsys, tmp_path / "m", "--data", data)


@pytest.mark.parametrize(
    "option",
    [
        ["--context", "8"], ["--stride", "8"], ["--max-tokens", "9"], ["--max-bytes", "9"],
        ["--text-field", "t"], ["--domain-field", "d"],
    ],
)  # fmt: skip
def test_options_of_texts_need_texts(model, capsys, option):
    message = f"moeworks: error: {option[0]} has no effect without --data\n"
    assert refused(capsys, model, "--tasks", "arc_easy", *option) == message


@pytest.mark.parametrize("option", ["--limit", "--num-fewshot"])
def test_options_of_tasks_need_tasks(model, data, capsys, option):
    assert f"{option} has no effect without --tasks" in refused(capsys, model, "--data", data, option, "3")


def test_max_tokens_ends_with_the_document_that_reaches_it(model, data, capsys):
    whole = json.loads(written(capsys, model, "--data", data, "--json"))
    some = json.loads(written(capsys, model, "--data", data, "--json", "--max-tokens", "5"))
    assert (whole["documents"], some["documents"], list(some["domains"])) == (2, 1, ["en"])


def test_the_former_limit_works_with_a_note(model, data, capsys):
    assert main(["eval", str(model), "--data", str(data), "--max-bytes", "9", "--json"]) == 0
    out, err = capsys.readouterr()
    assert "--max-tokens" in err and json.loads(out)["documents"] == 2


@pytest.mark.parametrize("dtype", ["bf16", "bfloat16"])
def test_types_in_both_spellings(model, data, capsys, dtype):
    assert written(capsys, model, "--data", data, "--dtype", dtype)
