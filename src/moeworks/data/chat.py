"""Conversations to text by a model's chat template, which is a program that came with the weights.

It runs in jinja2's immutable sandbox, in a process of its own (chat_worker.py) with bounded time and memory:
a sandbox keeps a template from Python's insides, not from counting forever or from a string of gigabytes.
"""

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moeworks.errors import DataError

LONGEST_TEMPLATE = 1_000_000
LONGEST_TEXT = 16_000_000
SECONDS = 10.0
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
