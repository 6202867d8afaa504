"""`moeworks generate` on the run that test_train trains."""

import pytest

from moeworks.cli.main import main
from moeworks.config.generate import SamplingConfig
from moeworks.data.tokenizer import load_tokenizer
from moeworks.generate.loop import generate
from moeworks.pretrained import load

PROMPT = "line 3 and "


def written(capsys, *argv: str) -> str:
    assert main(["generate", *argv]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out


def test_prompt_and_text_are_what_the_library_makes(finished, capsys):
    out = written(capsys, str(finished), PROMPT, "--max-new-tokens", "40", "--temperature", "0")
    tokenizer, model = load_tokenizer(finished / "tokenizer.json"), load(finished)
    ids = [tokenizer.end_of_text_id, *tokenizer.encode(PROMPT).tolist()]
    greedy = SamplingConfig(temperature=0)
    text = generate(model, ids, 40, sampling=greedy, stop_id=tokenizer.end_of_text_id)
    assert out == PROMPT + tokenizer.decode(list(text)) + "\n"


def test_a_seed_repeats_the_text(finished, capsys):
    texts = [
        written(capsys, str(finished), PROMPT, "--max-new-tokens", "30", "--seed", seed)
        for seed in ("1", "1", "2")
    ]
    assert texts[0] == texts[1] != texts[2]


def test_a_checkpoint_by_its_own_path(finished, capsys, monkeypatch):
    options = ["--max-new-tokens", "10", "--temperature", "0"]
    last = finished / "checkpoints" / "step-00000012"
    by_run = written(capsys, str(finished), PROMPT, *options)
    assert written(capsys, str(last), PROMPT, *options) == by_run
    monkeypatch.chdir(last)
    assert written(capsys, ".", PROMPT, *options) == by_run


def test_no_new_token_gives_the_prompt(finished, capsys):
    assert written(capsys, str(finished), PROMPT, "--max-new-tokens", "0") == PROMPT + "\n"


def test_empty_prompt(finished, capsys):
    assert written(capsys, str(finished), "", "--max-new-tokens", "5").endswith("\n")


def test_an_answer_may_outgrow_what_the_model_can_see(finished, capsys):
    """max_seq_len is 128."""
    prompt = "x" * 120
    out = written(capsys, str(finished), prompt, "--max-new-tokens", "30", "--top-k", "3")
    assert out.startswith(prompt) and len(out) > 130


def test_a_prompt_longer_than_what_the_model_can_see_is_refused(finished, capsys):
    assert main(["generate", str(finished), "x" * 150]) == 2
    message = "moeworks: error: prompt = 151: tokens exceed the model's context of 128\n"
    assert capsys.readouterr().err == message


@pytest.mark.parametrize("text", ["né😀 end", "broken \ufffd off"])
def test_characters_of_several_tokens_come_whole(finished, capsys, monkeypatch, text):
    """Bytes as tokens: half a character must not be printed, nor be printed twice."""
    content = text.encode() if "\ufffd" not in text else b"broken \xf0\x9f off"
    monkeypatch.setattr("moeworks.generate.complete.generate", lambda *args, **options: iter(content))
    assert written(capsys, str(finished), PROMPT) == PROMPT + text.replace("\ufffd", decoded(finished)) + "\n"


def decoded(finished) -> str:
    """What the tokenizer makes of two bytes of a character of four."""
    return load_tokenizer(finished / "tokenizer.json").decode([0xF0, 0x9F])


def test_unfinished_character_at_the_end_is_shown(finished, capsys, monkeypatch):
    monkeypatch.setattr("moeworks.generate.complete.generate", lambda *args, **options: iter(b"ab\xc3"))
    assert written(capsys, str(finished), PROMPT) == PROMPT + "ab\ufffd\n"
