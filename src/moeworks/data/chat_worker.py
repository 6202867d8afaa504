"""The process that runs a chat template: a request as JSON on stdin, the text or an error as JSON on stdout.

A script that imports nothing of moeworks, so that it starts at once. What templates may use beside jinja2
itself is what transformers gives them: raise_exception, strftime_now, tojson, dict.fromkeys, break and
continue, {% generation %}.
"""

import datetime
import json
import sys
from typing import Any, NoReturn

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

try:
    import resource
except ImportError:  # Windows
    resource = None

MEMORY = 1 << 30


class RefusalError(Exception):
    """The template's own complaint about the messages."""


class TooLongError(Exception):
    """The rendered text is longer than the limit."""


class Generation(Extension):
    """`{% generation %}`, marks the assistant's words for training; they are written as they are."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> Any:
        """The statements inside."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


def complain(message: str) -> NoReturn:
    """Implementation of the templates' raise_exception."""
    raise RefusalError(message)


def strftime_now(form: str) -> str:
    """Implementation of the templates' strftime_now: the present time in a given format."""
    return datetime.datetime.now().strftime(form)


def to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON without the escapes that jinja2's own filter adds for HTML."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


class TemplateDict:
    """The templates' `dict`: a call makes a dictionary, and fromkeys is there too."""

    def __call__(self, *items: Any, **named: Any) -> dict[Any, Any]:
        """A new dictionary."""
        return dict(*items, **named)

    def fromkeys(self, keys: Any, value: Any = None) -> dict[Any, Any]:
        """A dictionary with one value for all keys."""
        return dict.fromkeys(keys, value)


def render(template: str, variables: dict[str, Any], limit: int) -> str:
    """The rendered text, of at most `limit` characters."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, Generation]
    )
    environment.filters["tojson"] = to_json
    given = {"raise_exception": complain, "strftime_now": strftime_now, "dict": TemplateDict()}
    pieces, size = [], 0
    for piece in environment.from_string(template, globals=given).generate(**variables):
        size += len(piece)
        if size > limit:
            raise TooLongError(f"it writes more than {limit} characters")
        pieces.append(piece)
    return "".join(pieces)


def bound(seconds: int) -> None:
    """Limit the time and memory (MEMORY) of this process, if the system can."""
    if resource is None:
        return
    try:
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    except (ValueError, OSError):
        pass


def main() -> None:
    """Read one request from stdin and answer it on stdout."""
    bound(int(sys.argv[1]))
    request = json.loads(sys.stdin.buffer.read())
    try:
        answer = {"text": render(request["template"], request["variables"], request["limit"])}
    except RefusalError as error:
        answer = {"error": f"it refuses these messages: {error}"}
    except TooLongError as error:
        answer = {"error": str(error)}
    except TemplateError as error:
        place = f", line {error.lineno}" if getattr(error, "lineno", None) else ""
        answer = {"error": f"{type(error).__name__}{place}: {error}"}
    except MemoryError:
        answer = {"error": "it takes too much memory or time"}
    except Exception as error:  # whatever a template's own expressions run into
        answer = {"error": f"it fails on these messages: {type(error).__name__}: {error}"}
    sys.stdout.buffer.write(json.dumps(answer).encode())


if __name__ == "__main__":
    main()
