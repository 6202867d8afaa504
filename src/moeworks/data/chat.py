"""Chat templates, which turn conversations into text: programs that come with a model's weights.

A template runs in jinja2's immutable sandbox, in a process of its own (chat_worker.py) with bounded time and
memory: a sandbox keeps a template from Python's insides, not from counting forever or from a string of
gigabytes.
"""

import json
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from moeworks.errors import DataError

LONGEST_TEMPLATE = 1_000_000
LONGEST_TEXT = 16_000_000
SECONDS = 10.0
_REASONING = ("reasoning_content", "thinking", "reasoning")
"""Keys of a message's reasoning; most templates read the first, that of gpt-oss reads the second."""
_START, _END = "\U000f0000", "\U000f0001"
"""Stand around a control token that a message spells; private characters, which are dropped from messages."""
_WORKER = Path(__file__).with_name("chat_worker.py")


def render_chat(template: str, variables: Mapping[str, Any], *, seconds: float = SECONDS) -> str:
    """The text that `template` makes of `variables` (messages, add_generation_prompt, bos_token …).

    Raises DataError for a template that is not jinja, asks for what the sandbox refuses, complains of the
    messages, takes too long, or writes too much.
    """
    if len(template) > LONGEST_TEMPLATE:
        raise DataError(f"chat template: {len(template)} characters; at most {LONGEST_TEMPLATE} are run")
    request = json.dumps({"template": template, "variables": dict(variables), "limit": LONGEST_TEXT})
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-X", "utf8", str(_WORKER), str(int(seconds) + 1)],
            input=request.encode(),
            capture_output=True,
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise DataError(f"chat template: it takes longer than {seconds:g} seconds") from None
    try:
        answer = json.loads(done.stdout)
    except ValueError:
        raise DataError("chat template: it takes too much memory or time") from None
    if "error" in answer:
        raise DataError(f"chat template: {answer['error']}")
    return answer["text"]


def chat_variables(
    messages: Sequence[Mapping[str, Any]],
    *,
    answer: bool,
    tools: Sequence[Mapping[str, Any]] | None = None,
    documents: Sequence[Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
    """What transformers tells every template: a missing list is None, and so are no keys of a message."""
    return {
        "messages": [_message(message) for message in messages],
        "tools": tools,
        "documents": documents,
        "add_generation_prompt": answer,
    }


def _message(message: Mapping[str, Any]) -> dict[str, Any]:
    """Without keys whose value is None, and with its reasoning under the names that templates read."""
    kept = {key: value for key, value in message.items() if value is not None}
    reasoning = next((kept[name] for name in _REASONING if name in kept), None)
    return kept if reasoning is None else {"thinking": reasoning, **kept, "reasoning_content": reasoning}


def mark_spelled(value: Any, tokens: Iterable[str]) -> Any:
    """`value`, JSON as messages are, with marks around each of `tokens` that a text in it spells out."""
    longest_first = sorted(tokens, key=len, reverse=True)
    pattern = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")

    def marked(value: Any) -> Any:
        if isinstance(value, str):
            bare = value.replace(_START, "").replace(_END, "")
            return pattern.sub(f"{_START}\\g<0>{_END}", bare)
        if isinstance(value, Mapping):
            return {key: marked(item) for key, item in value.items()}
        return [marked(item) for item in value] if isinstance(value, (list, tuple)) else value

    return marked(value)


def split_marked(text: str) -> list[tuple[str, bool]]:
    """Pieces of a rendered text, each with a flag that says whether a message spelled it as a control token.

    A template may take marks apart; a mark alone is dropped, and still keeps its sides from joining.
    """
    pieces = re.split(f"{_START}([^{_START}{_END}]*){_END}|[{_START}{_END}]", text)
    return [(piece, place % 2 == 1) for place, piece in enumerate(pieces) if piece]
