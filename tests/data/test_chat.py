"""Chat templates: what they write, and what hostile ones cannot do."""

import time

import pytest

from moeworks.data.chat import LONGEST_TEMPLATE, mark_spelled, render_chat, split_marked
from moeworks.errors import DataError

HELLO = {"messages": [{"role": "user", "content": "hi ü😀"}], "add_generation_prompt": True}
CHATML = (
    "{%- for m in messages %}<|{{ m.role }}|>{{ m['content'] | trim }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def test_a_template_writes_the_conversation():
    assert render_chat(CHATML, HELLO) == "<|user|>hi ü😀\n<|assistant|>"
    assert render_chat(CHATML, HELLO | {"add_generation_prompt": False}) == "<|user|>hi ü😀\n"


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("a\n  {% if true %}\nb\n{% endif %}\n", "a\nb\n"),  # trim_blocks and lstrip_blocks
        ("{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", "01"),
        ("{{ {'a': '<&ü'} | tojson }}", '{"a": "<&ü"}'),
        ("{% generation %}x{{ 1 + 1 }}{% endgeneration %}", "x2"),
        ("{{ bos_token }}", ""),
        ("{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = 5 %}{% endfor %}{{ ns.n }}", "5"),
        ("{{ strftime_now('%Y') | length }}", "4"),
    ],
)
def test_what_templates_of_published_models_use(template, text):
    assert render_chat(template, HELLO) == text


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% if", "TemplateSyntaxError, line 1"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "SecurityError"),
        ("{{ messages.append(1) }}", "SecurityError"),
        ("{{ cycler.__init__.__globals__.os.system('true') }}", "SecurityError"),
        ("{{ nothing.at.all }}", "UndefinedError"),
        ("{{ raise_exception('roles must alternate') }}", "refuses these messages: roles must alternate"),
        ("{{ 1 / 0 }}", "fails on these messages: ZeroDivisionError"),
        ("{{ 'a' * 10**11 }}", "too much memory"),
        ("{{ 'a' | center(10**11) }}", "too much memory"),
        ("{% for i in range(99999) %}{{ 'a' * 1000 }}{% endfor %}", "writes more than 16000000 characters"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
        ("{% include '/etc/passwd' %}", "no loader"),
        ("{{ " + "(" * 9000 + "1" + ")" * 9000 + " }}", "."),
    ],
)
def test_hostile_and_broken_templates_are_errors(template, message):
    with pytest.raises(DataError, match=r"^chat template: .*" + message):
        render_chat(template, HELLO)


@pytest.mark.parametrize(
    "template",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{{ 10 ** (10 ** 9) }}",
    ],
)
def test_time_is_bounded(template):
    start = time.monotonic()
    with pytest.raises(DataError, match=r"takes longer than 1 seconds|too much memory or time"):
        render_chat(template, HELLO, seconds=1)
    assert time.monotonic() - start < 30


def test_a_template_of_megabytes_is_not_run():
    with pytest.raises(DataError, match="1000001 characters; at most 1000000"):
        render_chat("a" * (LONGEST_TEMPLATE + 1), HELLO)


def test_marks_survive_only_around_what_they_mark():
    """A message cannot bring marks of its own, and a template that takes them apart joins nothing."""
    start, end = "\U000f0000", "\U000f0001"
    marked = mark_spelled([{"role": "user", "content": f"a{start}<e>{end}b", "n": 1}], ["<e>", "<e"])
    assert marked == [{"role": "user", "content": f"a{start}<e>{end}b", "n": 1}]
    assert split_marked(f"x{start}<e>{end}y") == [("x", False), ("<e>", True), ("y", False)]
    assert split_marked(f"x<{start}e>y") == [("x<", False), ("e>y", False)]
    assert split_marked("") == [] and mark_spelled(["<e>"], []) == ["<e>"]
